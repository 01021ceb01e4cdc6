# SPDX-License-Identifier: Apache-2.0
"""The command line with an engine that gets stuck until it is cancelled: in the middle of every message that says
"stuck", or after ten words of its answer. So a test of Ctrl-C needs no clock.
With SAY_STUCK set it says on stderr that it is.
"""

from __future__ import annotations

import os
import sys
import time

from rwkv_cpu.cli import main
from rwkv_cpu.model import Model

_advance = Model.advance
_steps = 0


def _stuck(cancel):
    if os.environ.get("SAY_STUCK"):
        print("stuck", file=sys.stderr, flush=True)
    while not cancel.cancelled:
        time.sleep(0.005)


def advance(self, tokens, state, *, logits="last", cancel=None, progress=None):
    global _steps  # noqa: PLW0603 (a script of one call chain)
    _steps = _steps + 1 if len(tokens) == 1 else 0
    if _steps > 10 or "stuck" in self.tokenizer.decode(list(tokens)):
        _stuck(cancel)
    return _advance(self, tokens, state, logits=logits, cancel=cancel, progress=progress)


Model.advance = advance  # type: ignore[method-assign, assignment]

if __name__ == "__main__":
    main(prog_name="rwkv-cpu")
