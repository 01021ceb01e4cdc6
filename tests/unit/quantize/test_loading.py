# SPDX-License-Identifier: Apache-2.0
"""resolve(): names, files, and the cache of converted checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rwkv_cpu import loading
from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.describe import describe_file
from rwkv_cpu.errors import ArgumentError, Cancelled, FormatError, ModelNotFoundError, RwkvError
from rwkv_cpu.loading import cached_models, clear_cache, resolve
from rwkv_cpu.places import bundled_model, cache_directory
from tests.pth_writer import rwkv7_tensors, write_checkpoint


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RWKV_CPU_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "my model.pth", rwkv7_tensors())


def test_the_demo_and_rwkv_files_are_used_as_they_are() -> None:
    assert resolve("demo") == bundled_model()
    assert resolve(str(bundled_model())) == bundled_model()
    assert resolve(bundled_model(), format="q8") == bundled_model()
    with pytest.raises(ArgumentError, match="stored as q8, not f32") as caught:
        resolve("demo", format="f32")
    assert "original checkpoint" in caught.value.hint
    assert not cache_directory().exists()


def test_a_checkpoint_is_converted_once_per_format(checkpoint: Path, home: Path) -> None:
    progress: list[tuple[int, int]] = []
    first = resolve(checkpoint, on_progress=lambda *p: progress.append(p))
    assert first.parent == home / "cache"
    assert describe_file(first)["format"] == "q8"
    assert progress
    status = first.stat()
    progress.clear()
    assert resolve(checkpoint, on_progress=lambda *p: progress.append(p)) == first
    assert first.stat().st_mtime_ns == status.st_mtime_ns
    assert not progress
    exact = resolve(checkpoint, format="f32")
    assert describe_file(exact)["format"] == "f32"
    assert {m.format for m in cached_models()} == {"q8", "f32"}
    assert {m.source for m in cached_models()} == {"my model.pth"}


def test_a_changed_checkpoint_or_tokenizer_is_converted_again(checkpoint: Path, shared: Path) -> None:
    first = resolve(checkpoint)
    os.utime(checkpoint, ns=(1, 1))
    second = resolve(checkpoint)
    assert second != first
    tokenizer = (shared / "goldens" / "tokenizer" / "tiny-bpe.model").read_bytes()
    write_checkpoint(checkpoint, rwkv7_tensors(n_layer=1, n_embd=16, n_vocab=8192))
    third = resolve(checkpoint)
    assert describe_file(third)["tokenizer"] == "none"
    checkpoint.with_suffix(".model").write_bytes(tokenizer)
    assert describe_file(resolve(checkpoint))["tokenizer"] == "sentencepiece"


def test_a_damaged_cache_entry_is_made_again(checkpoint: Path) -> None:
    path = resolve(checkpoint)
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    assert resolve(checkpoint) == path
    assert path.read_bytes() == whole


def test_a_checkpoint_that_cannot_be_converted_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"PK\x03\x04" + bytes(50))
    with pytest.raises(FormatError, match=r"bad\.pth"):
        resolve(tmp_path / "bad.pth")
    assert cached_models() == []


def test_eight_threads_convert_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_LOCK_SECONDS", 0.005)
    started, found = [], []

    def run() -> None:
        calls: list[int] = []
        found.append(resolve(checkpoint, on_progress=lambda *_: calls.append(1)))
        started.append(bool(calls))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert sum(started) == 1


def test_two_processes_do_not_convert_at_once(checkpoint: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys\nfrom rwkv_cpu import loading, places\n"
        "folder = places.cache_directory()\nfolder.mkdir(parents=True)\n"
        "with loading._locked(folder, None):\n    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    monkeypatch.setattr(loading, "_LOCK_SECONDS", 0.005)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        token = CancelToken()
        threading.Timer(0.05, token.cancel).start()
        with pytest.raises(Cancelled):
            resolve(checkpoint, cancel=token)
        other.communicate("")
    assert resolve(checkpoint).is_file()


def test_missing_models_are_answered_with_what_is_there(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no model called 'nothing'") as caught:
        resolve("nothing")
    assert "my model.pth" in caught.value.hint
    assert "'demo'" in caught.value.hint
    with pytest.raises(ModelNotFoundError) as caught:
        resolve("my model")
    assert caught.value.hint == "Did you mean my model.pth?"
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(FileNotFoundError):
        resolve("some/where/else.pth")


def test_a_cache_that_cannot_be_made_says_where_to_put_it(checkpoint: Path, home: Path) -> None:
    home.write_text("a file where the directory should be")
    with pytest.raises(RwkvError, match="cannot be made") as caught:
        resolve(checkpoint)
    assert "RWKV_CPU_HOME" in caught.value.hint


def test_clearing_frees_everything_and_a_mapped_model_stays_usable(checkpoint: Path, home: Path) -> None:
    assert clear_cache() == 0
    path = resolve(checkpoint)
    (home / "cache" / ".rwkv_cpu-123.part").write_bytes(bytes(1000))
    size = path.stat().st_size
    assert clear_cache() == size + 1000
    assert cached_models() == []
