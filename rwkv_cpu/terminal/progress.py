# SPDX-License-Identifier: Apache-2.0
"""Progress of long work, on stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, TypeVar

from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.terminal.worker import cancel_on_ctrl_c, events_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rich.progress import Progress
    from typing_extensions import Self

__all__ = ["PatientProgress", "run_with_progress"]

Result = TypeVar("Result")

# Work shorter than this shows no progress: a bar that flashes up is noise.
_PATIENCE_SECONDS = 1.0
_REFRESH_SECONDS = 0.1


def run_with_progress(what: str, work: Callable[[Callable[[int, int], None], CancelToken], Result]) -> Result:
    """Call *work* with a progress callback and a CancelToken, in a thread, and return its result.

    Args:
        what: stands beside the bar.
        work: passes both to one long library call.

    Raises:
        Whatever *work* raises; Cancelled after Ctrl-C, if the call heeds its token.
    """
    cancel = CancelToken()

    def run(emit: Callable[[tuple[int, int]], None]) -> Result:
        return work(lambda done, total: emit((done, total)), cancel)

    with cancel_on_ctrl_c(cancel), PatientProgress(what) as progress:
        events = events_of(run)
        while True:
            try:
                event = next(events)
            except StopIteration as ended:
                result: Result = ended.value
                return result
            if event is not None:
                progress.update(*event)


class PatientProgress:
    """A progress bar on stderr for work that takes longer than a second; it removes itself at the end.

    Shows nothing where stderr is no terminal, or one that cannot move its cursor.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()
        self._drawn = 0.0
        self._bar: Progress | None = None
        dumb = os.environ.get("TERM", "") in ("dumb", "unknown")
        self._shown = sys.stderr is not None and sys.stderr.isatty() and not dumb

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, done: int, total: int) -> None:
        """So much of it is done; *total* 0 where that is not known."""
        now = time.monotonic()
        if not self._shown or now - self._began < _PATIENCE_SECONDS or now - self._drawn < _REFRESH_SECONDS:
            return
        self._drawn = now
        if self._bar is None:
            self._bar = self._draw(total)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total or None, refresh=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, total: int) -> Progress:
        # Imported when there is something to draw: most commands are done before.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("{task.description}", style="dim"),
            BarColumn(bar_width=30),
            TaskProgressColumn(style="dim"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR"))),
            transient=True,
            auto_refresh=False,
        )
        bar.add_task(self._what, total=total or None)
        bar.start()
        return bar
