# SPDX-License-Identifier: Apache-2.0
"""What is imported on the way to the first token, read from sys.modules: times differ from machine to machine.

benchmarks/start.py has the times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKOUT = Path(__file__).resolve().parents[2]

# Modules that cost milliseconds and that nobody who runs a model needs. numpy's own imports do not count.
HEAVY = {
    *("asyncio", "concurrent.futures", "ctypes.util", "email", "http", "multiprocessing", "socket", "sqlite3", "ssl"),
    *("hmac", "importlib.resources", "inspect", "random", "secrets", "shutil", "subprocess", "tempfile", "urllib"),
    *("click", "gguf", "prompt_toolkit", "rich", "sentencepiece", "tokenizers", "torch", "typing_extensions", "jinja2"),
    *("rwkv_cpu.benchmark", "rwkv_cpu.chat", "rwkv_cpu.cli", "rwkv_cpu.export", "rwkv_cpu.generation"),
    *("rwkv_cpu.checkpoint.pth", "rwkv_cpu.checkpoint.safetensors", "rwkv_cpu.quantize", "rwkv_cpu.terminal"),
}
# click brings some of them along.
OF_CLICK = {"click", "inspect", "random", "shutil", "tempfile", "urllib", "typing_extensions"}


def imported(code: str) -> set[str]:
    """The modules that *code* imports beyond numpy and the interpreter's own start."""
    script = (
        f"import sys, json, numpy\nbefore = set(sys.modules)\n{code}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    return set(json.loads(run.stdout.splitlines()[-1]))


def after_command(*arguments: str) -> set[str]:
    """All modules that are there when a command has ended."""
    script = (
        "import sys, json\nfrom rwkv_cpu.cli import main\n"
        f"try:\n    main({list(arguments)!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(); print(json.dumps(sorted(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_the_package_itself_imports_next_to_nothing() -> None:
    found = {name for name in imported("import rwkv_cpu") if name.startswith("rwkv_cpu")}
    assert found == {"rwkv_cpu", "rwkv_cpu._version"}


@pytest.mark.parametrize(
    "code", ["from rwkv_cpu import Model", "from rwkv_cpu import Model; Model.load('demo').close()"]
)
def test_a_model_needs_nothing_heavy(code: str) -> None:
    found = imported(code)
    assert "rwkv_cpu.model" in found
    assert not found & HEAVY


def test_running_a_model_and_the_world_tokenizer_need_nothing_heavy(make_rwkv: Callable[..., Path]) -> None:
    found = imported(
        "from rwkv_cpu import Model\nfrom rwkv_cpu.tokenizer import from_bytes\n"
        f"Model.load({str(make_rwkv())!r}, preload=True).forward([1, 2])\n"
        "from_bytes('world', open('rwkv_cpu/data/rwkv_vocab_v20230424.txt', 'rb').read()).encode('Hi')"
    )
    assert "rwkv_cpu.tokenizer.world" in found
    assert not found & HEAVY


def test_help_loads_neither_engine_nor_numpy() -> None:
    for arguments in (["--help"], [], ["--version"]):
        found = after_command(*arguments)
        assert "click" in found
        assert not found & ((HEAVY - OF_CLICK - {"rwkv_cpu.cli"}) | {"numpy", "rwkv_cpu.engine", "rwkv_cpu.model"})


def test_info_about_a_file_loads_no_checkpoint_reader(demo_path: Path) -> None:
    found = after_command("info", str(demo_path))
    assert "rwkv_cpu.describe" in found
    heavy = {"asyncio", "multiprocessing", "prompt_toolkit", "rich.progress", "sentencepiece", "torch", "secrets"}
    assert not found & (heavy | {"rwkv_cpu.quantize", "rwkv_cpu.generation", "rwkv_cpu.chat"})


def test_generate_loads_no_terminal_and_no_converter(demo_path: Path) -> None:
    found = after_command("generate", str(demo_path), "-p", "Hi", "-n", "1")
    assert "rwkv_cpu.generation.loop" in found
    heavy = {"asyncio", "multiprocessing", "prompt_toolkit", "rich.console", "rich.progress", "secrets", "jinja2"}
    assert not found & (heavy | {"torch", "rwkv_cpu.quantize", "rwkv_cpu.chat", "rwkv_cpu.checkpoint.pth"})


def test_a_server_says_who_it_is_without_the_engine() -> None:
    script = (
        "import io, sys, json\nfrom rwkv_cpu.server.server import Server\n"
        "from rwkv_cpu.server.workspace import LoadOptions\n"
        'line = b\'{"jsonrpc":"2.0","id":1,"method":"initialize"}\'\nwritten = []\n'
        "Server(io.BytesIO(line).read, written.append, LoadOptions()).run()\n"
        "assert b'result' in written[0]; print(json.dumps(sorted(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert not set(json.loads(run.stdout)) & {"numpy", "rwkv_cpu.engine", "asyncio", "socket"}


def test_commands_that_answer_at_once_start_no_blas_threads() -> None:
    code = (
        "from rwkv_cpu.cli import main; import os\n"
        "main.get_command(None, {!r}); print(os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    for command, expected in (("generate", "1"), ("chat", "1"), ("quantize", "None")):
        script, env = code.format(command), {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env, cwd=CHECKOUT
        )
        assert run.stdout.split() == [expected]
