# SPDX-License-Identifier: Apache-2.0
"""The World tokenizer: golden cases, and vocabularies that are not what they should be."""

from __future__ import annotations

import base64
import json
import threading
from typing import TYPE_CHECKING

import pytest

from rwkv_cpu import tokenizer
from rwkv_cpu.errors import FormatError, TokenError, UnsupportedModelError
from rwkv_cpu.tokenizer.world import WorldTokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def world() -> WorldTokenizer:
    return WorldTokenizer()


def assert_golden(world: WorldTokenizer, cases: Path) -> None:
    lines = cases.read_text("utf-8").splitlines()
    assert lines
    for line in lines:
        case = json.loads(line)
        data = case["text"] if "text" in case else base64.b64decode(case["bytes_b64"])
        raw = data.encode() if isinstance(data, str) else data
        assert world.encode(data) == case["ids"], line
        assert world.encode(raw) == case["ids"], line
        assert world.decode_bytes(case["ids"]) == raw, line
        assert world.decode(case["ids"]) == raw.decode("utf-8", "replace"), line
        stream = world.stream()
        assert "".join(map(stream.step, case["ids"])) + stream.flush() == world.decode(case["ids"]), line


def test_encoding_and_decoding_equal_golden_cases(world, checkout):
    assert_golden(world, checkout / "tests" / "data" / "world_cases.jsonl")


def test_encoding_and_decoding_equal_all_golden_cases(world, shared):
    assert_golden(world, shared / "goldens" / "tokenizer" / "world_cases.jsonl")


def test_line_ends_make_no_difference(world, shared):
    text = (shared / "goldens" / "tokenizer" / "rwkv_vocab_v20230424.txt").read_bytes()
    assert text == tokenizer.world_vocabulary().replace(b"\r\n", b"\n")
    lf = WorldTokenizer(text)
    sample = "User: Ünïcode, 日本語, 😀\n\nAssistant: \x00\x7f 12.5%"
    assert lf.encode(sample) == world.encode(sample)
    assert lf.n_vocab == world.n_vocab == 65530


def test_every_token_is_its_own_bytes(world):
    for i in range(1, world.n_vocab):
        assert world.encode(world.decode_bytes([i])) == [i]
    assert [world.decode_bytes([i + 1]) for i in range(256)] == [bytes([i]) for i in range(256)]


def test_prompt_that_ends_inside_a_word_is_encoded_as_a_whole(world):
    whole = world.encode("User: x\n\nAssistant: <think")
    assert world.decode(whole) == "User: x\n\nAssistant: <think"
    assert world.encode("\n\n") == [261]
    assert world.encode("") == []


def test_end_of_text_decodes_to_nothing(world):
    assert world.end_ids == {0}
    assert world.decode([98, 0, 99]) == "ab"


@pytest.mark.parametrize("bad", [65530, 65535, 2**32, -1])
def test_id_outside_the_vocabulary_is_named_with_its_position(world, bad):
    with pytest.raises(TokenError, match=rf"position 2: token {bad}"):
        world.decode([98, 99, bad])
    with pytest.raises(TokenError, match=str(bad)):
        world.stream().step(bad)


def test_surrogates_become_what_they_stand_for(world):
    assert world.encode("\udcff") == world.encode(b"\xff")
    assert world.encode("\ud83d\ude00") == world.encode("😀")
    assert world.encode("a\ud83d") == world.encode("a\ufffd")


def test_eight_threads_share_one_tokenizer(world):
    text = "The quick brown fox: наука, 科学, 😀\n\n" * 200
    expected, results = world.encode(text), [None] * 8

    def work(i: int) -> None:
        ids = world.encode(text)
        results[i] = ids if world.decode(ids) == text else None

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def test_model_file_bytes_give_the_same_tokenizer(world):
    again = tokenizer.from_bytes("world", world.to_bytes())
    assert again.kind == world.kind == "world"
    assert again.encode("Hello, 世界") == world.encode("Hello, 世界")


def test_unknown_kind_is_refused():
    with pytest.raises(UnsupportedModelError, match="'bert'"):
        tokenizer.from_bytes("bert", b"")


BYTES = b"".join(b"%d b'\\x%02x' 1\n" % (i + 1, i) for i in range(256))


def test_literals_are_read_as_python_reads_them():
    tokens = {
        b"300 'a b' 3": b"a b",
        b"302 '\\'\\\\' 2": b"'\\",
        b'303 "it\'s" 4': b"it's",
        b"304 '\\n\\t\\r\\\"' 4": b'\n\t\r"',
        b"305 '\\xe9\\u00e9' 4": "éé".encode(),
        b"306 '\\U0001F600' 4": "😀".encode(),
        b"307 b'\\xe9\\xfF' 2": b"\xe9\xff",
        "308 '日本' 6".encode(): "日本".encode(),
        b"309 b'\"x' 2": b'"x',
    }
    tok = WorldTokenizer(BYTES + b"\n".join(tokens))
    for line, expected in tokens.items():
        assert tok.decode_bytes([int(line[:3])]) == expected, line


def test_two_tokens_of_the_same_bytes_are_refused():
    with pytest.raises(FormatError, match="line 257: the same bytes as id 33"):
        WorldTokenizer(BYTES + b"301 ' ' 1")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"300",
        b"300 ",
        b"300 'xy'",
        b"300 'xy' ",
        b"300 'xy' two",
        b"300 'xy' 3",
        b"300 'xy' 2 ",
        b"300 'xy' 0",
        b"300 '' 0",
        b"300 'xy' -2",
        b"300 'xy' 99999999999999999999",
        b"-1 'xy' 2",
        b"x 'xy' 2",
        b"300'xy' 2",
        b"0 'xy' 2",
        b"1048576 'xy' 2",
        b"99999999999999999999999 'xy' 2",
        b"256 'xy' 2",
        b"300 xy 2",
        b"300 'xy 2",
        b"300 xy' 2",
        b"300 'xy\" 2",
        b"300 ' 1",
        b"300 b 1",
        b"300 'x'y' 3",
        b"300 'x\\' 2",
        b"300 'x\\q' 2",
        b"300 '\\x1' 1",
        b"300 '\\u12' 1",
        b"300 '\\U0011ffff' 4",
        b"300 '\\ud800' 3",
        b"300 b'\\u0041' 1",
        b"300 b'\xc3\xa9' 2",
        b"300 __import__('os') 2",
        b"300 'a' 1",
        b"300 '" + b"x" * 256 + b"' 256",
        b"300 \x00 1",
    ],
)
def test_malformed_line_is_refused_and_named(line):
    with pytest.raises(FormatError, match="line 257: "):
        WorldTokenizer(BYTES + line + b"\n400 'fine' 4\n")


def test_empty_vocabulary_is_refused():
    with pytest.raises(FormatError, match="empty"):
        WorldTokenizer(b"")


def test_byte_that_no_token_covers_is_an_error_with_its_place():
    tok = WorldTokenizer(b"1 'a' 1\r\n2 'abc' 3\r\n")
    assert tok.encode("aabca") == [1, 2, 1]
    with pytest.raises(TokenError, match="0x62 at offset 1"):
        tok.encode("ab")
    with pytest.raises(TokenError, match="0xc3 at offset 2"):
        tok.encode("aaé")


def test_nodes_with_any_number_of_children_find_them_all():
    lines = [f"{i + 1} b'\\x{i:02x}' 1" for i in range(256)]
    n = 300
    for width in (1, 2, 4, 5, 64, 65, 128, 255, 256):
        for k in range(width):
            lines.append(f"{n} b'\\x{width % 256:02x}\\xfe\\x{255 - k:02x}' 3")
            n += 1
    tok = WorldTokenizer("\n".join(lines).encode())
    for i in range(300, n):
        piece = tok.decode_bytes([i])
        assert tok.encode(piece + b"\x00" + piece[:2]) == [i, 1, piece[0] + 1, piece[1] + 1]


def test_long_chains_and_repetition_end_in_time():
    deep = "".join(f"{300 + n} '{'a' * n}' {n}\n" for n in range(2, 256))
    tok = WorldTokenizer(BYTES + deep.encode())
    assert tok.encode("a" * 100_000) == [300 + 255] * 392 + [300 + 40]
