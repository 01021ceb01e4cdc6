# SPDX-License-Identifier: Apache-2.0
"""What readers that stand in front of another one share: everything but the tensors is the other's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from rwkv_cpu.checkpoint.base import Checkpoint

__all__ = ["WrappedCheckpoint"]


class WrappedCheckpoint:
    """A checkpoint that shows another one's tensors differently; a subclass adds ``tensors`` and ``read``."""

    def __init__(self, base: Checkpoint) -> None:
        """Takes *base* over: close() closes it."""
        self._base = base

    def __getattr__(self, name: str) -> Any:
        """What the container may offer besides: its files, its settings."""
        if name == "_base":
            raise AttributeError(name)
        return getattr(self._base, name)

    @property
    def path(self) -> Path:
        """The checkpoint's file."""
        return self._base.path

    @property
    def kind(self) -> str:
        """The checkpoint's container."""
        return self._base.kind

    @property
    def tokenizer(self) -> tuple[str, bytes] | None:
        """The checkpoint's."""
        return self._base.tokenizer

    @property
    def chat_template(self) -> bytes | None:
        """The checkpoint's."""
        return self._base.chat_template

    def close(self) -> None:
        """Close the checkpoint."""
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
