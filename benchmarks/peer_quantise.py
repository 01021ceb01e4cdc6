# SPDX-License-Identifier: Apache-2.0
"""Quantise a GGUF file with llama.cpp's own code: peer_quantise.py IN OUT TYPE.

Runs in the peer's environment. Needed for the K-quants, which the gguf package cannot write: every matrix in the same
type. Q4_0 is as its users have it: the head in Q6_K.
"""

from __future__ import annotations

import ctypes
import os
import sys

import llama_cpp

TYPES = {
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S,
    "q5_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_S,
    "q6_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
}


def main() -> int:
    source, target, kind = sys.argv[1:]
    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    options = llama_cpp.llama_model_quantize_default_params()
    options.nthread = os.cpu_count() or 1
    options.ftype, options.pure = TYPES[kind], kind != "q4_0"
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options)))


if __name__ == "__main__":
    raise SystemExit(main())
