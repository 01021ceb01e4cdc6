# SPDX-License-Identifier: Apache-2.0
"""Quantise a GGUF file as llama-quantize does: worker_llama_quantize.py IN OUT TYPE [IMPORTANCE.npz].

TYPE is a preset ("Q4_K_M"): llama.cpp chooses the types of single tensors. IMPORTANCE holds, by the tensor's GGUF name,
the mean square of each input: llama.cpp's importance matrix. Runs in the peer's environment.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time
from typing import Any

import gguf
import llama_cpp
import numpy as np

MATRIX = re.compile(
    r"^(token_embd|output|.*\.(time_mix_(receptance|key|value|output)|channel_mix_(key|value)))\.weight$",
)


def importance(path: str) -> tuple[Any, list[Any]]:
    """The array that llama_model_quantize wants, ended by an entry without a name, and what must stay alive."""
    kept: list[Any] = []
    found = np.load(path)
    entries = (llama_cpp.llama_cpp.llama_model_imatrix_data * (len(found.files) + 1))()
    for entry, name in zip(entries, found.files, strict=False):
        values = np.ascontiguousarray(found[name], np.float32)
        kept.append(values)
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries, kept


def main() -> int:
    source, target, kind, *rest = sys.argv[1:]
    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    options = llama_cpp.llama_model_quantize_default_params()
    options.nthread = os.cpu_count() or 1
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if rest:
        entries, kept = importance(rest[0])
        options.imatrix = ctypes.cast(entries, type(options.imatrix))
        del kept[len(entries) :]
    began = time.perf_counter()
    status = int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options)))
    seconds = time.perf_counter() - began
    if status == 0:
        print(f"seconds: {seconds:.3f}")
        print(f"bits per weight: {bits_per_weight(target)}")
    return status


def bits_per_weight(path: str) -> float:
    """Of embedding, head and matrices; low-rank pairs and vectors stay apart, as in ours."""
    own = [t for t in gguf.GGUFReader(path).tensors if MATRIX.search(t.name)]
    return float(8 * sum(t.n_bytes for t in own) / sum(t.n_elements for t in own))


if __name__ == "__main__":
    raise SystemExit(main())
