# SPDX-License-Identifier: Apache-2.0
"""Where things lie on each system, and where models are found."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import platformdirs
import pytest
from platformdirs.macos import MacOS
from platformdirs.unix import Unix

from rwkv_cpu import Model, places
from rwkv_cpu.errors import ModelNotFoundError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RWKV_CPU_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_everything_lies_where_the_system_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RWKV_CPU_HOME", raising=False)
    for name in ("CACHE", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    monkeypatch.setattr(platformdirs, "PlatformDirs", Unix)
    assert places.cache_directory() == tmp_path / "CACHE" / "rwkv_cpu"
    assert places.models_directory() == tmp_path / "DATA" / "rwkv_cpu" / "models"
    assert places.user_directory() == tmp_path / "STATE" / "rwkv_cpu"
    for name in ("CACHE", "DATA", "STATE"):
        monkeypatch.delenv(f"XDG_{name}_HOME")
    monkeypatch.setattr(platformdirs, "PlatformDirs", MacOS)
    assert places.cache_directory() == Path.home() / "Library" / "Caches" / "rwkv_cpu"
    assert places.models_directory() == Path.home() / "Library" / "Application Support" / "rwkv_cpu" / "models"


def test_the_home_variable_moves_everything(home: Path) -> None:
    assert places.cache_directory() == home / "cache"
    assert places.user_directory() == home
    assert places.models_directory() == home / "models"


def test_a_model_in_the_users_folder_is_found_by_its_name(home: Path) -> None:
    assert [model.name for model in places.find_models()] == ["demo"]
    (home / "models").mkdir(parents=True)
    shutil.copy(places.bundled_model(), home / "models" / "Größer 0.1B.rwkv")
    (home / "models" / "notes.txt").write_text("no model")
    found = places.find_models()
    assert [(model.name, model.bundled) for model in found] == [("demo", True), ("Größer 0.1B", False)]
    assert found[1].size_bytes == found[1].path.stat().st_size
    for name in ("Größer 0.1B", "Größer 0.1B.rwkv"):
        with Model.load(name) as model:
            assert model.path == found[1].path


def test_an_unknown_name_says_what_there_is(home: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        Model.load("nothing like it")
    assert "demo" in caught.value.hint
    for path in ("../demo", "models/demo", ""):
        assert places.named_model(path) is None


def test_a_frozen_program_looks_beside_itself_first(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, unpacked = tmp_path / "program", tmp_path / "unpacked"
    for folder in (home / "models", program / "models", program, unpacked):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(places.bundled_model(), folder / "same.rwkv")
    assert places.model_folders() == [home / "models"]
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(program / "app"))
    monkeypatch.setattr(sys, "_MEIPASS", str(unpacked), raising=False)
    folders = [program / "models", program, unpacked / "models", unpacked, home / "models"]
    assert places.model_folders() == folders
    for folder in (program / "models", program, unpacked, home / "models"):
        assert places.named_model("same") == folder / "same.rwkv"
        (folder / "same.rwkv").unlink()
    assert places.named_model("same") is None


def test_the_files_of_a_macos_bundle_are_its_programs(home: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "frozen", "macosx_app", raising=False)
    contents = tmp_path / "App.app" / "Contents"
    monkeypatch.setattr(sys, "executable", str(contents / "MacOS" / "App"))
    assert contents / "Resources" / "models" in places.model_folders()
