# SPDX-License-Identifier: Apache-2.0
"""What docs/*.md shows runs as it stands: ```python blocks, and the commands (lines "$ …") of ```console blocks.

Blocks of one page run in order, in one folder of their own, so that a later one may use what an earlier one wrote; each
python block is a program of its own. Lines below a command must appear in its output, in that order; "…" stands for any
text in a line, and a line of its own for any lines. A block after a line ``<!-- not run: REASON -->`` is not run, and
one after ``<!-- needs: MODULE -->`` where that can be had; windows open on a display of their own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(?:^<!-- (?:not run: (?P<reason>[^\n]+)|needs: (?P<needs>\w+)) -->\n+)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
SECONDS = 120


def blocks(page):
    """(kind, text) of what shall run, in order."""
    shown = BLOCK.finditer(page.read_text("utf-8"))
    wanted = [m for m in shown if m["kind"] in ("python", "console") and m["reason"] is None]
    return [(m["kind"], m["text"]) for m in wanted if m["needs"] is None or can_be_had(m["needs"])]


def can_be_had(module):
    if importlib.util.find_spec(module) is None:
        return False
    return module != "tkinter" or (
        shutil.which("Xvfb") is not None and importlib.util.find_spec("_tkinter") is not None
    )


PAGES = [page for page in sorted((CHECKOUT / "docs").glob("*.md")) if blocks(page)]


@pytest.fixture
def run(tmp_path, demo_path, request):
    """run([...]) → all that the command wrote; it must succeed."""
    tools = Path(sys.executable).parent
    env = {**os.environ, "RWKV_CPU_HOME": str(tmp_path / "home"), "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    env["PYTHONPATH"] = str(CHECKOUT)
    env["QT_QPA_PLATFORM"] = "offscreen"
    if "embedding" in request.node.name and shutil.which("Xvfb"):
        env["DISPLAY"] = request.getfixturevalue("display")
    work = tmp_path / "work"
    work.mkdir()

    def command(argv):
        done = subprocess.run(
            argv, cwd=work, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8", timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{argv[-1]}\n{done.stdout}"
        return done.stdout

    return command


def commands(text):
    """(command, expected lines) of a console block; a line that ends in a backslash goes on in the next."""
    found = []
    for line in text.splitlines():
        if found and found[-1][0].endswith("\\"):
            found[-1] = (f"{found[-1][0]}\n{line.removeprefix('> ')}", [])
        elif line.startswith("$ "):
            found.append((line[2:], []))
        elif found and line.strip():
            found[-1][1].append(line)
    return found


def check(shown, expected):
    at = 0
    lines = shown.splitlines()
    for line in expected:
        if line.strip() == "…":
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in line.strip().split("…")))
        found = next((i for i in range(at, len(lines)) if pattern.fullmatch(lines[i].strip())), None)
        assert found is not None, f"not shown: {line!r}\n{shown}"
        at = found + 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs(page, run):
    for kind, text in blocks(page):
        if kind == "python":
            run([sys.executable, "-W", "error", "-c", text])
            continue
        for command, expected in commands(text):
            check(run(["bash", "-c", f"set -o pipefail; {command}"]), expected)


def test_the_harness_sees_what_is_wrong(run):
    assert commands("$ echo a \\\n> b\na b\n$ true\n") == [("echo a \\\nb", ["a b"]), ("true", [])]
    check("one\ntwo words\nthree", ["one", "two …", "…", "three"])
    with pytest.raises(AssertionError):
        check("one\ntwo", ["two", "one"])
    with pytest.raises(AssertionError):
        run(["bash", "-c", "false"])
    assert PAGES
