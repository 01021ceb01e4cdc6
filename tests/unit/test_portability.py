# SPDX-License-Identifier: Apache-2.0
"""What Windows and macOS lack or do otherwise, played on this system; tests/wheel/check.py runs the real thing."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from rwkv_cpu import modelfile
from rwkv_cpu.chat import journal
from rwkv_cpu.cli import _errors
from rwkv_cpu.errors import RwkvError

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(CHECKOUT / "rwkv_cpu").rglob("*.py"), *(CHECKOUT / "quantize").rglob("*.py")])

IMPORT_ALL = """
import importlib, pkgutil, sys, types
import click, prompt_toolkit.application, prompt_toolkit.input, rich.console, rich.live, rich.progress, numpy
import concurrent.futures, asyncio, ctypes, subprocess, multiprocessing, tempfile, shutil, zipfile
import rwkv_cpu
for name in ("fcntl", "termios", "tty", "pty", "resource", "pwd", "grp", "readline"):
    sys.modules[name] = None  # an import of it fails
sys.modules["msvcrt"] = types.SimpleNamespace(locking=None, LK_NBLCK=2, LK_UNLCK=0, setmode=None)
sys.platform = "win32"
optional = ("rwkv_cpu.compat", "rwkv_cpu.__pyinstaller", "rwkv_cpu.benchmark.plots", "rwkv_cpu.__main__")
names = [module.name for module in pkgutil.walk_packages(rwkv_cpu.__path__, "rwkv_cpu.", onerror=lambda name: None)]
for name in names:
    if not name.startswith(optional):
        importlib.import_module(name)
print(len(names))
from rwkv_cpu.memory import resident_bytes
from rwkv_cpu.benchmark.runner import peak_memory_bytes
resident_bytes(), peak_memory_bytes()
"""


def test_every_module_is_imported_without_posix_modules() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=False, cwd=CHECKOUT)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 50


def calls_without_encoding(path: Path) -> list[str]:
    """Where a text file is opened in whatever encoding the system happens to have."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = getattr(getattr(function, "value", None), "id", "")
        texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        named = any(keyword.arg in ("encoding", None) for keyword in node.keywords)
        modes = [text for text in texts if text and set(text) <= set("rwaxbt+")]
        modes += [str(k.value.value) for k in node.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
        binary = any("b" in mode for mode in modes)
        method = isinstance(function, ast.Attribute)
        wrong = (
            method
            and name in ("read_text", "write_text")
            and not named
            and not any(t in ("utf-8", "ascii") for t in texts)
        )
        wrong |= name in ("open", "fdopen") and bool(modes) and not binary and not named
        wrong |= name == "open" and isinstance(function, ast.Name) and not modes and not named
        if wrong and owner not in ("os", "textfile"):
            found.append(f"{path.relative_to(CHECKOUT)}:{node.lineno}")
    return found


def test_every_text_file_is_opened_in_a_named_encoding() -> None:
    assert [where for path in SOURCES for where in calls_without_encoding(path)] == []


def test_journals_are_written_byte_by_byte_where_text_mode_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows's text mode writes two bytes for a line end."""
    binary, opened, real = 1 << 28, {}, os.open

    def watched(path: Any, flags: int, mode: int = 0o777) -> int:
        opened[Path(path).name] = flags
        return real(path, flags & ~binary, mode)

    monkeypatch.setattr(os, "O_BINARY", binary, raising=False)
    monkeypatch.setattr(os, "open", watched)
    journal.Journal(tmp_path / "talk").close()
    assert opened[journal.FILE_NAME] & binary


def test_a_model_in_use_is_not_replaced_but_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to replace a file that somebody has mapped."""
    target = tmp_path / "model.rwkv"
    target.write_bytes(b"old")
    writer = modelfile.ModelWriter(target, 3, force=True)

    def refuse(_self: Path, _target: Path) -> None:
        raise PermissionError(errno.EACCES, "Access is denied", str(target))

    monkeypatch.setattr(modelfile, "os", types.SimpleNamespace(**{**vars(os), "name": "nt"}))
    monkeypatch.setattr(Path, "replace", refuse)
    writer.write(0, b"new")
    with pytest.raises(RwkvError) as caught:
        writer.commit()
    assert "in use" in (caught.value.hint or "")
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize(("system", "terminal", "expected"), [("nt", False, "utf-8"), ("nt", True, None)])
def test_pipes_are_utf_8_on_windows(
    monkeypatch: pytest.MonkeyPatch, system: str, terminal: bool, expected: str | None
) -> None:
    asked: dict[str, Any] = {}
    stream = types.SimpleNamespace(isatty=lambda: terminal, reconfigure=lambda **options: asked.update(options))
    monkeypatch.setattr(_errors, "os", types.SimpleNamespace(**{**vars(os), "name": system}))
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    _errors.prepare_streams()
    monkeypatch.undo()
    assert asked.get("encoding") == expected
    assert asked["errors"] == "replace"
