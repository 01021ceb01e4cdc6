# SPDX-License-Identifier: Apache-2.0
"""The C library's own small parts beside well-known implementations."""

from __future__ import annotations

import codecs
import hashlib
import struct
import zlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cpu import Model, engine
from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.reader import Reader
from rwkv_cpu.state import prefix_digests


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20), st.binary(min_size=16, max_size=16))
def test_a_texts_digest_is_a_chain_of_blake2b(tokens, start):
    expected, digest = [], start
    for token in tokens:
        digest = hashlib.blake2b(digest + struct.pack("<I", token), digest_size=16).digest()
        expected.append(digest)
    assert list(prefix_digests(np.array(tokens, np.uint32), start)) == expected


@given(st.integers(0, 2**32 - 1), st.binary(max_size=700), st.integers(0, 63))
def test_crc32_is_zlibs_of_any_length_and_alignment(before, data, skip):
    for whole in (data, data * 40):
        assert engine.crc32(memoryview(whole)[skip:], before) == zlib.crc32(memoryview(whole)[skip:], before)


def test_the_fingerprint_is_sha256_of_the_files_table(demo_path):
    raw = demo_path.read_bytes()
    (header,) = struct.unpack("<Q", raw[:8])
    (n_tensors,) = struct.unpack("<I", raw[8 + header + 20 : 8 + header + 24])
    table = raw[8 + header : 8 + header + -(-(128 + 96 * n_tensors) // 64) * 64]
    with Model.load(demo_path) as model:
        assert model.new_state().layout.fingerprint == hashlib.sha256(table).hexdigest()[:32]


@given(st.lists(st.one_of(st.binary(max_size=6), st.text(max_size=4).map(str.encode)), max_size=8))
def test_characters_are_decoded_as_python_does(pieces):
    reader, python = Reader(decode=True), codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        assert reader.feed(piece)[1].decode() == python.decode(piece)
    assert reader.finish()[1].decode() == python.decode(b"", final=True)


@given(st.text())
def test_a_turn_is_cleaned_as_python_strips(text):
    import re

    expected = re.sub(r"\n{2,}", "\n", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    world = ChatTemplate.named("world")
    assert world.clean(text) == expected
    stripped = text.strip()
    assert world.answer_part(text) == (f" {stripped}" if stripped else "") + "\n\n"


def test_a_template_without_fields_is_worlds():
    assert ChatTemplate() == ChatTemplate.from_bytes(b"world") == ChatTemplate.from_bytes(b"{}")
