# SPDX-License-Identifier: Apache-2.0
"""What must hold for any text and any bytes, however they are divided."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cpu import tokenizer
from rwkv_cpu.errors import FormatError, TokenError
from rwkv_cpu.generation import StopMatcher
from rwkv_cpu.tokenizer import DecodeStream
from rwkv_cpu.tokenizer.world import WorldTokenizer

WORLD = WorldTokenizer()
PIECES = [WORLD.decode_bytes([i]) for i in range(WORLD.n_vocab)]
KNOWN = {piece: i for i, piece in enumerate(PIECES) if piece}
LONGEST = max(map(len, PIECES))
BPE = tokenizer.from_bytes("sentencepiece", (Path(__file__).parent.parent / "data" / "tiny-bpe.model").read_bytes())

texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(["User:", "\n\n", " the", "12", "é", "中", "😀", "\t", "  "]), max_size=30).map("".join),
)
byte_strings = st.one_of(
    st.binary(max_size=60),
    texts.map(str.encode),
    st.lists(st.one_of(st.binary(max_size=3), texts.map(str.encode)), max_size=6).map(b"".join),
)
ids = st.lists(st.integers(0, WORLD.n_vocab - 1), max_size=40)


def longest_match(data: bytes) -> list[int]:
    """The World tokenizer's definition, slowly."""
    result, at = [], 0
    while at < len(data):
        length = next(n for n in range(min(LONGEST, len(data) - at), 0, -1) if data[at : at + n] in KNOWN)
        result.append(KNOWN[data[at : at + length]])
        at += length
    return result


@given(byte_strings)
def test_world_ids_are_the_longest_matches_and_give_the_bytes_back(data):
    encoded = WORLD.encode(data)
    assert encoded == longest_match(data)
    assert WORLD.decode_bytes(encoded) == data


@given(texts)
def test_world_text_comes_back(text):
    assert WORLD.decode(WORLD.encode(text)) == text


@given(st.text(st.characters(), max_size=30))
def test_any_str_can_be_encoded_surrogates_too(text):
    WORLD.encode(text)
    BPE.encode(text)


@given(byte_strings)
def test_sentencepiece_keeps_bytes_that_are_no_text(data):
    # U+2581 stands for a space inside the model.
    expected = data.replace("\u2581".encode(), b" ")
    decoded = BPE.decode_bytes(BPE.encode(data))
    assert decoded in (expected, b" " + expected)


@given(ids)
def test_streamed_text_is_the_text_of_all_ids(tokens):
    stream = WORLD.stream()
    steps = [stream.step(token) for token in tokens]
    assert "".join(steps) + stream.flush() == WORLD.decode_bytes(tokens).decode("utf-8", "replace")


@given(st.lists(st.integers(0, BPE.n_vocab - 1), max_size=40))
def test_streamed_text_is_the_text_of_all_pieces(tokens):
    stream = BPE.stream()
    assert "".join(map(stream.step, tokens)) + stream.flush() == BPE.decode(tokens)


@given(byte_strings, st.data())
def test_stream_shows_what_is_certain_and_nothing_else(data, draw):
    stream = DecodeStream(lambda token: bytes([token]))
    cut = draw.draw(st.integers(0, len(data)))
    shown = "".join(stream.step(b) for b in data[:cut])
    # Whatever comes next, this is how the text begins; and all whole characters are there.
    for rest in (data[cut:], b"", b"a", b"\x80\x80\x80", b"\xff"):
        assert (data[:cut] + rest).decode("utf-8", "replace").startswith(shown)
    assert len(data[:cut].decode("utf-8", "replace")) - len(shown) <= 1


def reference_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The stop that is complete first; of those the longest."""
    for end in range(len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            stop = max(matches, key=len)
            return text[: end - len(stop)], stop
    return text, None


few_letters = st.text("ab\n", max_size=12)


@settings(max_examples=400)
@given(few_letters, st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_is_the_same_however_the_text_is_divided(text, stops, draw):
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    matcher = StopMatcher(stops)
    out = ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        out += matcher.feed(text[start:end])
        # Nothing shown may belong to a stop that the rest completes.
        assert reference_stop(text, stops)[0].startswith(out)
    out += matcher.flush()
    assert (out, matcher.matched) == reference_stop(text, stops)


lines = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.tuples(st.integers(-1, 2**33), st.binary(max_size=12), st.integers(-1, 300)).map(
            lambda t: b"%d %s %d" % (t[0], repr(t[1]).encode(), t[2])
        ),
        st.tuples(st.integers(1, 600), st.binary(min_size=1, max_size=8)).map(
            lambda t: b"%d %s %d" % (t[0], repr(t[1]).encode(), len(t[1]))
        ),
        st.tuples(st.integers(1, 600), st.text(min_size=1, max_size=8)).map(
            lambda t: f"{t[0]} {t[1]!r} {len(t[1].encode('utf-8', 'replace'))}".encode("utf-8", "replace")
        ),
    ),
    max_size=12,
)


@settings(max_examples=400)
@given(lines, st.sampled_from([b"\n", b"\r\n"]), st.binary(max_size=20))
def test_any_vocabulary_is_read_or_refused(vocabulary, newline, text):
    try:
        tok = WorldTokenizer(newline.join(vocabulary))
    except FormatError:
        return
    # A byte that no token covers is the one reason not to encode.
    with contextlib.suppress(TokenError):
        assert tok.decode_bytes(tok.encode(text)) == text
