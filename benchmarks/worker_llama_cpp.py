# SPDX-License-Identifier: Apache-2.0
"""llama.cpp under test, through llama-cpp-python's low-level calls: worker_llama_cpp.py GGUF THREADS LONGEST
[--first-token]. Speaks protocol.py and runs in the peer's environment.

The batch is as large as the prompt, logits are wanted for the last token only.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

import llama_cpp

from benchmarks.protocol import serve

SEQUENCES = 8
CHUNK = 512


class Peer:
    """A model and a context of llama.cpp."""

    def __init__(self, path: str, threads: int, longest: int) -> None:
        self.quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot open {path}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = longest
        options.n_batch = options.n_ubatch = CHUNK
        options.n_threads = options.n_threads_batch = threads
        options.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        options.n_seq_max = SEQUENCES
        self.many = None
        self.many_options = options
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def advance(self, tokens: list[int]) -> None:
        for first in range(0, len(tokens), CHUNK):
            part = tokens[first : first + CHUNK]
            array = (llama_cpp.llama_token * len(part))(*part)  # the batch points into it, so it must stay
            if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(part))):
                raise SystemExit("llama_decode failed")
        llama_cpp.llama_get_logits(self.context)

    def prefill(self, tokens: list[int]) -> dict[str, float]:
        self.clear()
        start = time.perf_counter()
        self.advance(tokens)
        return {"seconds": time.perf_counter() - start}

    def decode(self, prompt: list[int], tokens: list[int]) -> dict[str, float]:
        self.clear()
        if prompt:
            self.advance(prompt)
        start = time.perf_counter()
        for token in tokens:
            self.advance([token])
        return {"seconds": time.perf_counter() - start}

    def batch(self, prompt: list[int], sequences: int, steps: int) -> dict[str, float]:
        """One token of each sequence at a time, in a context with room for so many."""
        if sequences > SEQUENCES:
            raise SystemExit(f"{sequences} sequences: at most {SEQUENCES}")
        if self.many is None:
            self.many = llama_cpp.llama_init_from_model(self.model, self.many_options)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.many), True)
        room = llama_cpp.llama_batch_init(max(len(prompt), sequences), 0, 1)

        def run(rows: list[tuple[int, int, int, bool]]) -> None:  # token, position, sequence, logits wanted
            room.n_tokens = len(rows)
            for i, (token, position, sequence, wanted) in enumerate(rows):
                room.token[i], room.pos[i], room.logits[i] = token, position, wanted
                room.n_seq_id[i], room.seq_id[i][0] = 1, sequence
            if llama_cpp.llama_decode(self.many, room):
                raise SystemExit("llama_decode failed")
            llama_cpp.llama_get_logits(self.many)

        for sequence in range(sequences):
            run([(token, at, sequence, at == len(prompt) - 1) for at, token in enumerate(prompt)])
        start = time.perf_counter()
        for step in range(steps):
            tokens = [(31 * (step * sequences + i) + 7) % self.n_vocab for i in range(sequences)]
            run([(token, len(prompt) + step, i, True) for i, token in enumerate(tokens)])
        seconds = time.perf_counter() - start
        llama_cpp.llama_batch_free(room)
        return {"seconds": seconds}


def main() -> None:
    path, threads, longest = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    peer = Peer(path, threads, longest)
    if "--first-token" in sys.argv:
        peer.advance([token % peer.n_vocab for token in (33155, 45, 40213, 34)])
        logits = llama_cpp.llama_get_logits(peer.context)
        serve({"token": max(range(peer.n_vocab), key=logits.__getitem__)}, {})
        return
    about: dict[str, Any] = {
        "name": f"llama.cpp (llama-cpp-python {llama_cpp.__version__})",
        "isa": "",
        "n_vocab": peer.n_vocab,
    }
    serve(about, {"prefill": peer.prefill, "decode": peer.decode, "batch": peer.batch})


if __name__ == "__main__":
    main()
