# SPDX-License-Identifier: Apache-2.0
"""``rwkv.model``: RWKV, with the state as a list of arrays.

What is different: "cuda" and other devices mean the CPU, as there is no other here; the weights are kept in the format
that comes nearest to the strategy; a state list may be given to a call again even if it was changed since.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from rwkv_cpu.compat.rwkv.tensor import Tensor
from rwkv_cpu.errors import StateError
from rwkv_cpu.model import Model

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from rwkv_cpu.state import State

__all__ = ["RWKV", "RWKV_x070"]

_PART = r"(?:cuda(?::\d+)?|cpu|mps|dml) (?:fp(?:16|32)|bf16)(?:i8|i4|i3)?(?: \*\d+\+?)?"
_STRATEGY = re.compile(rf"^(?:(?:^|->) *{_PART} *)+$")
_FORMATS = {"fp32": "f32", "fp16": "f16", "bf16": "f16"}
_RWKV4_PARTS = ("att_shift", "aa", "bb", "pp", "ffn_shift")
_PARTS = ("att_shift", "wkv", "ffn_shift")


class RWKV:
    """A model with the interface of ``rwkv.model.RWKV``.

    Args:
        model: a checkpoint, with or without ".pth"; everything else that Model.load() opens, too.
        strategy: "cpu fp32" and so on, several joined by "->"; the first one decides: fp32 keeps the weights exactly,
            fp16 and bf16 are kept in f16, those with i8, i4 or i3 in q8.
        verbose: accepted; nothing is printed.
        convert_and_save_and_exit: write a .rwkv file of this name and leave the program.

    Attributes:
        model: the Model behind it. version: 4, 5, 5.1, 5.2, 6 or 7. args: n_layer, n_embd, n_att, n_ffn, n_head,
            head_size, vocab_size, MODEL_NAME, strategy_string.

    Raises:
        ValueError: a strategy that is none. What Model.load() raises.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        strategy: str,
        verbose: bool = True,  # noqa: ARG002 (the package's signature)
        convert_and_save_and_exit: str | None = None,
    ) -> None:
        if not _STRATEGY.match(strategy):
            raise ValueError(f"Invalid strategy {strategy!r}: expected something like 'cpu fp32'")
        weights = strategy.replace("->", " ").split()[1]
        path = _file_of(str(model).strip())
        stored = _FORMATS.get(weights, "q8")
        if convert_and_save_and_exit is not None:
            _convert(path, convert_and_save_and_exit, stored)
        # A .rwkv file is what it is.
        is_compact = path == "demo" or Path(path).suffix == ".rwkv"
        self.model = Model.load(path, format=None if is_compact else stored)
        config = self.model.config
        self.version = 7.0 if config.name.startswith("RWKV-7") else float(config.version)
        self.n_layer, self.n_embd = config.n_layer, config.n_embd
        self.n_head, self.head_size = config.n_head, config.head_size
        self.args = SimpleNamespace(
            MODEL_NAME=str(model),
            strategy_string=strategy,
            n_layer=config.n_layer,
            n_embd=config.n_embd,
            n_att=config.n_head * config.head_size if config.n_head else config.n_embd,
            n_ffn=config.n_ffn,
            n_head=config.n_head,
            head_size=config.head_size,
            vocab_size=config.n_vocab,
        )
        self._weights = weights
        self._parts = _RWKV4_PARTS if self.version == 4 else _PARTS
        # RWKV-7 keeps [head, value, key] there, like the package; 5 and 6 keep [head, key, value], like this engine.
        self._turned = self.version >= 7

    def forward(
        self,
        tokens: int | Sequence[int],
        state: list[Any] | None = None,
        full_output: bool = False,
    ) -> tuple[Tensor, list[Any]]:
        """Read *tokens*.

        Args:
            tokens: ids, or one.
            state: None for the beginning, or the list of a call before. As in the package, its elements are replaced.
            full_output: logits after every token.

        Returns:
            (logits float32 [n_vocab], or [T, n_vocab] with full_output and several tokens; the state list).

        Raises:
            TokenError, StateError.
        """
        ids = [int(tokens)] if isinstance(tokens, (int, np.integer)) else [int(i) for i in tokens]
        every = full_output and len(ids) > 1
        before = None if state is None else self._state_of(state)
        logits, after = self.model.forward(ids, before, logits="all" if every else "last")
        fresh = StateList(after, self._views(after))
        if state is None:
            return logits.view(Tensor), fresh
        state[:] = fresh
        if isinstance(state, StateList):
            state.whole, state.views = fresh.whole, fresh.views
        return logits.view(Tensor), state

    __call__ = forward

    @property
    def strategy(self) -> list[SimpleNamespace]:
        """Device and torch types of each layer and of the head, for scripts that make their own starting state."""
        torch = importlib.import_module("torch")  # such a script has it
        name = self._weights.split("i")[0]
        kind = getattr(torch, {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[name])
        layer = {
            "device": "cpu",
            "atype": kind,
            "wtype": torch.uint8 if name != self._weights else kind,
            "stream": False,
        }
        return [SimpleNamespace(**layer) for _ in range(self.n_layer + 1)]

    def generate_zero_state(self) -> list[Any]:
        """The state before the first token, as a list."""
        state = self.model.new_state()
        return StateList(state, self._views(state))

    def close(self) -> None:
        """Free the model."""
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _views(self, state: State) -> list[Tensor]:
        """The list that stands for *state*: views of its numbers."""
        parts = state.parts()
        views = []
        for layer in range(self.n_layer):
            for name in self._parts:
                view = parts[name][layer]
                views.append((view.swapaxes(1, 2) if name == "wkv" and self._turned else view).view(Tensor))
        return views

    def _state_of(self, values: list[Any]) -> State:
        if isinstance(values, StateList) and values.is_whole():
            return values.whole
        state = self.model.new_state()
        views = self._views(state)
        if len(values) != len(views):
            raise StateError(f"a state list of {len(values)}: this model's have {len(views)}")
        for view, value in zip(views, values, strict=True):
            array = _array(value)
            if array.shape != view.shape:
                raise StateError(f"a state with a part {list(array.shape)}: this model's are {list(view.shape)}")
            view[...] = array
        state.begin_here()
        return state


RWKV_x070 = RWKV


class StateList(list[Any]):
    """A state list that knows the block its arrays are views of: as long as it holds those, nothing is copied."""

    def __init__(self, whole: State, views: list[Tensor]) -> None:
        super().__init__(views)
        self.whole, self.views = whole, views

    def is_whole(self) -> bool:
        """Whether all elements are still the views."""
        return len(self) == len(self.views) and all(a is b for a, b in zip(self, self.views, strict=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        import copy

        return [copy.deepcopy(value, memo) for value in self]

    def __copy__(self) -> list[Any]:
        return list(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def _array(value: Any) -> NDArray[np.float32]:
    """A numpy array, or a tensor of a script's own torch."""
    if hasattr(value, "detach") and not isinstance(value, np.ndarray):
        value = value.detach().cpu().float().numpy()
    return np.asarray(value, np.float32)


def _file_of(name: str) -> str:
    """The package appends ".pth"."""
    if name == "demo" or Path(name).exists():
        return name
    return next((f"{name}{end}" for end in (".pth", ".rwkv") if Path(f"{name}{end}").exists()), f"{name}.pth")


def _convert(source: str, target: str, stored: str) -> NoReturn:
    from rwkv_cpu.quantize import quantize

    path = Path(target)
    quantize(source, path if path.suffix == ".rwkv" else path.with_name(f"{path.name}.rwkv"), format=stored)
    raise SystemExit(0)
