# SPDX-License-Identifier: Apache-2.0
"""Run by test_llama_cpp.py in an interpreter that has llama-cpp-python: FILE.gguf IDS TEXT COUNT.

Prints JSON: logits after the prompt's ids, COUNT greedy ids and their text, the ids of TEXT in the file's own
tokenizer (which is left alone if TEXT is empty: there may be none).
"""

from __future__ import annotations

import ctypes
import json
import sys

import llama_cpp
import numpy as np


def main() -> None:
    path, prompt, text, count = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3].encode(), int(sys.argv[4])
    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot open {path}")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = 1024
    options.n_threads = options.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(model, options)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    n_vocab = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def decode(tokens: list[int]) -> np.ndarray:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama_decode failed")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (n_vocab,)).copy()

    logits = decode(prompt)
    first, ids = logits.tolist(), []
    for _ in range(count):
        ids.append(int(logits.argmax()))
        logits = decode(ids[-1:])
    found: list[int] = []
    if text:
        room = (llama_cpp.llama_token * 256)()
        n = llama_cpp.llama_tokenize(vocabulary, text, len(text), room, len(room), False, False)
        found = list(room[:n])
    answer = ""
    if text:
        raw = ctypes.create_string_buffer(4096)
        array = (llama_cpp.llama_token * len(ids))(*ids)
        n = llama_cpp.llama_detokenize(vocabulary, array, len(ids), raw, len(raw), False, False)
        answer = raw.raw[:n].decode("utf-8", "replace")
    print(json.dumps({"n_vocab": n_vocab, "logits": first, "ids": ids, "text_ids": found, "text": answer}))


if __name__ == "__main__":
    main()
