# SPDX-License-Identifier: Apache-2.0
"""A numpy array that answers to what scripts do to the ``rwkv`` package's torch tensors."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Tensor"]


class Tensor(np.ndarray):
    """float32 [...]. Functions of torch accept it too, where a script brings torch with it: they see a tensor that
    shares its memory.
    """

    def detach(self) -> Tensor:
        """Itself."""
        return self

    def cpu(self) -> Tensor:
        """Itself."""
        return self

    def float(self) -> Tensor:
        """Itself."""
        return self

    def contiguous(self) -> Tensor:
        """Itself, or a copy whose numbers lie one after the other."""
        return np.ascontiguousarray(self).view(Tensor)

    def numpy(self) -> np.ndarray[Any, Any]:
        """A plain array that shares the memory."""
        return self.view(np.ndarray)

    def clone(self) -> Tensor:
        """A copy."""
        copied: Tensor = self.copy().view(Tensor)
        return copied

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], _types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] = {}
    ) -> Any:
        return function(*(_torch(a) for a in args), **{name: _torch(a) for name, a in kwargs.items()})


def _torch(value: Any) -> Any:
    if isinstance(value, Tensor):
        return sys.modules["torch"].from_numpy(value.numpy())  # torch called us, so it is there
    return type(value)(map(_torch, value)) if type(value) in (list, tuple) else value
