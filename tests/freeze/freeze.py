# SPDX-License-Identifier: Apache-2.0
"""Freezes examples/desktop_tk/headless.py in the ways that people use, starts what comes out, checks its answer.

    python tests/freeze/freeze.py WHEEL [onedir] [onefile] [nuitka]

Needs PyInstaller and Nuitka (with patchelf and a C compiler) in the environment that runs it; what is not there is
skipped with the reason. The package is taken from the wheel: what is frozen is what users install. Each program is
started in another folder, with an empty home, once with its console closed. Ends with 1 if one fails.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPT = CHECKOUT / "examples" / "desktop_tk" / "headless.py"
# The way it is frozen → module that does it, arguments, the program in the output folder.
WAYS = {
    "onedir": ("PyInstaller", ["--onedir"], "onedir/headless/headless"),
    "onefile": ("PyInstaller", ["--onefile", "--windowed"], "onefile/headless"),
    "nuitka": ("nuitka", ["--standalone", "--include-package-data=rwkv_cpu"], "nuitka/headless.dist/headless.bin"),
}
# What the program never imports; Nuitka would compile all of it.
UNUSED = [
    *(f"rwkv_cpu.{part}" for part in ("cli", "terminal", "compat", "__pyinstaller", "server", "evaluation", "report")),
    *(f"rwkv_cpu.{part}" for part in ("benchmark", "export")),
    *("jinja2", "rich", "prompt_toolkit", "pygments", "click", "llguidance", "tokenizers", "matplotlib"),
    *("numpy.f2py", "numpy.testing", "numpy.distutils", "numpy.typing", "pycparser", "setuptools"),
]


def freeze(way: str, folder: Path, environment: dict[str, str]) -> Path:
    """The program."""
    module, arguments, program = WAYS[way]
    out = folder / way
    if module == "PyInstaller":
        common = ["--noconfirm", "--clean", "--log-level=WARN", "--distpath", out, "--workpath", out / "work"]
        common += ["--specpath", out]
    else:
        common = ["--assume-yes-for-downloads", "--quiet", f"--output-dir={out}", "--include-package=rwkv_cpu"]
        common += [f"--nofollow-import-to={name}" for name in UNUSED]
        common += ["--noinclude-default-mode=nofollow", "--lto=no"]
    command = [sys.executable, "-m", module, *arguments, *map(str, common), str(SCRIPT)]
    subprocess.run(command, env=environment, check=True)
    return folder / program


def try_out(program: Path, folder: Path) -> dict[str, object]:
    """Start it as a user of another machine would; what it wrote."""
    home, elsewhere, models = folder / "home", folder / "elsewhere", program.parent / "models"
    for place in (home, elsewhere):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    models.mkdir(exist_ok=True)
    shutil.copy(CHECKOUT / "rwkv_cpu" / "data" / "demo.rwkv", models / "beside.rwkv")
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    found: dict[str, object] = {}
    for console in (True, False):
        answer = elsewhere / "answer.json"
        closed = "" if console else " <&- >&- 2>&-"
        command = f'exec "$0" "$1" demo beside{closed}'
        done = subprocess.run(
            ["/bin/sh", "-c", command, str(program), str(answer)], cwd=elsewhere, env=environment, timeout=120,
            capture_output=console, check=False,
        )  # fmt: skip
        if done.returncode or (console and (done.stdout or done.stderr)):
            raise SystemExit(f"{program} ended with {done.returncode}: {done.stdout!r} {done.stderr!r}")
        found = json.loads(answer.read_text("utf-8"))
        answers = {one["model"]: one["answer"] for one in found["asked"]}
        if not all("Ada" in text for text in answers.values()) or (console and not found["console"]):
            raise SystemExit(f"{program} answered {found}")
        answer.unlink()  # with its console closed, PyInstaller's program has no sys.stdout, Nuitka's has one
    return found


def main() -> int:
    """Each way in turn."""
    wheel, *ways = sys.argv[1:]
    folder = CHECKOUT / "build" / "freeze"
    site = folder / "site"
    shutil.rmtree(folder, ignore_errors=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), wheel]
    subprocess.run([*install, "--disable-pip-version-check"], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    for way in ways or WAYS:
        if importlib.util.find_spec(WAYS[way][0]) is None:
            print(f"{way}: SKIPPED: {WAYS[way][0]} is not installed", flush=True)
            continue
        began = time.monotonic()
        program = freeze(way, folder, environment)
        seconds = time.monotonic() - began
        told = try_out(program, folder)
        whole = program if way == "onefile" else program.parent
        files = [whole] if whole.is_file() else [file for file in whole.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / 1e6
        print(f"{way}: frozen in {seconds:.0f} s, {size:.0f} MB, answers {told['asked'][0]['answer']!r}", flush=True)
        shutil.rmtree(folder / way)
    return 0


if __name__ == "__main__":
    sys.exit(main())
