# SPDX-License-Identifier: Apache-2.0
"""C programs for processors that this machine is not, and the emulator that runs them (qemu's user mode)."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rwkv_cpu.engine import lib

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c11", "-O2", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra", "-Werror", '-DRWKVC_VERSION="test"']
X86 = platform.machine() in ("x86_64", "AMD64")

# The static C library comes with the cross compiler; clang borrows it.
COMPILERS = {
    "native": ["gcc"],
    "arm": ["aarch64-linux-gnu-gcc", "-static"],
    "arm-clang": ["clang", "-target", "aarch64-linux-gnu", "-static"],
}
PACKAGES = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user clang"


@dataclass(frozen=True)
class Target:
    """A processor to run on: compiler, emulator ([]: this machine itself), the instruction sets it must find."""

    compiler: str
    emulator: tuple[str, ...] = ()
    isas: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """What keeps this machine from it; "" if nothing does."""
        if not X86 and self.emulator[:1] == ("qemu-x86_64",):
            return "an x86-64 machine"
        needed = [COMPILERS[self.compiler][0], *self.emulator[:1]]
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
            target = self._folder / compiler / name / name
            command = [*COMPILERS[compiler], "-pthread", "-static", *map(str, objects), "-o", str(target), "-lm"]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stderr
            self._built[compiler, name] = target
        return self._built[compiler, name]

    def run(self, target: Target, name: str, *arguments: str | Path, **environment: str) -> Run:
        """Run a program on a processor."""
        program = self.program(target.compiler, name)
        run = subprocess.run(
            [*target.emulator, str(program), *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "RWKV_CPU_ISA": "", **environment},
            timeout=600,
            check=False,
        )
        return Run(run.returncode, run.stdout, run.stderr)
