# SPDX-License-Identifier: Apache-2.0
"""The rwkv package on torch's CPU kernels under test: worker_rwkv.py CHECKPOINT THREADS LONGEST [--dtype bf16]
[--first-token]. Speaks protocol.py and runs in the peer's environment.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

os.environ["RWKV_V7_ON"] = "1"
if "--no-jit" in sys.argv:
    os.environ["PYTORCH_JIT"] = os.environ["RWKV_JIT_ON"] = "0"
os.environ["RWKV_CUDA_ON"] = "0"

import torch

from benchmarks.protocol import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2])
    dtype = sys.argv[sys.argv.index("--dtype") + 1] if "--dtype" in sys.argv else "fp32"
    torch.set_num_threads(threads)
    with contextlib.redirect_stdout(sys.stderr), torch.no_grad():  # it prints while it loads
        from rwkv.model import RWKV

        model: Any = RWKV(model=path.removesuffix(".pth"), strategy=f"cpu {dtype}")
    n_vocab = int(model.args.vocab_size)

    def advance(tokens: list[int], state: Any) -> Any:
        with torch.no_grad():
            return model.forward(tokens, state)

    if "--first-token" in sys.argv:
        logits, _ = advance([token % n_vocab for token in (33155, 45, 40213, 34)], None)
        serve({"token": int(logits.argmax())}, {})
        return

    def prefill(tokens: list[int]) -> dict[str, float]:
        start = time.perf_counter()
        advance(tokens, None)
        return {"seconds": time.perf_counter() - start}

    def decode(prompt: list[int], tokens: list[int]) -> dict[str, float]:
        state = advance(prompt, None)[1] if prompt else None
        start = time.perf_counter()
        for token in tokens:
            _, state = advance([token], state)
        return {"seconds": time.perf_counter() - start}

    def zeros(tokens: list[int]) -> dict[str, float]:
        """Share of relu(k) that is zero over these tokens; needs --no-jit, which lets relu be watched."""
        counts, plain = [0, 0], torch.relu

        def watched(x: Any) -> Any:
            counts[0] += int((x <= 0).sum())
            counts[1] += x.numel()
            return plain(x)

        torch.relu = watched
        try:
            advance(tokens, None)
        finally:
            torch.relu = plain
        if not counts[1]:
            raise SystemExit("relu was not seen: start this worker with --no-jit")
        return {"zeros": counts[0] / counts[1]}

    name = f"rwkv {dtype} (torch {torch.__version__.partition('+')[0]})"
    tasks: dict[str, Callable[..., Mapping[str, float]]] = {"prefill": prefill, "decode": decode, "zeros": zeros}
    serve({"name": name, "isa": "", "n_vocab": n_vocab}, tasks)


if __name__ == "__main__":
    main()
