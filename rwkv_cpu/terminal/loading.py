# SPDX-License-Identifier: Apache-2.0
"""Open a model for a command: memory forecast first, progress when it takes long, Ctrl-C at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkv_cpu import memory
from rwkv_cpu.terminal.progress import run_with_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from rwkv_cpu.model import Model

__all__ = ["open_model"]


def open_model(
    name: str,
    *,
    weight_format: str | None = None,
    threads: int | None = None,
    preload: bool = False,
    warn: Callable[[str, str], None],
) -> Model:
    """Model.load() as a command does it.

    Args:
        name: as Model.load takes it.
        weight_format: of a checkpoint opened directly; None: q8.
        threads: None: the default.
        preload: map the weights in the background.
        warn: called with (message, hint) if the machine would swap.

    Raises:
        RwkvError, OSError: as Model.load.
        Cancelled: Ctrl-C.
    """
    from rwkv_cpu.loading import path_of
    from rwkv_cpu.model import Model

    path = path_of(name)
    forecast = memory.forecast_file(path, format=weight_format or "q8") if path.is_file() else None
    if forecast is not None and forecast.warning:
        warn(forecast.warning, forecast.hint)
    return run_with_progress(
        f"Converting {path.name}",
        lambda on_progress, cancel: Model.load(
            name, format=weight_format, threads=threads, preload=preload, on_progress=on_progress, cancel=cancel
        ),
    )
