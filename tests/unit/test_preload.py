# SPDX-License-Identifier: Apache-2.0
"""Model.load(preload=True): pages come in the background, and never outlive the model."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rwkv_cpu import Model, engine, memory, preload
from rwkv_cpu.errors import Cancelled, FormatError
from rwkv_cpu.modelfile import ModelFile
from rwkv_cpu.preload import Preloader

if TYPE_CHECKING:
    from collections.abc import Callable

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/smaps is Linux's")


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 MB, as a mapping of zeros: pages are pages."""
    path = tmp_path_factory.mktemp("preload") / "big"
    path.write_bytes(bytes(50 << 20))
    return path


def resident_kb(path: Path) -> int:
    """What of a file's mappings is in this process's page tables."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


@linux
def test_prefault_maps_every_page(big: Path) -> None:
    import mmap

    with big.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert resident_kb(big) < 1000
        engine.prefault(mapped, engine.ffi.new("int32_t *", 0))
        assert resident_kb(big) == 50 << 10


def test_prefault_takes_any_memory() -> None:
    flag = engine.ffi.new("int32_t *", 0)
    for size in (0, 1, 4095, 100_000):
        engine.prefault(memoryview(bytes(size + 3))[3:], flag)


def test_a_set_flag_ends_it(big: Path) -> None:
    with pytest.raises(Cancelled):
        engine.prefault(big.read_bytes(), engine.ffi.new("int32_t *", 1))


@linux
def test_a_file_that_became_shorter_is_an_error_not_a_crash(tmp_path: Path) -> None:
    import mmap

    path = tmp_path / "short"
    path.write_bytes(bytes(8 << 20))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        file.truncate(4096)
        with pytest.raises(FormatError, match="cannot be read"):
            engine.prefault(mapped, engine.ffi.new("int32_t *", 0))


@linux
def test_a_preloaded_model_is_mapped_before_it_runs(demo_path: Path) -> None:
    size_kb = demo_path.stat().st_size >> 10
    with Model(demo_path, preload=True) as model:
        assert model._preloader is not None
        model._preloader.wait()
        assert resident_kb(demo_path) >= size_kb - 8
        found = model.forward([1, 2, 3])[0]
    with Model.load(demo_path) as plain:
        assert plain._preloader is None
        assert np.array_equal(plain.forward([1, 2, 3])[0], found)


def test_close_ends_the_thread_at_once(demo_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = threading.Event()

    def endless(_buffer: object, cancel: object) -> None:
        entered.set()
        while not cancel[0]:  # type: ignore[index]
            time.sleep(0.001)

    monkeypatch.setattr(engine, "prefault", endless)
    model = Model.load(demo_path, preload=True)
    preloader = model._preloader
    assert preloader is not None
    assert entered.wait(10)
    assert preloader.running
    model.forward([1])  # not in its way
    model.close()
    assert not preloader.running


def test_a_model_larger_than_free_memory_is_left_alone(demo_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    monkeypatch.setattr(engine, "prefault", lambda *_: asked.append(1))
    monkeypatch.setattr(engine, "read_ahead", lambda _: asked.append(1))
    with ModelFile(demo_path) as file:
        Preloader(file).wait()
    assert not asked


def test_reading_begins_at_once_and_mapping_does_not(demo_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is mapped beside the first token."""
    steps: list[str] = []
    reading = threading.Event()
    monkeypatch.setattr(engine, "prefault", lambda *_: steps.append("map"))
    monkeypatch.setattr(engine, "read_ahead", lambda _: (steps.append("read"), reading.set()))
    monkeypatch.setattr(preload, "_MAP_AFTER_SECONDS", 1000.0)
    with ModelFile(demo_path) as file:
        preloader = Preloader(file)
        assert reading.wait(10)
        assert preloader.running
        preloader.stop()
        assert steps == ["read"]
        monkeypatch.setattr(preload, "_MAP_AFTER_SECONDS", 0.0)
        Preloader(file).wait()
        assert steps == ["read", "read", "map"]


def test_a_failing_disk_is_left_to_the_forward(demo_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise FormatError("the memory cannot be read")

    monkeypatch.setattr(engine, "prefault", broken)
    with Model(demo_path, preload=True) as model:
        assert model.forward([1])[0].shape == (model.n_vocab,)


@pytest.mark.parametrize(("option", "expected"), [([], True), (["--preload"], True), (["--no-preload"], False)])
def test_generate_preloads_unless_told_not_to(
    option: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rwkv_cpu.cli import main

    seen: list[bool] = []
    load: Callable[..., Model] = Model.load.__func__  # type: ignore[attr-defined]

    def spy(*args: object, preload: bool = False, **more: object) -> Model:
        seen.append(preload)
        return load(*args, preload=preload, **more)

    monkeypatch.setattr(Model, "load", classmethod(spy))
    with pytest.raises(SystemExit) as ended:
        main(["generate", "-p", "Hi", "-n", "1", *option])
    assert ended.value.code == 0
    assert capsys.readouterr().out
    assert seen == [expected]
