# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's logits of a stream of tokens: worker_llama_logits.py MODEL.gguf TOKENS.npy LOGITS.npy.

Runs in the peer's environment.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp
import numpy as np


def main() -> int:
    model, tokens, target = sys.argv[1:]
    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    ids = np.load(tokens).tolist()
    llama = llama_cpp.Llama(model, n_ctx=len(ids) + 64, n_batch=512, logits_all=True, verbose=False)
    llama.eval(ids)
    np.save(target, np.asarray(llama.scores[: len(ids)], np.float32))
    llama.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
