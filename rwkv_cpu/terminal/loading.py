# SPDX-License-Identifier: Apache-2.0
"""Open a model for a command: memory forecast first, progress when it takes long, Ctrl-C at any time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_cpu import memory
from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.terminal.screen import PatientProgress
from rwkv_cpu.terminal.worker import cancel_on_ctrl_c, events_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from rwkv_cpu.model import Model

__all__ = ["open_model"]


def open_model(
    name: str,
    *,
    weight_format: str | None = None,
    threads: int | None = None,
    warn: Callable[[str, str], None],
) -> Model:
    """Model.load() as a command does it.

    Args:
        name: as Model.load takes it.
        weight_format: of a checkpoint opened directly; None: q8.
        threads: None: the default.
        warn: called with (message, hint) if the machine would swap.

    Raises:
        RwkvError, OSError: as Model.load.
        Cancelled: Ctrl-C.
    """
    from rwkv_cpu.model import Model

    path = Path(name)
    forecast = memory.forecast_file(path, format=weight_format or "q8") if path.is_file() else None
    if forecast is not None and forecast.warning:
        warn(forecast.warning, forecast.hint)
    cancel = CancelToken()

    def load(emit: Callable[[tuple[int, int]], None]) -> Model:
        return Model.load(
            name,
            format=weight_format,
            threads=threads,
            on_progress=lambda done, total, *_: emit((done, total)),
            cancel=cancel,
        )

    with cancel_on_ctrl_c(cancel), PatientProgress(f"Converting {path.name}") as progress:
        loading = events_of(load)
        while True:
            try:
                event: Any = next(loading)
            except StopIteration as ended:
                return ended.value  # type: ignore[no-any-return]
            if event is not None:
                progress.update(*event)
