# SPDX-License-Identifier: Apache-2.0
"""rwkv_cpu's half of compare.py: obeys one JSON line at a time, answers with one.

{"prompt": [ids], "decode": [ids]} -> {"prefill_seconds", "decode_seconds", "read_gbs", "int8_tops"}
"""

from __future__ import annotations

import json
import sys
import time

from rwkv_cpu import Model, engine


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2])
    model = Model.load(path, threads=threads)
    limits = engine.Context(threads=threads)
    print(json.dumps({"name": f"rwkv_cpu {engine.version()}", "isa": model.isa, "n_vocab": model.n_vocab}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        state = model.new_state()
        start = time.perf_counter()
        model.advance(task["prompt"], state)
        middle = time.perf_counter()
        for token in task["decode"]:
            model.advance([token], state)
        end = time.perf_counter()
        answer = {"prefill_seconds": middle - start, "decode_seconds": end - middle}
        if task.get("limits"):
            answer["read_gbs"] = limits.measure_read(512 << 20) / 1e9
            answer["int8_tops"] = limits.measure_int8() / 1e12
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
