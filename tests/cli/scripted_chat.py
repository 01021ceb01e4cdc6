# SPDX-License-Identifier: Apache-2.0
"""The command line with a model that writes what the file $ANSWER says, a token every $SECONDS_PER_TOKEN.
With $HOLD_AT set it waits after so many tokens until the file $HOLD_AT_GO exists: so a test needs no clock.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from rwkv_cpu.cli import main
from rwkv_cpu.generation import speculative
from rwkv_cpu.model import Model

speculative._MAX_STATE_BYTES = 0  # no room for drafts: those do not come through advance()

_advance = Model.advance
_written = 0


def _hold(cancel):
    go = Path(os.environ.get("HOLD_AT_GO", "/nonexistent"))
    while not go.exists() and not cancel.cancelled:
        time.sleep(0.005)


def advance(self, tokens, state, *, logits="last", cancel=None, progress=None):
    global _written  # noqa: PLW0603 (a script of one call chain)
    found = _advance(self, tokens, state, logits=logits, cancel=cancel, progress=progress)
    if logits != "last":
        return found
    if self.tokenizer.decode(list(tokens)).endswith(("Assistant:", "<think", "</think>")):
        _written = 0
    answer = self.tokenizer.encode(Path(os.environ["ANSWER"]).read_text(encoding="utf-8"))
    time.sleep(float(os.environ.get("SECONDS_PER_TOKEN", "0")))
    if str(_written) == os.environ.get("HOLD_AT"):
        _hold(cancel)
    scripted = np.full_like(found, -30.0)
    scripted[answer[_written] if _written < len(answer) else min(self.tokenizer.end_ids)] = 30.0
    _written += 1
    return scripted


Model.advance = advance  # type: ignore[method-assign, assignment]

if __name__ == "__main__":
    main(prog_name="rwkv-cpu")
