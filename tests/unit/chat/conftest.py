# SPDX-License-Identifier: Apache-2.0
"""A model made of a few rules, whose state is simply the list of ids it read: so a test sees what a state holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from rwkv_cpu.errors import Cancelled
from rwkv_cpu.generation.speculative import Workshop

N_VOCAB = 300
BLANK_LINE, USER = 256, 257  # ids of "\n\n" and "User", like the multi-character tokens of real vocabularies


class FakeTokenizer:
    """Bytes, and two longer tokens; greedy."""

    kind = "fake"
    n_vocab = N_VOCAB
    end_ids = frozenset({0})
    _long = ((b"\n\n", BLANK_LINE), (b"User", USER))

    def encode(self, text):
        data = text.encode() if isinstance(text, str) else text
        ids, i = [], 0
        while i < len(data):
            for piece, token in self._long:
                if data.startswith(piece, i):
                    ids.append(token)
                    i += len(piece)
                    break
            else:
                ids.append(data[i])
                i += 1
        return ids

    def decode_bytes(self, ids):
        names = {token: piece for piece, token in self._long}
        return b"".join(names.get(i, bytes([i]) if 0 < i < 256 else b"") for i in ids)

    def decode(self, ids):
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream(self, *, continuing=False):
        return FakeStream(self)

    def to_bytes(self):
        return b"fake vocabulary"


class FakeStream:
    def __init__(self, tokenizer):
        import codecs

        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, token):
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def flush(self):
        return self._decoder.decode(b"", final=True)


@dataclass
class FakeState:
    ids: list = field(default_factory=list)

    @property
    def n_tokens(self):
        return len(self.ids)

    def copy(self):
        return FakeState(list(self.ids))

    def to_bytes(self):
        return " ".join(map(str, self.ids)).encode()


class FakeModel:
    """Answers by *script*: what stands after the last "Assistant:" is continued towards script[last message]."""

    def __init__(self, script=None, template=None):
        self.script = dict(script or {})
        self.tokenizer = FakeTokenizer()
        self.chat_template = template
        self.n_vocab = N_VOCAB
        self.state_bytes = 1000
        self.weight_bytes = 1000
        self.path = Path("fake.rwkv")
        self.computed = 0  # tokens read in all

    prefix_cache = None

    @property
    def workshop(self):
        return Workshop(self)

    def new_state(self):
        return FakeState()

    def load_state(self, path):
        return FakeState([int(i) for i in path.read_text().split()])

    def advance(self, tokens, state, *, logits="last", cancel=None, progress=None):
        for n, token in enumerate(tokens):
            if cancel is not None and cancel.cancelled:
                raise Cancelled(n_done=n)
            state.ids.append(int(token))
            self.computed += 1
            if progress is not None:
                progress(n + 1, len(tokens))
        if logits == "none":
            return None
        out = np.full(N_VOCAB, -30.0, np.float32)
        out[self._next(state)] = 30.0
        return out

    def _next(self, state):
        data = self.tokenizer.decode_bytes(state.ids)
        head, _, said = data.rpartition(b"Assistant:")
        message = head.rpartition(b"User: ")[2].strip().decode()
        whole = self.tokenizer.encode(self.script.get(message, f" You said {message}.\n\nUser: more"))
        done = self.tokenizer.encode(said)
        return whole[len(done)] if len(done) < len(whole) else 0


@pytest.fixture
def fake_model(monkeypatch):
    # It cannot look ahead: no room for drafts.
    monkeypatch.setattr("rwkv_cpu.generation.speculative._MAX_STATE_BYTES", 0)
    return FakeModel
