# SPDX-License-Identifier: Apache-2.0
"""Every error this package raises on purpose.

    RwkvError
    ├─ ArgumentError (ValueError)          a call that breaks the rules of the function
    ├─ FormatError (ValueError)            damaged or foreign file
    │  └─ ChecksumError                    the file's bytes are not the ones that were written
    ├─ UnsupportedModelError (ValueError)  understood, but not something this package runs
    ├─ ShapeError (ValueError)             a tensor is missing or its shape does not fit
    ├─ NonFiniteError (ValueError)         NaN or Inf in weights or in a result
    ├─ TokenError (ValueError)             a token id outside the vocabulary
    ├─ StateError (ValueError)             a state of another model, or a damaged one
    ├─ ModelNotFoundError (FileNotFoundError)
    ├─ OutOfMemory (MemoryError)
    ├─ ModelClosedError                    the model was closed
    ├─ ForkedError                         used in a child process that inherited it
    ├─ Busy                                the same conversation is answering already
    └─ Cancelled                           a CancelToken stopped the work; state stays valid

Each carries ``hint``: one sentence on what to do about it ("" if there is none).
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "Busy",
    "Cancelled",
    "ChecksumError",
    "ForkedError",
    "FormatError",
    "ModelClosedError",
    "ModelNotFoundError",
    "NonFiniteError",
    "OutOfMemory",
    "RwkvError",
    "ShapeError",
    "StateError",
    "TokenError",
    "UnsupportedModelError",
    "escaped",
]


_BEGINNING, _END = 700, 200  # characters of a message too long to read


class RwkvError(Exception):
    """Base of all errors of this package; *hint* says what to do about it.

    Messages quote what files say, also through the errors of other packages: control characters are escaped, so that
    none reaches a terminal, and the middle of a long message is left out.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(_readable(message))
        self.hint = _readable(hint)


def _readable(text: str) -> str:
    if len(text) > _BEGINNING + _END:
        text = f"{text[:_BEGINNING]} … {text[-_END:]}"
    return "\n".join(escaped(line) for line in text.split("\n"))


def escaped(text: str) -> str:
    """*text* with escapes for what may not be printed, as Python writes them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class ArgumentError(RwkvError, ValueError):
    """A call that breaks the rules of the function."""


class FormatError(RwkvError, ValueError):
    """A damaged file, or one of another kind."""


class ChecksumError(FormatError):
    """The bytes of a file are not the ones that were written."""


class UnsupportedModelError(RwkvError, ValueError):
    """A model that is understood but cannot be run, with the reason."""


class ShapeError(RwkvError, ValueError):
    """A tensor is missing, or its shape does not fit the model's other tensors."""


class NonFiniteError(RwkvError, ValueError):
    """NaN or Inf in weights, a state or a result."""


class TokenError(RwkvError, ValueError):
    """A token id outside the vocabulary, or no token at all."""


class StateError(RwkvError, ValueError):
    """A state that belongs to another model, or is damaged."""


class ModelNotFoundError(RwkvError, FileNotFoundError):
    """No model of that name and no file at that path."""


class OutOfMemory(RwkvError, MemoryError):  # noqa: N818 (the name says it; MemoryError has no suffix either)
    """Not enough memory."""


class ModelClosedError(RwkvError):
    """The model was closed."""


class ForkedError(RwkvError):
    """A model used in a child process that inherited it by fork()."""


class Busy(RwkvError):  # noqa: N818
    """The same conversation is answering already."""


class Cancelled(RwkvError):  # noqa: N818
    """A CancelToken stopped the work. States are as after the last finished chunk.

    *n_done*: tokens of the call that the state holds.
    """

    def __init__(self, message: str = "cancelled", *, hint: str = "", n_done: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.n_done = n_done
