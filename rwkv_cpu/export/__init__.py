# SPDX-License-Identifier: Apache-2.0
"""Out again: any model as safetensors with the original names, or as GGUF for llama.cpp; nobody is locked in."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_cpu.errors import ArgumentError, Cancelled
from rwkv_cpu.export.tensors import open_tensors
from rwkv_cpu.modelfile import ModelWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.export.layout import Layout

__all__ = ["DTYPES", "Report", "export"]

DTYPES = ("f32", "f16", "bf16")
_SUFFIXES = {".safetensors": "safetensors", ".gguf": "gguf"}


@dataclass(frozen=True)
class Report:
    """What export() has done. dtypes: how many tensors are stored how. exact: no value was rounded."""

    source: Path
    target: Path
    kind: str
    architecture: str
    tokenizer: str
    dtypes: dict[str, int]
    exact: bool
    source_bytes: int
    target_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "source": str(self.source), "target": str(self.target)}


def export(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str | None = None,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> Report:
    """Write the model *source* in an open format, one tensor at a time.

    Args:
        source: a .rwkv file or a checkpoint of any kind.
        target: FILE.safetensors (BlinkDL's names and shapes) or FILE.gguf (RWKV-6 and 7, for llama.cpp). Appears
            complete or not at all.
        dtype: "f32", "f16" or "bf16", rounding where needed; in GGUF vectors stay f32. Default: exact. What is stored
            as floats stays as it is; matrices of q8 and of GGML's blocks become Q8_0, Q5_0 or Q4_0 blocks in GGUF,
            other quantised ones f32; in safetensors all become f32.
        force: replace an existing target.
        on_progress: called with (bytes written, bytes in all).
        cancel: a CancelToken; another thread may set it.

    Raises:
        ModelNotFoundError, FormatError, UnsupportedModelError, ShapeError: the source cannot be used, or is a version
            that llama.cpp does not run.
        NonFiniteError: a value that *dtype* cannot hold.
        ArgumentError: unknown suffix or dtype; the target is the source.
        Cancelled; RwkvError: the target exists, the disk is full.
    """
    began = time.perf_counter()
    source, target = Path(source), Path(target)
    kind = _SUFFIXES.get(target.suffix.lower())
    if kind is None:
        raise ArgumentError(
            f"{target}: unknown kind of file", hint="Its name must end in .safetensors or .gguf: that decides."
        )
    if dtype is not None and dtype not in DTYPES:
        raise ArgumentError(f"unknown dtype {dtype!r}", hint=f"Known are {', '.join(DTYPES)}.")
    with open_tensors(source) as model:
        ModelWriter.check_target(target, force=force)
        if target.exists() and target.samefile(source):
            raise ArgumentError(f"{target}: this is the model itself", hint="Name another file.")
        if kind == "gguf":
            from rwkv_cpu.export.gguf_file import GgufLayout

            layout: Layout = GgufLayout(model, dtype)
        else:
            from rwkv_cpu.export.safetensors_file import SafetensorsLayout

            layout = SafetensorsLayout(model, dtype)
        with ModelWriter(target, layout.size_bytes, force=force) as writer:
            done = 0
            for offset, data in layout.parts():
                if cancel is not None and cancel.cancelled:
                    raise Cancelled("the conversion was cancelled")
                writer.write(offset, data)
                done += memoryview(data).nbytes
                if on_progress is not None:
                    on_progress(min(done, layout.size_bytes), layout.size_bytes)
            writer.commit()
        return Report(
            source=source,
            target=target,
            kind=kind,
            architecture=model.config.name,
            tokenizer=layout.tokenizer,
            dtypes=dict(Counter(layout.dtypes)),
            exact=layout.exact,
            source_bytes=_size_of(source),
            target_bytes=layout.size_bytes,
            seconds=time.perf_counter() - began,
        )


def _size_of(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return path.stat().st_size
