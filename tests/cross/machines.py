# SPDX-License-Identifier: Apache-2.0
"""C programs for processors and systems that this machine is not, and what runs them: qemu's user mode, wine."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rwkv_cpu.engine import lib

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c11", "-O2", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra", "-Werror", '-DRWKVC_VERSION="test"']
X86 = platform.machine() in ("x86_64", "AMD64")

ZIG = [sys.executable, "-m", "ziglang", "cc", "-fvisibility=hidden", "-target"]

BUILT_ONLY = ("windows-arm", "macos-x86", "macos-arm")  # nothing here runs them: -O1 takes half the time

# The static C library comes with the cross compiler; clang borrows it. zig brings those of every system.
COMPILERS = {
    "native": ["gcc", "-static"],
    "arm": ["aarch64-linux-gnu-gcc", "-static"],
    "arm-clang": ["clang", "-target", "aarch64-linux-gnu", "-static"],
    "linux-arm": [*ZIG, "aarch64-linux-gnu.2.17", "-fPIC"],
    "musl-x86": [*ZIG, "x86_64-linux-musl", "-fPIC"],
    "musl-arm": [*ZIG, "aarch64-linux-musl", "-fPIC"],
    "windows-x86": [*ZIG, "x86_64-windows-gnu"],
    "windows-arm": [*ZIG, "aarch64-windows-gnu"],
    "macos-x86": [*ZIG, "x86_64-macos.11.0"],
    "macos-arm": [*ZIG, "aarch64-macos.11.0"],
}
PACKAGES = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user clang wine64"
WINE = next((path for name in ("wine64", "/usr/lib/wine/wine64", "wine") if (path := shutil.which(name))), "wine64")


@dataclass(frozen=True)
class Target:
    """What to run on: compiler, emulator (none: this machine; None: nothing here can), instruction sets it finds."""

    compiler: str
    emulator: tuple[str, ...] | None = ()
    isas: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """What keeps this machine from it; "" if nothing does."""
        emulator = self.emulator or ()
        if not X86 and emulator[:1] in (("qemu-x86_64",), (WINE,)):
            return "an x86-64 machine"
        needed = [*emulator[:1]]
        if COMPILERS[self.compiler][: len(ZIG)] == ZIG:
            needed += [] if importlib.util.find_spec("ziglang") else ["ziglang"]
        else:
            needed.append(COMPILERS[self.compiler][0])
        if self.compiler == "arm-clang":
            needed.append("aarch64-linux-gnu-gcc")
        return ", ".join(tool for tool in needed if shutil.which(tool) is None)


TARGETS = {
    "here": Target("native"),
    "nehalem": Target("native", ("qemu-x86_64", "-cpu", "Nehalem"), ("scalar",)),
    "haswell": Target("native", ("qemu-x86_64", "-cpu", "Haswell"), ("avx2", "scalar")),
    "cortex-a53": Target("arm", ("qemu-aarch64", "-cpu", "cortex-a53"), ("neon", "scalar")),
    "neoverse-n1": Target("arm", ("qemu-aarch64", "-cpu", "neoverse-n1"), ("neon_dotprod", "neon", "scalar")),
    "arm": Target("arm", ("qemu-aarch64", "-cpu", "max"), ("neon_i8mm", "neon_dotprod", "neon", "scalar")),
    "arm-clang": Target("arm-clang", ("qemu-aarch64", "-cpu", "max"), ("neon_i8mm", "neon_dotprod", "neon", "scalar")),
}

# Other systems, for all of which zig compiles.
ARM_ISAS = TARGETS["arm"].isas
SYSTEMS = {
    "linux-arm": Target("linux-arm", ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu", "max"), ARM_ISAS),
    "musl-x86": Target("musl-x86"),
    "musl-arm": Target("musl-arm", ("qemu-aarch64", "-cpu", "max"), ARM_ISAS),
    "windows-x86": Target("windows-x86", (WINE,)),
    "windows-arm": Target("windows-arm", None),
    "macos-x86": Target("macos-x86", None),
    "macos-arm": Target("macos-arm", None),
}


@dataclass(frozen=True)
class Run:
    status: int
    output: str
    errors: str

    def lines(self) -> list[list[str]]:
        """The words of each line of a program that did not fail."""
        assert self.status == 0, f"status {self.status}\n{self.output}\n{self.errors}"
        return [line.split() for line in self.output.splitlines()]


class Programs:
    """Builds each program of tests/c once for each compiler; the engine's objects are shared."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[tuple[str, str], Path] = {}

    def objects(self, compiler: str, variant: str, sources: list[Path], includes: list[str]) -> list[Path]:
        """Compile *sources* that are not compiled yet."""
        folder = self._folder / compiler / variant
        folder.mkdir(parents=True, exist_ok=True)
        flags = [*FLAGS, *(f"-I{ROOT / name}" for name in includes)]
        if compiler in BUILT_ONLY:
            flags.append("-O1")
        if compiler == "native" and lib.rwkvc_isa_usable(b"avx512vnni"):
            flags.append("-DRWKVC_AVXVNNI_AS_EVEX")  # AVX-VNNI's kernels, in an encoding that this CPU has

        def one(source: Path) -> Path:
            target = folder / f"{source.stem}.o"
            if not target.exists():
                command = [*COMPILERS[compiler], *flags, "-c", str(source), "-o", str(target)]
                run = subprocess.run(command, capture_output=True, text=True, check=False)
                assert run.returncode == 0, run.stderr
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(one, sources))

    def program(self, compiler: str, name: str) -> Path:
        """tests/c/NAME.c with the whole engine; vocabulary.c replaces what the units of src/isa consist of."""
        if (compiler, name) not in self._built:
            main, sources = ROOT / "tests" / "c" / f"{name}.c", sorted((ROOT / "src").rglob("*.c"))
            units = [path for path in sources if path.name.startswith("isa_")]
            rest = [path for path in sources if path not in units]
            variant = ["tests/c/vocabulary"] if name == "vocabulary" else []
            objects = self.objects(compiler, "engine", rest, ["src"])
            objects += self.objects(compiler, name if variant else "engine", units, [*variant, "src"])
            objects += self.objects(compiler, name, [main], [*variant, "src"])
            target = self._folder / compiler / name / (f"{name}.exe" if "windows" in compiler else name)
            command = [*COMPILERS[compiler], "-pthread", *map(str, objects), "-o", str(target), "-lm"]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stderr
            self._built[compiler, name] = target
        return self._built[compiler, name]

    def library(self, compiler: str) -> Path:
        """The whole engine as one shared library."""
        objects = self.objects(compiler, "engine", sorted((ROOT / "src").rglob("*.c")), ["src"])
        suffix = "dll" if "windows" in compiler else "dylib" if "macos" in compiler else "so"
        target = self._folder / compiler / f"librwkv_cpu.{suffix}"
        command = [*COMPILERS[compiler], "-shared", "-s", *map(str, objects), "-o", str(target), "-lm"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return target

    def run(self, target: Target, name: str, *arguments: str | Path, text: str = "", **environment: str) -> Run:
        """Run a program with *text* as its input."""
        program = self.program(target.compiler, name)
        assert target.emulator is not None
        # wine's own place and silence; a program that waits for it must not wait for a window
        wine = {"WINEPREFIX": str(self._folder / "wine"), "WINEDEBUG": "-all", "DISPLAY": ""}
        run = subprocess.run(
            [*target.emulator, str(program), *map(str, arguments)],
            capture_output=True,
            input=text,
            encoding="utf-8",
            env={**os.environ, **wine, "RWKV_CPU_ISA": "", **environment},
            timeout=600,
            check=False,
        )
        return Run(run.returncode, run.stdout, run.stderr)


def check_same_bits(programs: Programs, target: Target, models: list[Path]) -> None:
    """The program fails by itself when instruction sets of one processor differ; here processors are compared."""
    reference = {
        words[0]: words[2:]
        for words in programs.run(TARGETS["here"], "same_bits", *models).lines()
        if words[1] == "scalar"
    }
    assert {path.name for path in models} < set(reference)
    lines = programs.run(target, "same_bits", *models).lines()
    assert lines[0][0] == "default"
    isas = target.isas or tuple(dict.fromkeys(words[1] for words in lines[1:]))
    assert lines[0][1] == isas[0]
    assert [words[:2] for words in lines[1:]] == [[name, isa] for name in reference for isa in isas]
    for name, _, *sums in lines[1:]:
        assert sums == reference[name]
