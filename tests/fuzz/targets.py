# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: for each kind of file its seeds, the informed damage that suits it, and everything that reads it."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rwkv_cpu import Model, tokenizer
from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.checkpoint import open_checkpoint
from rwkv_cpu.checkpoint.adapters import AdaptedCheckpoint
from rwkv_cpu.describe import describe_file, verify_file
from rwkv_cpu.errors import RwkvError, TokenError
from rwkv_cpu.quantize import quantize
from tests.fuzz import mutate, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TEXT = "Hello ab é 中\n\n 123 <|endoftext|>"


@dataclass(frozen=True)
class Target:
    """*run* gets a file (or, for "directory", a zip of one) and may raise nothing but RwkvError."""

    seeds: Callable[[], list[bytes]]
    informed: Sequence[mutate.Mutator]
    run: Callable[[Path], None]
    seeds_are_read: bool = True


def _attempt(*steps: Callable[[], object]) -> None:
    """Run all steps, whatever the others meet; raise the first typed error at the end."""
    first: RwkvError | None = None
    for step in steps:
        try:
            step()
        except RwkvError as error:  # noqa: PERF203
            first = first or error
    if first is not None:
        raise first


def _read_all(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        steps: list[Callable[[], object]] = [
            lambda name=name: np.ascontiguousarray(checkpoint.read(name)).tobytes() for name in checkpoint.tensors
        ]
        found = checkpoint.tokenizer
        if found is not None:
            steps.append(lambda: tokenizer.from_bytes(*found).encode(TEXT))
        template = checkpoint.chat_template
        if template is not None:
            steps.append(lambda: ChatTemplate.from_bytes(template))
        _attempt(*steps)


def checkpoint_file(path: Path) -> None:
    """Names, tensors, tokenizer, template; what `info` says; a conversion and a token."""
    target = path.with_name("out.rwkv")

    def convert() -> None:
        quantize(path, target, tokenizer="optional", threads=1, force=True)
        _run_model(target)

    _attempt(lambda: _read_all(path), lambda: describe_file(path, tensors=True), convert)


def _run_model(path: Path) -> None:
    with Model(path, threads=1) as model:
        steps: list[Callable[[], object]] = [lambda: model.chat_template]
        if model.has_tokenizer:
            steps.append(lambda: model.tokenizer.decode(model.tokenizer.encode(TEXT)))
        if model.state_bytes < 1 << 22 and model.n_vocab < 1 << 20:
            steps.append(lambda: model.forward([0, model.n_vocab - 1]))
        _attempt(*steps)


def directory_file(path: Path) -> None:
    """The members of a zip file, unpacked beside it, as a directory."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        try:
            with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
                for name in archive.namelist():
                    if Path(name).name == name and "\0" not in name:
                        (folder / name).write_bytes(archive.read(name))
        except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, OSError, zlib.error):
            return  # damage to the wrapping; the package never sees it
        checkpoint_file(folder)


def rwkv_file(path: Path) -> None:
    """Header, table, tensors, tokenizer; a token."""
    _attempt(lambda: describe_file(path, tensors=True), lambda: verify_file(path), lambda: _run_model(path))


@lru_cache(maxsize=1)
def _model() -> Model:
    path = Path(tempfile.mkdtemp()) / "model.rwkv"
    path.write_bytes(seeds.rwkv()[0])
    return Model(path, threads=1)


@lru_cache(maxsize=1)
def _tiny_pth() -> Path:
    path = Path(tempfile.mkdtemp()) / "model.pth"
    path.write_bytes(seeds.pth()[0])
    return path


def state_file(path: Path) -> None:
    """A state file, and what a model makes of it."""
    state = _model().load_state(path)
    _model().forward([1], state)


def adapter_file(path: Path) -> None:
    """A file of a LoRA or a tuned state, as everything that may be given one."""

    def merge() -> None:
        with AdaptedCheckpoint(open_checkpoint(_tiny_pth()), path, alpha=8.0) as merged:
            for name in merged.tensors:
                merged.read(name)

    _attempt(lambda: _read_all(path), lambda: _model().load_state(path), merge)


def tokenizer_file(kind: str) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        with contextlib.suppress(RwkvError):
            tokenizer.kind_of_bytes(path.read_bytes())
        tok = tokenizer.from_bytes(kind, path.read_bytes())
        ids = tok.encode(TEXT)
        tok.encode(b"\xff a \xc3")
        tok.decode(ids)
        stream = tok.stream()
        for token in (0, 1, tok.n_vocab - 1, tok.n_vocab, 2**32):
            with contextlib.suppress(TokenError):
                stream.step(token)
        stream.flush()

    return run


_INSIDE_PICKLE = mutate.one_of(mutate.pickle_opcodes, mutate.set_number, mutate.flip, mutate.duplicate, mutate.delete)
_INSIDE_DIRECTORY = mutate.one_of(mutate.json_text, mutate.json_header, mutate.json_header, mutate.flip)
_PTH = (mutate.zip_member(_INSIDE_PICKLE), mutate.zip_member(mutate.set_number), mutate.pickle_opcodes)

TARGETS: dict[str, Target] = {
    "pth": Target(seeds.pth, _PTH, checkpoint_file),
    "safetensors": Target(seeds.safetensors, (mutate.json_header,), checkpoint_file),
    "directory": Target(seeds.directory, (mutate.zip_member(_INSIDE_DIRECTORY),), directory_file),
    "gguf": Target(seeds.gguf, (mutate.set_length, mutate.set_number), checkpoint_file),
    "ggmf": Target(seeds.ggmf, (mutate.set_length, mutate.set_number), checkpoint_file),
    "rwkv": Target(seeds.rwkv, (mutate.json_header, mutate.set_number), rwkv_file),
    "state": Target(seeds.state, (mutate.json_header, mutate.state_body), state_file),
    "adapter": Target(seeds.adapters, (*_PTH, mutate.json_header), adapter_file, seeds_are_read=False),
    "world": Target(seeds.world, (mutate.text_lines,), tokenizer_file("world")),
    "sentencepiece": Target(seeds.sentencepiece, (), tokenizer_file("sentencepiece")),
    "huggingface": Target(seeds.huggingface, (mutate.json_text,), tokenizer_file("huggingface")),
}
