# SPDX-License-Identifier: Apache-2.0
"""Run one long library call for a command: a progress bar where there is a terminal, Ctrl-C at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from rwkv_cpu.cancel import CancelToken

Result = TypeVar("Result")


def run_with_progress(what: str, work: Callable[[Callable[[int, int], None], CancelToken], Result]) -> Result:
    """Call *work* with a progress callback and a CancelToken, in a thread, and return its result.

    Raises: what *work* raises; Cancelled after Ctrl-C.
    """
    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.terminal.screen import PatientProgress
    from rwkv_cpu.terminal.worker import cancel_on_ctrl_c, events_of

    cancel = CancelToken()

    def run(emit: Callable[[tuple[int, int]], None]) -> Result:
        return work(lambda done, total: emit((done, total)), cancel)

    with cancel_on_ctrl_c(cancel), PatientProgress(what) as progress:
        events = events_of(run)
        while True:
            try:
                event = next(events)
            except StopIteration as ended:
                return ended.value  # type: ignore[no-any-return]
            if event is not None:
                progress.update(*event)
