# SPDX-License-Identifier: Apache-2.0
"""Damaged .rwkv files: a typed error from the header's reader or the engine's table, never a crash.

Damage to the table is tried twice: as it is (the checksum must catch it) and with the checksum made right again, so
that the checks behind it are tried too.
"""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_cpu import Model, engine
from rwkv_cpu.describe import describe_file, verify_file
from rwkv_cpu.errors import ChecksumError, FormatError, NonFiniteError, RwkvError, UnsupportedModelError
from rwkv_cpu.modelfile import ModelFile, read_header
from rwkv_cpu.quantize import quantize
from tests.pth_writer import rwkv7_tensors, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEAD_BYTES, ENTRY_BYTES = 128, 96
FIRST, SECOND, LAST = 0, 1, -2  # the last is the chat template, whose kind is bytes already


class Good:
    """A valid file in pieces: JSON header, and the data section that begins with the table."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        (length,) = struct.unpack("<Q", raw[:8])
        self.header: dict[str, Any] = json.loads(raw[8 : 8 + length])
        self.data = raw[8 + length :]
        self.n_tensors = struct.unpack_from("<I", self.data, 20)[0]

    def with_header(self, header: Any) -> bytes:
        """Another JSON header (or raw bytes for one), padded as it should be."""
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        raw += b" " * (-(8 + len(raw)) % 64)
        return struct.pack("<Q", len(raw)) + raw + self.data

    def with_table(self, at: int, form: str, *values: Any, checksum: bool) -> bytes:
        """A field of the table changed, with or without a new checksum."""
        data = bytearray(self.data)
        struct.pack_into("<" + form, data, at, *values)
        if checksum:
            size = HEAD_BYTES + ENTRY_BYTES * self.n_tensors
            data[16:20] = bytes(4)
            struct.pack_into("<I", data, 16, zlib.crc32(data[:size]))
        return self.raw[: len(self.raw) - len(data)] + bytes(data)

    def entry(self, i: int) -> int:
        return HEAD_BYTES + ENTRY_BYTES * (i % self.n_tensors)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    folder = tmp_path_factory.mktemp("good")
    source = write_checkpoint(folder / "tiny.pth", rwkv7_tensors())
    quantize(source, folder / "tiny.rwkv", tokenizer="none")
    return Good((folder / "tiny.rwkv").read_bytes())


def open_all(path: Path) -> None:
    """Everything that opening, describing and running a file looks at."""
    with ModelFile(path) as file:
        model = engine.OpenModel(file.buffer, str(path))
        try:
            model.tensors()
            model.bytes_of("chat_template")
        finally:
            model.close()


def refuse(tmp_path: Path, raw: bytes) -> RwkvError:
    path = tmp_path / "damaged.rwkv"
    path.write_bytes(raw)
    with pytest.raises(RwkvError) as caught:
        open_all(path)
    assert str(caught.value)
    with pytest.raises(RwkvError):
        describe_file(path)
    return caught.value


def test_the_undamaged_one_opens(tmp_path: Path, good: Good) -> None:
    path = tmp_path / "good.rwkv"
    for raw in (good.raw, good.with_header(good.header), good.with_table(8, "I", 1, checksum=True)):
        path.write_bytes(raw)
        open_all(path)
        verify_file(path)


# ------------------------------------------------------------------------------------------ length


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_files_cut_anywhere(tmp_path: Path, good: Good, share: float) -> None:
    refuse(tmp_path, good.raw[: int(len(good.raw) * share)])


@pytest.mark.parametrize("missing", [1, 63, 64, 65, 4096])
def test_files_that_lack_their_end(tmp_path: Path, good: Good, missing: int) -> None:
    assert "download" in refuse(tmp_path, good.raw[:-missing]).hint.lower()


@pytest.mark.parametrize("extra", [1, 64, 5000])
def test_bytes_behind_the_end(tmp_path: Path, good: Good, extra: int) -> None:
    assert isinstance(refuse(tmp_path, good.raw + bytes(extra)), FormatError)


# ------------------------------------------------------------------------------------------ header


@pytest.mark.parametrize("length", [0, 1, 63, 2**31, 2**60, 2**63, 2**64 - 1])
def test_wrong_header_lengths(tmp_path: Path, good: Good, length: int) -> None:
    refuse(tmp_path, struct.pack("<Q", length) + good.raw[8:])


def without(header: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in header.items() if k != name}


def moved(header: dict[str, Any], name: str, begin: Any, end: Any, **more: Any) -> dict[str, Any]:
    return header | {name: header[name] | {"data_offsets": [begin, end]} | more}


TABLE, EMB = "rwkv_cpu.table", "emb.weight"
HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "not JSON": lambda _: b'{"rwkv_cpu.table": nonsense',
    "cut JSON": lambda h: json.dumps(h).encode()[:-100],
    "not UTF-8": lambda _: b'{"rwkv_cpu.table":"\xff\xfe"}',
    "a list": lambda _: b'{"rwkv_cpu.table":1}'.replace(b"{", b"[").replace(b":1}", b"]"),
    "nested a million deep": lambda _: b'{"rwkv_cpu.table":' + b"[" * 1_000_000,
    "a number of a million digits": lambda _: b'{"rwkv_cpu.table":' + b"9" * 1_000_000 + b"}",
    "one name twice": lambda h: json.dumps(h).encode()[:-1] + b', "emb.weight": ' + json.dumps(h[EMB]).encode() + b"}",
    "metadata is a list": lambda h: h | {"__metadata__": []},
    "metadata is not text": lambda h: h | {"__metadata__": {"a": 1}},
    "no table": lambda h: {"x": '"rwkv_cpu.table"'} | without(h, TABLE),
    "table not at offset 0": lambda h: moved(h, TABLE, 64, 64 + h[TABLE]["shape"][0]),
    "table behind another": lambda h: moved(h, EMB, 0, h[EMB]["shape"][0]),
    "table of no bytes": lambda h: moved(h, TABLE, 0, 0, shape=[0]),
    "a gap": lambda h: moved(h, EMB, h[EMB]["data_offsets"][0] + 64, h[EMB]["data_offsets"][1] + 64),
    "an overlap": lambda h: moved(h, EMB, h[EMB]["data_offsets"][0] - 64, h[EMB]["data_offsets"][1] - 64),
    "end before begin": lambda h: moved(h, EMB, *reversed(h[EMB]["data_offsets"])),
    "negative": lambda h: moved(h, EMB, -64, h[EMB]["data_offsets"][1]),
    "huge": lambda h: moved(h, EMB, h[EMB]["data_offsets"][0], 2**63),
    "beyond 64 bits": lambda h: moved(h, EMB, h[EMB]["data_offsets"][0], 2**70, shape=[2**70]),
    "fractions": lambda h: moved(h, EMB, 0.5, 1.5),
    "text for numbers": lambda h: moved(h, EMB, "0", "64"),
    "three offsets": lambda h: h | {EMB: h[EMB] | {"data_offsets": [0, 1, 2]}},
    "no offsets": lambda h: h | {EMB: without(h[EMB], "data_offsets")},
    "unknown dtype": lambda h: h | {EMB: h[EMB] | {"dtype": "F99"}},
    "another shape": lambda h: h | {EMB: h[EMB] | {"shape": [1]}},
    "an entry is a number": lambda h: h | {EMB: 5},
    "an entry is missing": lambda h: without(h, EMB),
    "no entry but the table": lambda h: {TABLE: h[TABLE]},
}


@pytest.mark.parametrize("what", HEADERS)
def test_damaged_headers(tmp_path: Path, good: Good, what: str) -> None:
    refuse(tmp_path, good.with_header(HEADERS[what](good.header)))


def test_a_header_that_does_not_align_the_data(tmp_path: Path, good: Good) -> None:
    raw = json.dumps(good.header).encode()
    raw += b" " * (-(8 + len(raw)) % 64 + 8)
    refuse(tmp_path, struct.pack("<Q", len(raw)) + raw + good.data)


def test_control_characters_of_a_header_do_not_reach_the_terminal(tmp_path: Path, good: Good) -> None:
    found = refuse(tmp_path, good.with_header(good.header | {"\x1b]0;evil\x07": 5}))
    assert "\x1b" not in str(found)


# ------------------------------------------------------------------------------------------- table

# Offsets as src/model.c has them.
FIELDS: dict[str, tuple[int, str, list[int | float]]] = {
    "magic": (0, "Q", [0]),
    "file version 0": (8, "I", [0]),
    "table size": (12, "I", [0, 127, 2**32 - 1]),
    "number of tensors": (20, "I", [0, 1, 3, 2**20 + 1, 2**31, 2**32 - 1]),
    "data bytes": (24, "Q", [0, 64, 2**63, 2**64 - 1]),
    "architecture": (32, "I", [0, 0x600, 0x7FFFFFFF]),
    "layers": (36, "I", [0, 1, 3, 1025, 2**32 - 1]),
    "n_vocab": (40 + 4, "I", [0, 319, 2**24 + 1, 2**32 - 1]),
    "n_embd": (40 + 8, "I", [0, 63, 128, 2**32 - 1]),
    "attention width": (40 + 12, "I", [0, 32, 2**32 - 1]),
    "n_ffn": (40 + 16, "I", [0, 97, 2**32 - 1]),
    "heads": (40 + 20, "I", [0, 5, 2**32 - 1]),
    "head size": (40 + 24, "I", [0, 17, 2**32 - 1]),
    "rank": (40 + 28, "I", [0, 15, 2**32 - 1]),
    "layer norm's epsilon": (104, "f", [0.0, -1.0, float("nan"), float("inf"), 2.0]),
    "group norm's epsilon": (108, "f", [0.0, -1.0, float("nan"), float("inf"), 2.0]),
}
ENTRY_FIELDS: dict[str, tuple[int, str, list[int]]] = {
    "kind": (0, "I", [6, 7, 2**32 - 1]),
    "format": (4, "I", [3, 15, 2**32 - 1]),
    "rows": (8, "Q", [0, 2, 2**32, 2**63]),
    "cols": (16, "Q", [0, 65, 2**32, 2**63]),
    "offset": (24, "Q", [0, 1, 64, 2**40, 2**63, 2**64 - 64]),
    "size": (32, "Q", [0, 63, 2**40, 2**64 - 1]),
    "name": (48, "48s", []),
}
TABLE_CASES = [(f"{what} {value}", at, form, value) for what, (at, form, values) in FIELDS.items() for value in values]
ENTRY_CASES = [
    (f"{what} {value} of {which}", which, at, form, value)
    for what, (at, form, values) in ENTRY_FIELDS.items()
    for value in values
    for which in (FIRST, SECOND, LAST)
]


@pytest.mark.parametrize("checksum", [False, True], ids=["as it is", "checksum made right"])
@pytest.mark.parametrize(("what", "at", "form", "value"), TABLE_CASES, ids=[case[0] for case in TABLE_CASES])
def test_damaged_tables(tmp_path: Path, good: Good, what: str, at: int, form: str, value: Any, checksum: bool) -> None:
    refuse(tmp_path, good.with_table(at, form, value, checksum=checksum))


@pytest.mark.parametrize("checksum", [False, True], ids=["as it is", "checksum made right"])
@pytest.mark.parametrize(
    ("what", "which", "at", "form", "value"), ENTRY_CASES, ids=[case[0].replace("/", " ") for case in ENTRY_CASES]
)
def test_damaged_entries(
    tmp_path: Path, good: Good, what: str, which: int, at: int, form: str, value: int, checksum: bool
) -> None:
    refuse(tmp_path, good.with_table(good.entry(which) + at, form, value, checksum=checksum))


@pytest.mark.parametrize("name", [b"", b"another name", b"x" * 48, b"ln_out.weight"])
@pytest.mark.parametrize("which", [FIRST, SECOND])
def test_wrong_names_in_the_table(tmp_path: Path, good: Good, name: bytes, which: int) -> None:
    refuse(tmp_path, good.with_table(good.entry(which) + 48, "48s", name, checksum=True))


def test_a_newer_file_is_refused_by_its_version(tmp_path: Path, good: Good) -> None:
    found = refuse(tmp_path, good.with_table(8, "I", 3, checksum=True))
    assert isinstance(found, UnsupportedModelError)
    assert "version 3" in str(found)
    assert "newer" in str(found)


def test_messages_name_the_file(tmp_path: Path, good: Good) -> None:
    assert "damaged.rwkv" in str(refuse(tmp_path, good.with_table(8, "I", 3, checksum=True)))
    assert "damaged.rwkv" in str(refuse(tmp_path, good.raw[:1000]))


# ----------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("name", ["emb.weight", "blocks.1.att.w2", "ln_out.bias", "chat_template"])
def test_a_flipped_bit_in_any_tensor_is_found_by_verify(tmp_path: Path, good: Good, name: str) -> None:
    raw = bytearray(good.raw)
    begin, end = good.header[name]["data_offsets"]
    raw[len(raw) - len(good.data) + (begin + end) // 2] ^= 0x10
    path = tmp_path / "flipped.rwkv"
    path.write_bytes(bytes(raw))
    open_all(path)  # opening reads no weights
    with pytest.raises(ChecksumError, match=name):
        verify_file(path)


def test_a_wrong_checksum_in_the_table_is_found_by_verify(tmp_path: Path, good: Good) -> None:
    path = tmp_path / "crc.rwkv"
    path.write_bytes(good.with_table(good.entry(2) + 40, "I", 12345, checksum=True))
    with pytest.raises(ChecksumError):
        verify_file(path)


def test_header_and_table_that_disagree_are_found_by_verify(tmp_path: Path, good: Good) -> None:
    names = list(good.header)
    header = good.header | {names[1]: good.header[names[1]]}
    renamed = {("something.else" if name == EMB else name): entry for name, entry in header.items()}
    path = tmp_path / "renamed.rwkv"
    path.write_bytes(good.with_header(renamed))
    with pytest.raises(FormatError, match=r"emb\.weight"):
        verify_file(path)


@pytest.mark.parametrize("fmt", ["q4", "q5", "q6", "q8"])
def test_any_integers_and_any_book_give_the_same_logits_everywhere(tmp_path: Path, fmt: str) -> None:
    """Every byte of a weight is valid, of a scale too but for NaN and Inf: nothing to overflow or to read past."""
    source = write_checkpoint(tmp_path / "tiny.pth", rwkv7_tensors())
    quantize(source, tmp_path / "tiny.rwkv", format=fmt, tokenizer="none")
    raw = bytearray((tmp_path / "tiny.rwkv").read_bytes())
    rng = np.random.default_rng(3)
    header = Good(bytes(raw)).header
    start = len(raw) - len(Good(bytes(raw)).data)
    for name in ("emb.weight", "blocks.0.att.key.weight", "blocks.1.ffn.value.weight", "head.weight"):
        begin, end = (start + at for at in header[name]["data_offsets"])
        raw[begin:end] = (rng.integers(0, 256, end - begin) & 0xBB).astype(np.uint8).tobytes()  # no scale is infinite
    (tmp_path / "damaged.rwkv").write_bytes(bytes(raw))
    found = set()
    for isa in engine.isas():
        if isa.usable:
            with Model(tmp_path / "damaged.rwkv", isa=isa.name) as model:
                try:
                    found.add(model.forward(range(9), logits="all")[0].tobytes())
                except NonFiniteError as error:
                    found.add(str(error).encode())
    assert len(found) == 1


def test_the_file_version_is_as_old_as_the_formats_allow(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "tiny.pth", rwkv7_tensors())
    for fmt, version in {"q8": 1, "f16": 1, "q6": 2, "q5": 2, "q4": 2}.items():
        quantize(source, tmp_path / "tiny.rwkv", format=fmt, tokenizer="none", force=True)
        assert struct.unpack_from("<I", Good((tmp_path / "tiny.rwkv").read_bytes()).data, 8) == (version,)


# -------------------------------------------------------------------------------------------- fuzz


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), checksum=st.booleans())
def test_mutated_headers_and_tables_open_or_give_a_typed_error(
    tmp_path: Path, good: Good, data: st.DataObject, checksum: bool
) -> None:
    start = len(good.raw) - len(good.data)
    size = HEAD_BYTES + ENTRY_BYTES * good.n_tensors
    raw = bytearray(good.raw)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, start + size - 1))] = data.draw(st.integers(0, 255))
    if checksum:
        raw[start + 16 : start + 20] = bytes(4)
        struct.pack_into("<I", raw, start + 16, zlib.crc32(raw[start : start + size]))
    path = tmp_path / "mutated.rwkv"
    path.write_bytes(bytes(raw))
    with contextlib.suppress(RwkvError):
        open_all(path)


def test_bad_json_of_another_safetensors_file_is_no_rwkv_file(shared: Path) -> None:
    for file in ("bad-json.st", "header-2e60.st", "control-good.st"):
        with pytest.raises(RwkvError):
            read_header(shared / "goldens" / "bad" / file)
