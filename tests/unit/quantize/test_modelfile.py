# SPDX-License-Identifier: Apache-2.0
"""The container: what is written is a safetensors file, complete or not there at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from rwkv_cpu import modelfile
from rwkv_cpu.errors import FormatError, RwkvError, UnsupportedModelError
from rwkv_cpu.modelfile import ModelFile, ModelWriter, Place, build_header, read_header

if TYPE_CHECKING:
    from pathlib import Path

PLACES = [("emb", Place(128, 64)), ("naïve 模型", Place(192, 128))]
HEADER = build_header({"a": "b", "名": "值"}, PLACES)
SIZE = len(HEADER) + 320


def write(target: Path, *, force: bool = False) -> None:
    with ModelWriter(target, SIZE, force=force) as writer:
        writer.write(len(HEADER), bytes(range(256)) + bytes(64))
        writer.write(0, HEADER)
        writer.commit()


@pytest.mark.parametrize("name", ["m.rwkv", "модель 模型 🦆.rwkv", "x" * 250])
def test_round_trip(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    write(target)
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208 (the names as they are)
    with ModelFile(target) as file:
        assert file.metadata == {"a": "b", "名": "值"}
        assert file.tensors == {modelfile.TABLE: Place(0, 128), **dict(PLACES)}
        assert file.info.data_offset % 64 == 0
        assert file.buffer[file.info.data_offset : file.info.data_offset + 4] == b"\0\1\2\3"
        assert len(file.buffer) == SIZE


def test_header_is_safetensors_as_its_specification_has_it(tmp_path: Path) -> None:
    write(tmp_path / "m")
    raw = (tmp_path / "m").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    spans = sorted(entry["data_offsets"] for name, entry in header.items() if name != "__metadata__")
    assert raw[8:9] == b"{"
    assert [b for b, _ in spans] == [0, *(e for _, e in spans[:-1])]  # no gaps
    assert spans[-1][1] == len(raw) - 8 - length
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            assert entry["dtype"] == "U8"
            assert entry["shape"] == [end - begin]


def test_existing_target_is_kept_without_force_and_replaced_with_it(tmp_path: Path) -> None:
    target = tmp_path / "m.rwkv"
    target.write_text("mine")
    with pytest.raises(RwkvError, match="exists already") as caught:
        write(target)
    assert "--force" in caught.value.hint
    assert target.read_text() == "mine"
    write(target, force=True)
    assert read_header(target).size_bytes == SIZE
    assert len(list(tmp_path.iterdir())) == 1


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "m.rwkv"
    with ModelWriter(target, 1) as writer:
        target.write_text("somebody else's")
        with pytest.raises(RwkvError, match="exists already"):
            writer.commit()
    assert target.read_text() == "somebody else's"
    assert list(tmp_path.iterdir()) == [target]


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)  # they have neither

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path / "m.rwkv")
    assert read_header(tmp_path / "m.rwkv").size_bytes == SIZE
    with pytest.raises(RwkvError, match="exists already"):
        write(tmp_path / "m.rwkv")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, SystemExit])
def test_any_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with ModelWriter(tmp_path / "m", SIZE) as writer:
            writer.write(0, HEADER)
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed", "named"])
def test_a_killed_process_leaves_no_target(tmp_path: Path, unnamed: bool) -> None:
    code = (
        "import os, sys, time\nfrom rwkv_cpu.modelfile import ModelWriter\n"
        f"if not {unnamed} and hasattr(os, 'O_TMPFILE'): del os.O_TMPFILE\n"
        "with ModelWriter(sys.argv[1], 10) as writer:\n"
        "    writer.write(0, b'12345')\n    print('writing', flush=True)\n    time.sleep(60)\n"
    )
    target = tmp_path / "m.rwkv"
    environment = os.environ | {"PYTHONPATH": os.getcwd()}  # noqa: PTH109
    with subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert not target.exists()
    left = [path.suffix for path in tmp_path.iterdir()]
    assert left == ([] if unnamed and has_unnamed_files(tmp_path) else [".part"])


def has_unnamed_files(folder: Path) -> bool:
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR))
    except (AttributeError, OSError):
        return False
    return True


@pytest.mark.parametrize("force", [False, True])
def test_files_with_a_name_from_the_start_end_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """Where the system has no files without names."""
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    write(tmp_path / "m.rwkv", force=force)
    assert os.listdir(tmp_path) == ["m.rwkv"]  # noqa: PTH208 (the names as they are)
    assert read_header(tmp_path / "m.rwkv").size_bytes == SIZE


def test_a_full_disk_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(RwkvError, match="are free there"):
        write(tmp_path / "m.rwkv")
    monkeypatch.undo()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(modelfile, "_write_at", full)
    with pytest.raises(RwkvError, match="disk is full") as caught:
        write(tmp_path / "m.rwkv")
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve space")
def test_the_space_is_taken_before_the_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_unnamed_files(tmp_path):
        pytest.skip("the file system has no unnamed files")
    with ModelWriter(tmp_path / "m", 1 << 20) as writer:
        assert os.fstat(writer._fd).st_blocks * 512 >= 1 << 20

    def refuse(code: int) -> None:
        def fail(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "posix_fallocate", fail)

    refuse(errno.ENOSPC)
    with pytest.raises(RwkvError, match="disk is full"):
        write(tmp_path / "m.rwkv")
    assert list(tmp_path.iterdir()) == []
    refuse(errno.EOPNOTSUPP)  # then it is written without
    write(tmp_path / "m.rwkv")
    assert read_header(tmp_path / "m.rwkv").size_bytes == SIZE


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = modelfile._write_at
    monkeypatch.setattr(modelfile, "_write_at", lambda fd, data, at: real(fd, data[:7], at))
    write(tmp_path / "m.rwkv")
    assert read_header(tmp_path / "m.rwkv").size_bytes == SIZE


def test_impossible_targets(tmp_path: Path) -> None:
    with pytest.raises(RwkvError, match="no directory"):
        write(tmp_path / "nowhere" / "m.rwkv")
    with pytest.raises(RwkvError, match="is a directory"):
        write(tmp_path, force=True)


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "m.rwkv").symlink_to(tmp_path / "there" / "real.rwkv")
    write(tmp_path / "m.rwkv", force=True)
    assert (tmp_path / "m.rwkv").is_symlink()
    assert read_header(tmp_path / "there" / "real.rwkv").size_bytes == SIZE


def test_reading_a_header_takes_no_time_whatever_the_size(tmp_path: Path) -> None:
    """A sparse file of 40 GB: nothing but its header may be touched."""
    huge = 40 << 30
    header = build_header({}, [("w", Place(64, huge))])
    path = tmp_path / "huge.rwkv"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 64 + huge)
    began = time.perf_counter()
    with ModelFile(path) as mapped:
        assert mapped.tensors["w"].size_bytes == huge
    assert time.perf_counter() - began < 1


def test_other_kinds_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "m.rwkv"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UnsupportedModelError, match="PyTorch checkpoint") as caught:
        read_header(path)
    assert "quantize" in caught.value.hint
    path.write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModelError, match="GGUF"):
        read_header(path)
    path.write_text("hello")
    with pytest.raises(FormatError):
        read_header(path)
