# SPDX-License-Identifier: Apache-2.0
"""Models that come as several files: a directory as Hugging Face lays it out, weights in parts with an index, settings
in config.json, the tokenizer beside them.
"""

from __future__ import annotations

import json
import math
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rwkv_cpu.checkpoint.base import Checkpoint, open_container
from rwkv_cpu.checkpoint.gguf_text import template_from_jinja
from rwkv_cpu.checkpoint.recognise import DOWNLOAD_AGAIN, INDEXES, kind_of, shown
from rwkv_cpu.errors import FormatError, ModelNotFoundError, RwkvError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from rwkv_cpu.checkpoint.base import TensorMeta

__all__ = ["ModelDirectory", "model_files", "open_directory"]

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_PART = re.compile(r"(.+)-\d{5}-of-\d{5}\.(safetensors|bin)")
_WEIGHTS = (".safetensors", ".st", ".pth", ".gguf")
_LN_EPS = 1e-5
_GN_EPS = 64e-5
_SQUARED_RELU = ("sqrelu", "relu2", "squared_relu", "relu_squared")
_MAX_JSON_BYTES = 16 << 20
_MAX_NAME_BYTES = 255  # of a file, on every system
_MAX_PARTS = 1000
_TEMPLATE, _TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
_MAX_TOKENIZER_BYTES = 64 << 20
_WORLD_LINE = re.compile(rb"\s*\d+ b?['\"]")
_NO_MODEL = "A model's directory holds model.safetensors, or its parts with model.safetensors.index.json."


def open_directory(path: Path) -> ModelDirectory | None:
    """The model in a directory, or None if *path* is a file on its own.

    A part of a model, an index, and a model.safetensors with its config.json beside it stand for their directory.

    Raises: FormatError: no model in it, or not clearly one; a damaged index. RwkvError: cannot be read.
    """
    weights = _weights_of(path)
    if weights is None:
        return None
    return ModelDirectory(path, weights)


def model_files(path: Path) -> list[Path]:
    """The files that a model consists of, as far as a change in them changes the model; [path] for a file on its own.

    Raises: as open_directory().
    """
    weights = _weights_of(path)
    if weights is None:
        return [path]
    folder = weights.parent
    found = [weights]
    if weights.name in INDEXES:
        found += [folder / name for name in sorted(set(_weight_map(weights).values()))]
    return found + [file for file in sorted(folder.iterdir()) if _beside(file)]


class ModelDirectory:
    """The weights of a directory as one checkpoint, with its names. See checkpoint.base.Checkpoint.

    Attributes:
        files: all that were opened, the first one the index if there is one.
        config: config.json, {} if there is none.
    """

    def __init__(self, path: Path, weights: Path) -> None:
        """Args: path: what the user named. weights: the file of weights, or their index. Raises: FormatError..."""
        self.path = path
        self._folder = weights.parent
        self._parts: dict[str, Checkpoint] = {}
        try:
            if weights.name in INDEXES:
                places = _weight_map(weights)
                for part in sorted(set(places.values())):
                    self._parts[part] = open_container(self._folder / part)
                self._check_places(places)
            else:
                self._parts[weights.name] = part_opened = open_container(weights)
                places = dict.fromkeys(part_opened.tensors, weights.name)
            self._places = places
            self.files = tuple(dict.fromkeys([weights, *(self._folder / part for part in self._parts)]))
            self.tensors: Mapping[str, TensorMeta] = MappingProxyType(
                {name: self._parts[part].tensors[name] for name, part in places.items()}
            )
            self.kind = next(iter(self._parts.values())).kind
            self.config = _config(self._folder)
            self._check_config()
        except BaseException:
            self.close()
            raise

    @property
    def tokenizer(self) -> tuple[str, bytes] | None:
        """The container's own, or the one in the directory: ("world", "sentencepiece" or "huggingface", its bytes)."""
        own = next(iter(self._parts.values())).tokenizer
        return own if own is not None else _tokenizer_in(self._folder)

    @property
    def chat_template(self) -> bytes | None:
        """The container's own, or the one in the directory, as chat.ChatTemplate reads it."""
        own = next(iter(self._parts.values())).chat_template
        return own if own is not None else _template_in(self._folder)

    @property
    def gn_eps(self) -> float | None:
        """Epsilon of the group norm if config.json sets one: fla scales norm_eps by the head size. None: usual."""
        if self.config.get("model_type") != "rwkv7":
            return None
        head, epsilon = self.config.get("head_dim") or 64, self.config.get("norm_eps", _LN_EPS)
        if not isinstance(head, int) or not isinstance(epsilon, float):
            return None
        return None if math.isclose(head * epsilon, _GN_EPS) else head * epsilon

    def read(self, name: str) -> NDArray[Any]:
        """As Checkpoint.read."""
        return self._parts[self._places[name]].read(name)

    def close(self) -> None:
        """Close all parts."""
        for part in self._parts.values():
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_config(self) -> None:
        """What would silently give other results."""
        for key in ("norm_eps", "layer_norm_epsilon"):
            epsilon = self.config.get(key, _LN_EPS)
            if isinstance(epsilon, float) and not math.isclose(epsilon, _LN_EPS):
                raise UnsupportedModelError(
                    f"{self._folder / 'config.json'}: {key} is {epsilon:g}, where RWKV models have {_LN_EPS:g}"
                )

        activation = self.config.get("hidden_act")
        if isinstance(activation, str) and activation not in _SQUARED_RELU:
            raise UnsupportedModelError(
                f"{self._folder / 'config.json'}: hidden_act is {shown(activation)}, where RWKV models have sqrelu"
            )

    def _check_places(self, places: Mapping[str, str]) -> None:
        for name, part in places.items():
            if name not in self._parts[part].tensors:
                raise FormatError(
                    f"{self._folder / part}: {shown(name)} is missing, which the index places here", hint=DOWNLOAD_AGAIN
                )


def _weights_of(path: Path) -> Path | None:
    """The file of weights (or the index) in the directory that *path* is or stands for."""
    if path.is_dir():
        return _weights_in(path)
    if path.name in INDEXES:
        return path
    part = _PART.fullmatch(path.name)
    if part is not None and path.is_file():
        index = path.with_name(f"{part[1]}.{part[2]}.index.json")
        if index.name in INDEXES and index.is_file():
            return index
    if path.name in _SINGLE and path.is_file() and path.with_name("config.json").is_file():
        return path
    return None


def _weights_in(folder: Path) -> Path:
    for name in (INDEXES[0], _SINGLE[0], INDEXES[1], _SINGLE[1]):
        if (folder / name).is_file():
            return folder / name
    try:
        found = sorted(file for file in folder.iterdir() if file.suffix in _WEIGHTS and file.is_file())
    except OSError as error:
        raise RwkvError(f"{folder}: cannot be read: {error.strerror}") from error
    if len(found) == 1 and (folder / "config.json").is_file():
        return found[0]
    if found:
        listed = ", ".join(file.name for file in found[:5])
        raise FormatError(
            f"{folder}: this is a directory, not a model file", hint=f"Name the file inside it: {listed}."
        )
    raise FormatError(f"{folder}: this is a directory without a model in it", hint=_NO_MODEL)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor → file name, from an index. Nothing in it may lead out of its directory."""
    found = _json_object(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(part, str) for part in found.values()):
        raise FormatError(f"{index}: no index of a model (it has no weight_map)")
    parts = set(found.values())
    for part in parts:
        is_too_long = len(part.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES
        if part in ("", ".", "..") or is_too_long or re.search("[/\\\\:\0\ud800-\udfff]", part):
            raise FormatError(f"{index}: {shown(part)} is not the name of a file beside it", hint=DOWNLOAD_AGAIN)
    if len(parts) > _MAX_PARTS:
        raise FormatError(f"{index}: it lists {len(parts)} files")
    for part in sorted(parts):
        if not (index.parent / part).is_file():
            raise ModelNotFoundError(f"{index.parent / part}: a part of the model is missing", hint=DOWNLOAD_AGAIN)
        if kind_of(index.parent / part) not in ("safetensors", "pth", "pth-legacy"):
            raise FormatError(f"{index.parent / part}: not a part of a model")
    return found


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return _json_object(file) if file.is_file() else {}


def _json_object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise FormatError(f"{path}: too large")
        found = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: no such file", hint="Check the path.") from error
    except OSError as error:
        raise RwkvError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, RwkvError):
            raise
        raise FormatError(f"{path}: damaged: no valid JSON", hint=DOWNLOAD_AGAIN) from error
    if not isinstance(found, dict):
        raise FormatError(f"{path}: no JSON object")
    return found


def _beside(file: Path) -> bool:
    """Whether it belongs to the model, besides the weights."""
    settings = ("config.json", "tokenizer.json", _TEMPLATE, _TOKENIZER_CONFIG)
    return file.name in settings or file.suffix == ".model" or _may_be_world(file)


def _may_be_world(file: Path) -> bool:
    return file.suffix == ".txt" and "vocab" in file.name


def _tokenizer_in(folder: Path) -> tuple[str, bytes] | None:
    """By content: repositories of World models hold vocabularies of two kinds under similar names."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    for file in files:
        if _may_be_world(file):
            data = _small(file)
            if _WORLD_LINE.match(data):
                return "world", data
    for file in files:
        if file.suffix == ".model":
            data = _small(file)
            if data.startswith(b"\n"):  # field 1 of sentencepiece's protobuf message
                return "sentencepiece", data
    file = folder / "tokenizer.json"
    if file.is_file():
        data = _small(file)
        if data.lstrip()[:1] == b"{":
            return "huggingface", data
    return None


def _template_in(folder: Path) -> bytes | None:
    """The Jinja text of chat_template.jinja, or of tokenizer_config.json (one, or several by name)."""
    if (folder / _TEMPLATE).is_file():
        text: object = _small(folder / _TEMPLATE).decode("utf-8", "replace")
    elif (folder / _TOKENIZER_CONFIG).is_file():
        text = _json_object(folder / _TOKENIZER_CONFIG).get("chat_template")
    else:
        return None
    if isinstance(text, list):
        named = {entry.get("name"): entry.get("template") for entry in text if isinstance(entry, dict)}
        text = named.get("default")
    return template_from_jinja(text) if isinstance(text, str) and text.strip() else None


def _small(file: Path) -> bytes:
    try:
        return file.read_bytes() if file.stat().st_size <= _MAX_TOKENIZER_BYTES else b""
    except OSError as error:
        raise RwkvError(f"{file}: cannot be read: {error.strerror}") from error
