# SPDX-License-Identifier: Apache-2.0
"""What the README shows must run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text("utf-8")


def test_python_example_runs_and_answers(demo_path):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", block], capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    assert "Paris" in run.stdout
    assert run.stderr == ""


def test_commands_exist():
    from rwkv_cpu.cli import COMMANDS

    named = set(re.findall(r"rwkv-cpu ([a-z]+)", README))
    assert named
    assert named <= set(COMMANDS)


def test_make_targets_exist():
    makefile = (CHECKOUT / "Makefile").read_text("utf-8")
    for document in (README, (CHECKOUT / "CONTRIBUTING.md").read_text("utf-8")):
        for target in re.findall(r"^    make (\S+)", document, re.MULTILINE):
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
