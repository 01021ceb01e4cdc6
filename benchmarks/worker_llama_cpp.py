# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's half of compare.py, through llama-cpp-python's low-level calls; runs in the peer's environment.

Speaks as worker_ours.py does. The batch is as large as the prompt, logits are wanted for the last token only.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time

import llama_cpp


def main() -> None:
    path, threads, longest = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot open {path}")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = longest
    options.n_batch = options.n_ubatch = 512
    options.n_threads = options.n_threads_batch = threads
    options.no_perf = True
    context = llama_cpp.llama_init_from_model(model, options)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def decode(tokens: list[int]) -> None:
        for first in range(0, len(tokens), 512):
            part = tokens[first : first + 512]
            array = (llama_cpp.llama_token * len(part))(*part)  # the batch points into it, so it must stay
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(part))):
                raise SystemExit("llama_decode failed")
        llama_cpp.llama_get_logits(context)

    name = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
    print(json.dumps({"name": name, "isa": "", "n_vocab": n_vocab}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        start = time.perf_counter()
        decode(task["prompt"])
        middle = time.perf_counter()
        for token in task["decode"]:
            decode([token])
        end = time.perf_counter()
        print(json.dumps({"prefill_seconds": middle - start, "decode_seconds": end - middle}), flush=True)


if __name__ == "__main__":
    main()
