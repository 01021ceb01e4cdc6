# SPDX-License-Identifier: Apache-2.0
"""The .pth reader gives the numbers that were saved, from every layout torch.save ever wrote."""

from __future__ import annotations

import gc
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rwkv_cpu.checkpoint import open_container
from rwkv_cpu.errors import FormatError, ModelNotFoundError, UnsupportedModelError
from tests.pth_writer import Archive, Stored, bf16, emit, name

if TYPE_CHECKING:
    from pathlib import Path

ARRAYS = {
    "f32": np.arange(12, dtype=np.float32).reshape(3, 4) - 5.5,
    "f16": np.arange(12, dtype=np.float16).reshape(2, 6),
    "bf16": bf16(np.linspace(-1, 1, 12)).reshape(4, 3),
    "f64": np.arange(5, dtype=np.float64),
    "i64": np.arange(6, dtype=np.int64).reshape(1, 2, 3),
    "bool": np.array([True, False]),
    "scalar": np.float32(3.25).reshape(()),
    "empty": np.zeros((0, 4), np.float32),
}


def archive_of(arrays: dict[str, Any]) -> Archive:
    archive = Archive()
    for key, array in arrays.items():
        archive.add(key, array)
    return archive


def read_all(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with open_container(path) as checkpoint:
        return {key: checkpoint.read(key).copy() for key in checkpoint.tensors}


@pytest.mark.parametrize("layout", ["zip", "deflated zip", "legacy"])
def test_every_dtype_and_shape_reads_back_exactly(tmp_path: Path, layout: str) -> None:
    archive = archive_of(ARRAYS)
    raw = {
        "zip": archive.zip_bytes(),
        "deflated zip": archive.zip_bytes(compression=zipfile.ZIP_DEFLATED),
        "legacy": archive.legacy_bytes(),
    }[layout]
    path = tmp_path / "a name that says nothing.bin"
    path.write_bytes(raw)
    found = read_all(path)
    assert list(found) == list(ARRAYS)
    for key, array in ARRAYS.items():
        assert found[key].shape == array.shape
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)


def test_meta_tells_dtype_and_shape_without_reading(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(archive_of(ARRAYS).zip_bytes())
    with open_container(path) as checkpoint:
        assert checkpoint.kind == "pth"
        assert {m.name: m.dtype for m in checkpoint.tensors.values()} == {
            **{k: k for k in ARRAYS},
            "scalar": "f32",
            "empty": "f32",
        }
        assert checkpoint.tensors["i64"].shape == (1, 2, 3)
        assert checkpoint.tensors["bf16"].size_bytes == 24
        with pytest.raises(KeyError):
            checkpoint.read("no such tensor")


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_transposed_shared_and_offset_tensors(tmp_path: Path, layout: str) -> None:
    base = np.arange(24, dtype=np.float32)
    archive = Archive()
    stored = archive.add("flat", base)
    archive.found["transposed"] = Stored(stored.key, "f32", 24, (4, 6), (1, 4))
    archive.found["part"] = Stored(stored.key, "f32", 24, (2, 3), (6, 1), offset=7)
    archive.found["row repeated"] = Stored(stored.key, "f32", 24, (3, 4), (0, 1), offset=20)
    path = tmp_path / "m.pth"
    path.write_bytes(archive.zip_bytes() if layout == "zip" else archive.legacy_bytes())
    found = read_all(path)
    np.testing.assert_array_equal(found["transposed"], base.reshape(6, 4).T)
    np.testing.assert_array_equal(found["part"], base[7:].reshape(-1)[:12].reshape(2, 6)[:, :3])
    np.testing.assert_array_equal(found["row repeated"], np.tile(base[20:], (3, 1)))


def test_contiguous_tensors_are_views_of_the_file_that_nobody_can_write(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(archive_of({"u8 is aligned anywhere": np.arange(9, dtype=np.int8)}).zip_bytes())
    checkpoint = open_container(path)
    array = checkpoint.read("u8 is aligned anywhere")
    checkpoint.close()  # the array keeps its memory
    assert array.tolist() == list(range(9))
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_parameters_and_a_state_dict_wrapper_and_other_values(tmp_path: Path) -> None:
    archive = Archive()
    archive.add("w", np.ones((2, 2), np.float32), parameter=True)
    archive.found = {"epoch": 3, "state_dict": {**archive.found, "note": "text", 5: None}}
    path = tmp_path / "m.pth"
    path.write_bytes(archive.zip_bytes())
    assert read_all(path)["w"].tolist() == [[1, 1], [1, 1]]


def test_ordered_dict_with_attributes_and_memo_as_torch_writes_them(tmp_path: Path) -> None:
    archive = Archive()
    archive.add("w", np.arange(4, dtype=np.float32))
    inner = archive.found
    ordered = name("collections", "OrderedDict") + b")Rq\x00(" + emit("w") + emit(inner["w"]) + b"u"
    archive.found = ordered + emit({"_metadata": {}}) + b"b0h\x00"
    path = tmp_path / "m.pth"
    path.write_bytes(archive.zip_bytes())
    assert read_all(path)["w"].tolist() == [0, 1, 2, 3]


def test_big_endian_checkpoint(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    archive = archive_of({"w": values})
    archive.storages["0"] = values.astype(">f4").tobytes()
    path = tmp_path / "m.pth"
    path.write_bytes(archive.zip_bytes(extra={"model/byteorder": b"big"}))
    np.testing.assert_array_equal(read_all(path)["w"], values)


def test_unknown_zip_entries_are_ignored_and_nothing_is_extracted(tmp_path: Path) -> None:
    path = tmp_path / "inside" / "m.pth"
    path.parent.mkdir()
    path.write_bytes(archive_of({"w": ARRAYS["f32"]}).zip_bytes(extra={"../escaped": b"x", "model/.data/id": b"1"}))
    read_all(path)
    assert [p.name for p in tmp_path.rglob("*")] == ["inside", "m.pth"]


def test_zip64_directory(tmp_path: Path) -> None:
    """A small file with the 64-bit records of a large one, as torch writes them from 4 GB on."""
    import io
    import struct

    raw = archive_of({"w": ARRAYS["f32"]}).zip_bytes()
    end = raw.rindex(b"PK\x05\x06")
    _, _, _, _, count, _, start, _ = struct.unpack("<4s4H2LH", raw[end:])
    out = io.BytesIO()
    directory, at = b"", start
    for _ in range(count):
        fields = list(struct.unpack_from("<4s6H3L5H2L", raw, at))
        sizes = struct.pack("<2H3Q", 1, 24, fields[9], fields[8], fields[16])
        entry_name = raw[at + 46 : at + 46 + fields[10]]
        fields[8] = fields[9] = fields[16] = 0xFFFFFFFF
        at += 46 + fields[10] + fields[11] + fields[12]
        fields[11], fields[12] = len(sizes), 0
        directory += struct.pack("<4s6H3L5H2L", *fields) + entry_name + sizes
    out.write(raw[:start] + directory)
    at = out.tell()
    out.write(struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), start))
    out.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1))
    out.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    path = tmp_path / "m.pth"
    path.write_bytes(out.getvalue())
    np.testing.assert_array_equal(read_all(path)["w"], ARRAYS["f32"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the reference leaves a file open
@pytest.mark.parametrize("model", ["v7-bf16", "v6-fp16", "v5.1-fp16", "v4-fp32"])
def test_public_checkpoints_equal_the_reference_reader(shared: Path, model: str) -> None:
    sys.path.insert(0, str(shared / "goldens"))
    try:
        import rwkv_ref
    finally:
        sys.path.pop(0)
    path = shared / "goldens" / "models" / f"{model}.pth"
    reference = rwkv_ref.read_pth(str(path))
    gc.collect()
    with open_container(path) as checkpoint:
        assert list(checkpoint.tensors) == list(reference)
        for key, expected in reference.items():
            found = checkpoint.read(key)
            if checkpoint.tensors[key].dtype == "bf16":
                found = rwkv_ref.bf16_to_f32(found)
            assert found.shape == expected.shape
            assert found.tobytes() == expected.tobytes()


# ---------------------------------------------------------------------------------- what is not one


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        open_container(tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError):  # as any other Python code would expect
        open_container(tmp_path / "nothing.pth")
    with pytest.raises(FormatError, match="directory"):
        open_container(tmp_path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 123\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (LFS, "git-lfs pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"some text\n" * 9, "text file"),
        (bytes(5000), "zeros"),
        (b"\x01\xff\xfe\x03" * 9, "01 ff fe 03"),
        (b"\x80\x02K\x01.", "not one of torch.save"),
    ],
)
def test_files_that_are_no_model_are_named_for_what_they_are(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=said) as caught:
        open_container(path)
    assert "model.pth" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"lmgg\x65\0\0\0", "llama.cpp"),
        (b"tjgg\x65\0\0\0", "llama.cpp"),
        (b"\x20\0\0\0\0\0\0\0" + b'{"rwkv_cpu.table":{"dtype":"U8"}'.ljust(40), "rwkv"),
    ],
)
def test_other_kinds_of_model_files_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=said) as caught:
        open_container(path)
    assert caught.value.hint


def test_a_checkpoint_converted_by_the_rwkv_package_is_refused_by_name(tmp_path: Path) -> None:
    archive = archive_of({"w": ARRAYS["f32"]})
    archive.found |= {"_strategy": "cpu fp32", "_version": 7}
    path = tmp_path / "m.pth"
    path.write_bytes(archive.zip_bytes())
    with pytest.raises(UnsupportedModelError, match="rwkv package"):
        open_container(path)
