# SPDX-License-Identifier: Apache-2.0
"""RWKV language models on an ordinary CPU.

    from rwkv_cpu import Model
    model = Model.load("demo")
    for piece in model.chat().send("Hello!"):
        print(piece, end="", flush=True)

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .cancel import CancelToken
    from .chat import Chat
    from .config import ModelConfig
    from .engine import set_default_threads
    from .errors import RwkvError
    from .generation import Grammar, Reply, SamplingParams
    from .model import Model
    from .places import find_models
    from .prefix_cache import PrefixCache
    from .state import State

__all__ = [
    "CancelToken",
    "Chat",
    "Grammar",
    "Model",
    "ModelConfig",
    "PrefixCache",
    "Reply",
    "RwkvError",
    "SamplingParams",
    "State",
    "__version__",
    "find_models",
    "set_default_threads",
]

_HOMES = {
    "CancelToken": "cancel",
    "Chat": "chat",
    "Grammar": "generation",
    "Model": "model",
    "ModelConfig": "config",
    "PrefixCache": "prefix_cache",
    "Reply": "generation",
    "RwkvError": "errors",
    "SamplingParams": "generation",
    "State": "state",
    "find_models": "places",
    "set_default_threads": "engine",
}

logging.getLogger("rwkv_cpu").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rwkv_cpu' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
