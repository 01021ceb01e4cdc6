# SPDX-License-Identifier: Apache-2.0
"""What is known about a model file, or about this machine, without reading a weight. Plain values, ready for JSON."""

from __future__ import annotations

import os
import platform
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_cpu import engine, memory
from rwkv_cpu._version import __version__
from rwkv_cpu.checkpoint import kind_of, open_checkpoint
from rwkv_cpu.checkpoint.base import files_of
from rwkv_cpu.checkpoint.recognise import KINDS
from rwkv_cpu.errors import RwkvError
from rwkv_cpu.modelfile import ModelFile, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from rwkv_cpu.checkpoint import Checkpoint, TensorMeta
    from rwkv_cpu.config import ModelConfig

__all__ = ["describe_file", "describe_machine", "verify_file"]

_TOKENIZER = "tokenizer."


def describe_machine() -> dict[str, Any]:
    """Version, processor, instruction sets (the chosen one and why), threads, memory, where things are kept."""
    from rwkv_cpu.places import bundled_model, cache_directory, models_directory

    forced = os.environ.get("RWKV_CPU_ISA", "")
    try:
        chosen, reason = engine.default_isa(), "RWKV_CPU_ISA" if forced else "the best that this CPU can run"
    except RwkvError as error:
        chosen, reason = "", str(error)
    return {
        "version": __version__,
        "engine_version": engine.version(),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "cpu": _cpu_name(),
        "cpu_features": _cpu_features(),
        "isa": chosen,
        "isa_reason": reason,
        "isas": [{"name": isa.name, "usable": isa.usable, "needs": isa.needs} for isa in engine.isas()],
        "threads": engine.default_threads(),
        "logical_cpus": os.cpu_count() or 1,
        "memory_available_bytes": memory.available_bytes(),
        "bundled_model": str(bundled_model()),
        "cache_directory": str(cache_directory()),
        "models_directory": str(models_directory()),
    }


def describe_file(path: str | Path, *, tensors: bool = False) -> dict[str, Any]:
    """Architecture, sizes, formats and origin of a .rwkv file or a checkpoint; reads no weights.

    Args:
        path: the file, or a checkpoint's directory.
        tensors: list every tensor too; a checkpoint's by the names that the engine knows them by.

    Raises: ModelNotFoundError, FormatError, UnsupportedModelError, ShapeError.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "rwkv":
        return _describe_rwkv(path, tensors)
    return _describe_checkpoint(path, KINDS[kind][0], tensors)


def verify_file(path: str | Path, on_progress: Callable[[int, int], None] | None = None) -> int:
    """Read a whole .rwkv file and compare all checksums. Returns the number of tensors.

    Raises: ChecksumError naming the first tensor that differs; FormatError; as describe_file().
    """
    with ModelFile(path) as file:
        model = engine.OpenModel(file.buffer, str(path))
        try:
            infos = model.tensors()
            verify(file, infos, on_progress)
            return len(infos)
        finally:
            model.close()


def _describe_rwkv(path: Path, tensors: bool) -> dict[str, Any]:
    with ModelFile(path) as file:
        model = engine.OpenModel(file.buffer, str(path))
        try:
            infos = model.tensors()
            token_bytes, state_bytes = model.token_bytes, model.state_floats * 4
            config = model.config.public()
        finally:
            model.close()
        weights = [info for info in infos if info.kind != engine.KIND_BYTES]
        parameters = sum(info.rows * info.cols for info in weights)
        found: dict[str, Any] = {
            "path": str(path),
            "kind": "rwkv",
            "size_bytes": file.info.size_bytes,
            **_describe_config(config),
            "parameters": parameters,
            "format": file.metadata.get("rwkv_cpu.format", ""),
            "formats": dict(Counter(engine.format_name(info.format) for info in weights)),
            "bits_per_weight": engine.bits_per_weight(weights),
            "weight_bytes_per_token": token_bytes,
            "state_bytes": state_bytes,
            "tokenizer": next((i.name[len(_TOKENIZER) :] for i in infos if i.name.startswith(_TOKENIZER)), "none"),
            "metadata": dict(file.metadata),
        }
    if tensors:
        found["tensors"] = [
            {
                "name": info.name,
                "format": engine.format_name(info.format),
                "rows": info.rows,
                "cols": info.cols,
                "offset": info.offset,
                "size_bytes": info.size_bytes,
                "crc32": f"{info.crc32:08x}",
            }
            for info in infos
        ]
    return found


def _describe_checkpoint(path: Path, what: str, tensors: bool) -> dict[str, Any]:
    from rwkv_cpu.quantize.plan import recognise

    with open_checkpoint(path) as checkpoint:
        config = recognise(checkpoint)
        parameters = sum(info.rows * info.cols for info in engine.plan(config))
        metas = list(checkpoint.tensors.values())
        files = files_of(checkpoint)
        tokenizer = _tokenizer_of(checkpoint)
    found: dict[str, Any] = {
        "path": str(path),
        "kind": "checkpoint",
        "container": what,
        "files": len(files),
        "size_bytes": sum(file.stat().st_size for file in files),
        **_describe_config(config.public()),
        "parameters": parameters,
        "formats": dict(Counter(_stored_as(meta) for meta in metas)),
        "tokenizer": tokenizer,
    }
    if tensors:
        found["tensors"] = [
            {
                "name": meta.name,
                "format": _stored_as(meta),
                "shape": list(meta.shape),
                "size_bytes": None if meta.stored else meta.size_bytes,
            }
            for meta in metas
        ]
    return found


def _stored_as(meta: TensorMeta) -> str:
    """The type in the file, which for blocks and float8 is not the one that the reader gives."""
    return (meta.stored or meta.dtype).lower()


def _tokenizer_of(checkpoint: Checkpoint) -> str:
    """The kind of tokenizer that the checkpoint brings: "none", or why it cannot be used."""
    try:
        found = checkpoint.tokenizer
    except RwkvError as error:
        return f"not usable: {str(error).removeprefix(f'{checkpoint.path}: ')}"
    return "none" if found is None else found[0]


def _describe_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "architecture": config.name,
        "n_layer": config.n_layer,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "head_size": config.head_size,
        "n_ffn": config.n_ffn,
        "n_vocab": config.n_vocab,
        "ranks": dict(config.ranks),
    }


def _cpu_line(*keys: str) -> str:
    """A value of /proc/cpuinfo, "" where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def _cpu_name() -> str:
    return _cpu_line("model name", "Hardware", "Model") or platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    """Those that matter for this engine, in the system's spelling."""
    interesting = (
        "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "amx_int8",
        "asimddp", "i8mm",
    )  # fmt: skip
    present = set(_cpu_line("flags", "Features").split())
    return [feature for feature in interesting if feature in present]
