# SPDX-License-Identifier: Apache-2.0
"""Instructions per token of the scalar and AVX2 paths, counted by callgrind, beside a stored baseline.

    python tests/callgrind/check.py            compare; more than 3 % over the baseline fails
    python tests/callgrind/check.py --update   write what is counted now

Speed depends on the machine and its neighbours, the number of instructions on nothing but source and compiler. So the
baseline has one entry per compiler (name and major version); where there is none for this one, there is nothing to
compare with, and the check says so. Valgrind knows no AVX-512, and the kernels are one source for all instruction sets.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rwkv_cpu import engine  # noqa: E402
from tests.random_model import VERSIONS, build, usual_config  # noqa: E402

BASELINE = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.03
ISAS = ("scalar", "avx2")
# As in tests/callgrind/phases.c
TOKENS = {"prefill": 32, "decode": 4}
FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread", '-DRWKVC_VERSION="callgrind"']


def has_valgrind() -> bool:
    """The program and the header that comes with it."""
    if shutil.which("valgrind") is None or shutil.which("gcc") is None:
        return False
    include = "#include <valgrind/callgrind.h>\n"
    return (
        subprocess.run(["gcc", "-E", "-xc", "-"], input=include, capture_output=True, text=True, check=False).returncode
        == 0
    )


def compiler() -> str:
    """ "gcc 12": what the generated instructions depend on."""
    macros = subprocess.run(["gcc", "-dM", "-E", "-xc", os.devnull], capture_output=True, text=True, check=True).stdout
    name = "clang" if "__clang__" in macros else "gcc"
    version = subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=True).stdout
    return f"{name} {version.split('.')[0].strip()}"


def build_program(folder: Path) -> Path:
    """The engine and phases.c, optimised as the package is."""
    sources = [*sorted((ROOT / "src").rglob("*.c")), Path(__file__).with_name("phases.c")]

    def compile_one(number_and_source: tuple[int, Path]) -> Path:
        number, source = number_and_source
        target = folder / f"{number}.o"
        subprocess.run(["gcc", *FLAGS, f"-I{ROOT / 'src'}", "-c", str(source), "-o", str(target)], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, enumerate(sources)))
    program = folder / "phases"
    subprocess.run(["gcc", "-pthread", *map(str, objects), "-o", str(program), "-lm"], check=True)
    return program


def models(folder: Path) -> dict[str, Path]:
    """The demonstration model, a small model of each version in q8, and of RWKV-7 in every other format."""
    found = {"demo": ROOT / "rwkv_cpu" / "data" / "demo.rwkv"}
    others = [name for name in ("f32", "f16", "q6", "q5", "q4") if engine.lib.rwkvc_format_by_name(name.encode()) >= 0]
    wanted = [(version, "q8") for version in VERSIONS] + [(engine.lib.RWKVC_RWKV7, name) for name in others]
    for version, preset in wanted:
        config = usual_config(version, n_layer=1, n_vocab=256)
        name = f"RWKV-{config.public().version} {preset}"
        found[name] = folder / f"{name}.rwkv"
        found[name].write_bytes(build(np.random.default_rng(version), config, preset).tobytes())
    return found


def count(program: Path, model: Path, isa: str, folder: Path) -> dict[str, int]:
    """Instructions per token of each phase."""
    out = folder / f"{model.stem} {isa}.out"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
    run = subprocess.run([*command, str(program), str(model), isa], capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"callgrind failed on {model.name} with {isa}:\n{run.stderr}")
    counts = {}
    for number, (phase, tokens) in enumerate(TOKENS.items(), start=1):
        dump = Path(f"{out}.{number}").read_text("utf-8", "replace")
        total = re.search(r"^(?:summary|totals): (\d+)", dump, re.MULTILINE)
        if total is None or int(total[1]) == 0:
            sys.exit(f"callgrind counted nothing in {phase} of {model.name} with {isa}")
        counts[phase] = round(int(total[1]) / tokens)
    return counts


def measure() -> dict[str, int]:
    """ "demo avx2 decode" → instructions per token."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = build_program(folder)
        cases = [(label, path, isa) for label, path in models(folder).items() for isa in ISAS]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(lambda case: count(program, case[1], case[2], folder), cases)
        return {
            f"{label} {isa} {phase}": instructions
            for (label, _, isa), counts in zip(cases, results, strict=True)
            for phase, instructions in counts.items()
        }


def compare(found: dict[str, int], expected: dict[str, int]) -> list[str]:
    """What is wrong, a line each."""
    wrong = [f"{name}: not in the baseline" for name in found.keys() - expected.keys()]
    wrong += [f"{name}: in the baseline, but not counted" for name in expected.keys() - found.keys()]
    for name in found.keys() & expected.keys():
        if found[name] > expected[name] * (1 + TOLERANCE):
            change = found[name] / expected[name] - 1
            wrong.append(f"{name}: {found[name]:,} instructions per token, {change:+.1%} over {expected[name]:,}")
    return sorted(wrong)


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the baseline for this compiler")
    update = parser.parse_args().update
    if platform.machine() not in ("x86_64", "AMD64") or not has_valgrind():
        print("SKIPPED: counting instructions needs gcc, valgrind and an x86-64 CPU (on Debian: apt install valgrind)")
        return 0
    baselines = json.loads(BASELINE.read_text("utf-8")) if BASELINE.exists() else {}
    key = compiler()
    if not update and key not in baselines:
        known = ", ".join(baselines) or "none"
        print(f"SKIPPED: no baseline for {key}, only for {known}; `make callgrind-update` adds one")
        return 0
    found = measure()
    if update:
        baselines[key] = found
        BASELINE.write_text(json.dumps(baselines, indent=2, sort_keys=True) + "\n", "utf-8")
        print(f"wrote {len(found)} counts for {key} to {BASELINE.relative_to(ROOT)}")
        return 0
    expected = baselines[key]
    for name in sorted(found.keys() & expected.keys()):
        print(f"{name:32} {found[name]:>12,}  {found[name] / expected[name] - 1:+7.2%}")
    wrong = compare(found, expected)
    fewer = sum(found[name] < expected[name] * (1 - TOLERANCE) for name in found.keys() & expected.keys())
    if fewer:
        print(
            f"{fewer} counts are more than {TOLERANCE:.0%} below the baseline: `make callgrind-update` keeps the gain"
        )
    if wrong:
        print("\n".join(["", *wrong, "If that is meant: make callgrind-update"]), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
