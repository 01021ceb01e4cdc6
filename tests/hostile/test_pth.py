# SPDX-License-Identifier: Apache-2.0
"""Damaged and malicious .pth files: one typed error, quickly, little memory, nothing executed."""

from __future__ import annotations

import contextlib
import pickle
import struct
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_cpu.checkpoint import open_container, pickle_reader
from rwkv_cpu.errors import FormatError, RwkvError
from tests.pth_writer import Archive, Stored, emit, name

if TYPE_CHECKING:
    from pathlib import Path

GOOD = Archive()
GOOD.add("emb.weight", np.arange(32, dtype=np.float32).reshape(4, 8))
GOOD.add("head.weight", np.arange(16, dtype=np.float16).reshape(2, 8))
GOOD_ZIP = GOOD.zip_bytes()
GOOD_LEGACY = GOOD.legacy_bytes()


def read_everything(path: Path) -> None:
    with open_container(path) as checkpoint:
        for key in checkpoint.tensors:
            checkpoint.read(key).tobytes()


def refuse(tmp_path: Path, raw: bytes) -> RwkvError:
    """The error that reading *raw* gives, which must come without taking much memory."""
    path = tmp_path / "model.pth"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(RwkvError) as caught:
            read_everything(path)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    return caught.value


def pickled(opcodes: bytes) -> bytes:
    archive = Archive(storages={"0": bytes(64)}, found=opcodes)
    return archive.zip_bytes()


def tensor(**changes: object) -> bytes:
    """A checkpoint with one tensor of 4 x 4 f32 over 16 elements, changed."""
    fields = {"key": "0", "dtype": "f32", "numel": 16, "shape": (4, 4), "stride": (4, 1), "offset": 0} | changes
    return pickled(emit({"w": Stored(**fields)}))  # type: ignore[arg-type]


def test_the_undamaged_ones_read(tmp_path: Path) -> None:
    for i, raw in enumerate([GOOD_ZIP, GOOD_LEGACY, tensor()]):
        path = tmp_path / f"{i}.pth"
        path.write_bytes(raw)
        read_everything(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": 1},
        {"stride": (5, 1)},
        {"shape": (5, 4)},
        {"shape": (4, 4, 4), "stride": (4, 1)},
        {"shape": (-4, 4)},
        {"stride": (-4, 1)},
        {"offset": -1},
        {"offset": 1 << 70},
        {"shape": (1 << 62, 1 << 62)},
        {"shape": (1 << 40, 4), "stride": (0, 1)},
        {"numel": 17},
        {"numel": 1 << 45},
        {"numel": -1},
        {"key": "1"},
        {"key": "../0"},
        {"shape": (1,) * 9, "stride": (1,) * 9},
    ],
    ids=str,
)
def test_tensors_outside_their_storage_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    refuse(tmp_path, tensor(**changes))


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> object:
        import os

        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_with_os_system_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "RWKV_PICKLE_WAS_EXECUTED"
    raw = pickle.dumps({"w": Evil(marker)}, protocol)
    found = refuse(tmp_path, pickled(raw[2:-1]))
    assert "system" in str(found)
    assert "Nothing in the file was run" in found.hint
    assert not marker.exists()


@pytest.mark.parametrize(
    "module_and_name",
    [
        "torch load",
        "torch.storage _load_from_bytes",
        "torch FooStorage",
        "builtins eval",
        "numpy load",
        "collections deque",
    ],
)
def test_every_global_outside_the_list_is_refused_by_name(tmp_path: Path, module_and_name: str) -> None:
    module, attribute = module_and_name.split()
    found = refuse(tmp_path, pickled(name(module, attribute) + emit(("x",)) + b"R"))
    assert f"{module}.{attribute}" in str(found)


def test_names_cannot_smuggle_control_characters_into_messages(tmp_path: Path) -> None:
    found = refuse(tmp_path, pickled(name("evil\x1b]0;title\x07", "x" * 200)))
    assert "\x1b" not in str(found)
    assert "\x07" not in str(found)


BOMBS = {
    "LONG4 of 2 GB": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "LONG4 of a negative size": b"\x8b" + struct.pack("<i", -5),
    "BINUNICODE of 4 GB": b"X" + struct.pack("<I", 2**32 - 1),
    "BINUNICODE8 of 2^63": b"\x8d" + struct.pack("<Q", 2**63),
    "BINBYTES8 of 2^63": b"\x8e" + struct.pack("<Q", 2**63),
    "BINSTRING of a negative size": b"T" + struct.pack("<i", -1) + b"R",
    "FRAME of 2^63": b"\x95" + struct.pack("<Q", 2**63),
    "memo index 2^32": b"Nr" + struct.pack("<I", 2**32 - 1) + b"j" + struct.pack("<I", 3),
    "100,000 marks": b"(" * 100_000,
    "nested 50,000 deep": b"N" + b"\x85" * 50_000,
    "dict nested as key": b"}N" + b"\x85" * 50_000 + b"Ns",
    "unhashable key": b"}]Ns",
    "a doubling tuple": b"N" + b"2\x86" * 50_000,
    "300,000 values on the stack": b"N" * 300_000,
    "OrderedDict of a long list, again and again": b"]("
    + b"NN\x86" * 1000
    + b"eq\x00"
    + (name("collections", "OrderedDict") + b"h\x00\x85R0") * 5000,
    "nothing on the stack": b"0",
    "no mark": b"N" + b"t",
    "STOP on a mark": b"(",
    "append to a tuple": b")Na",
    "odd number of items": b"}(Nu",
    "unset memo": b"h\x07",
    "call of a tuple": b"))R",
    "INST": b"ios\nsystem\n",
    "OBJ": b"(cos\nsystem\no",
    "NEWOBJ": name("collections", "OrderedDict") + b")\x81",
    "EXT1": b"\x82\x01",
    "text that is not UTF-8": b"X\x02\0\0\0\xff\xfe",
    "protocol 9": b"\x80\x09N",
    "no newline after a global": b"c" + b"a" * 5000,
    "another persistent id": emit(("module", "x")) + b"Q",
    "storage of an unknown type": emit(("storage", "FloatStorage", "0", "cpu", 4)) + b"Q",
    "a number": emit(5),
    "a dict without tensors": emit({"a": 1}),
}


@pytest.mark.parametrize("what", BOMBS)
def test_pickle_bombs_are_refused(tmp_path: Path, what: str) -> None:
    assert isinstance(refuse(tmp_path, pickled(BOMBS[what])), FormatError)


def test_endless_pickles_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_reader, "_MAX_OPCODES", 1000)
    assert "steps" in str(refuse(tmp_path, pickled(b"N0" * 600)))
    monkeypatch.setattr(pickle_reader, "_MAX_MEMO", 100)
    remembered = b"".join(b"Nr" + struct.pack("<I", i) for i in range(200))
    assert "remembers" in str(refuse(tmp_path, pickled(remembered)))


def change(raw: bytes, at: int, form: str, value: int) -> bytes:
    out = bytearray(raw)
    struct.pack_into(form, out, at, value)
    return bytes(out)


END = GOOD_ZIP.rindex(b"PK\x05\x06")
START = struct.unpack_from("<L", GOOD_ZIP, END + 16)[0]
STORAGE = GOOD_ZIP.index(b"PK\x01\x02", START + 4)  # directory entry of storage 0
ZIPS = {
    "no directory": GOOD_ZIP[:END],
    "half the file": GOOD_ZIP[: len(GOOD_ZIP) // 2],
    "the first bytes only": GOOD_ZIP[:10],
    "more entries than there are": change(GOOD_ZIP, END + 10, "<H", 999),
    "directory behind the end": change(GOOD_ZIP, END + 16, "<L", 2**31),
    "directory longer than the file": change(GOOD_ZIP, END + 12, "<L", 2**31),
    "zip64 without its record": change(GOOD_ZIP, END + 16, "<L", 2**32 - 1),
    "entry of 4 GB": change(change(GOOD_ZIP, STORAGE + 20, "<L", 2**32 - 2), STORAGE + 24, "<L", 2**32 - 2),
    "two sizes": change(GOOD_ZIP, STORAGE + 24, "<L", 2**20),
    "64-bit size without a field for it": change(GOOD_ZIP, STORAGE + 24, "<L", 2**32 - 1),
    "local header elsewhere": change(GOOD_ZIP, STORAGE + 42, "<L", 1),
    "local header behind the end": change(GOOD_ZIP, STORAGE + 42, "<L", 2**31),
    "encrypted": change(GOOD_ZIP, STORAGE + 8, "<H", 1),
    "unknown compression": change(GOOD_ZIP, STORAGE + 10, "<H", 99),
    "stored bytes declared deflated": change(GOOD_ZIP, STORAGE + 10, "<H", 8),
    "bad byteorder": GOOD.zip_bytes(extra={"model/byteorder": b"middle"}),
    "two pickles": GOOD.zip_bytes(extra={"other/data.pkl": b"x"}),
    "no storage": Archive({}, GOOD.found).zip_bytes(),
    "short storage": Archive({"0": b"abc", "1": GOOD.storages["1"]}, GOOD.found).zip_bytes(),
}


@pytest.mark.parametrize("what", ZIPS)
def test_damaged_zips_are_refused(tmp_path: Path, what: str) -> None:
    assert isinstance(refuse(tmp_path, ZIPS[what]), FormatError)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_storages_of_one_name_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path, GOOD.zip_bytes(extra={"model/data/0": bytes(128)}))


@pytest.mark.parametrize("length", range(0, len(GOOD_LEGACY) - 1, 37))
def test_legacy_files_cut_anywhere_are_refused(tmp_path: Path, length: int) -> None:
    refuse(tmp_path, GOOD_LEGACY[:length])


def test_legacy_counts_that_disagree_are_refused(tmp_path: Path) -> None:
    at = GOOD_LEGACY.index(struct.pack("<q", 32) + GOOD.storages["0"])
    assert "elements" in str(refuse(tmp_path, change(GOOD_LEGACY, at, "<q", 33)))
    assert "elements" in str(refuse(tmp_path, change(GOOD_LEGACY, at, "<q", -1)))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), legacy=st.booleans())
def test_mutated_files_give_numbers_or_a_typed_error(tmp_path: Path, data: st.DataObject, legacy: bool) -> None:
    raw = bytearray(GOOD_LEGACY if legacy else GOOD_ZIP)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutated.pth"
    path.write_bytes(bytes(raw))
    with contextlib.suppress(RwkvError):
        read_everything(path)


# Without the ones that only fail when converted: they are in tests/hostile/test_quantize.py.
SHARED_BAD = [
    "truncated-60pct", "truncated-legacy", "evil-os-system", "evil-os-system2", "evil-subprocess-legacy",
    "evil-numpy-global", "evil-torch-global", "zip-declared-2e40", "storage-numel-2e45", "zip-no-pickle",
    "pickle-long4-2e31", "full-stride-out-of-range", "text", "empty", "directory",
]  # fmt: skip


@pytest.mark.parametrize("file", SHARED_BAD)
def test_public_bad_checkpoints_are_refused(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RwkvError) as caught:
        read_everything(shared / "goldens" / "bad" / f"{file}.pth")
    assert f"{file}.pth" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_public_control_reads(shared: Path) -> None:
    read_everything(shared / "goldens" / "bad" / "control-good.pth")
