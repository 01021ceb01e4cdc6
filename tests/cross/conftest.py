# SPDX-License-Identifier: Apache-2.0
"""Compiled programs, processors to run them on, and models to run.

`make cross` runs these tests. What this machine lacks is skipped, with the packages that have it.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rwkv_cpu import engine
from rwkv_cpu.engine import ffi, lib
from rwkv_cpu.quantize import quantize
from tests.cross.machines import PACKAGES, ROOT, TARGETS, Programs, Target
from tests.random_model import VERSIONS, build, random_config, usual_config

if TYPE_CHECKING:
    from pathlib import Path

PRESETS = [ffi.string(name).decode() for code in range(15) if (name := lib.rwkvc_format_name(code)) != ffi.NULL]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Compiled programs, kept for the session."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    return Programs(tmp_path_factory.mktemp("cross"))


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    """Each processor that this machine is or can emulate."""
    found = TARGETS[request.param]
    if found.missing:
        pytest.skip(f"needs {found.missing}; on Debian and Ubuntu: apt install {PACKAGES}")
    return found


@pytest.fixture(scope="session")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Very small model files of every version and format, of usual and odd sizes."""
    folder = tmp_path_factory.mktemp("random")
    paths = []
    for version in VERSIONS:
        for preset in PRESETS:
            rng = np.random.default_rng([version, engine.format_by_name(preset)])
            usual = usual_config(version, n_layer=1, n_embd=64, n_vocab=100)
            odd = random_config(rng, version)
            while odd.raw.size[lib.RWKVC_SIZE_HEAD] > 100:  # large states are slow under an emulator
                odd = random_config(rng, version)
            for kind, config in (("usual", usual), ("odd", odd)):
                paths.append(folder / f"{version:x}-{preset}-{kind}.rwkv")
                build(rng, config, preset).tofile(paths[-1])
    return paths


@pytest.fixture(scope="session")
def trained_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The golden checkpoints in every format; without the shared test data RWKV-7 only."""
    folder = tmp_path_factory.mktemp("trained")
    sources = sorted((ROOT.parent / "shared" / "goldens" / "models").glob("*.pth"))
    sources = sources or [ROOT / "tests" / "data" / "goldens" / "v7-bf16.pth"]
    paths = []
    for source in sources:
        for preset in PRESETS:
            paths.append(folder / f"{source.stem}-{preset}.rwkv")
            quantize(source, paths[-1], format=preset, tokenizer="none")
    return paths


@pytest.fixture(scope="session")
def few_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Golden checkpoints of each version, in one format of each kind: for what is slow to run."""
    folder = tmp_path_factory.mktemp("few")
    sources = sorted((ROOT.parent / "shared" / "goldens" / "models").glob("*.pth"))
    sources = sources or [ROOT / "tests" / "data" / "goldens" / "v7-bf16.pth"]
    paths = []
    for source in sources:
        for preset in ("q8", "q4", "f16"):
            paths.append(folder / f"{source.stem}-{preset}.rwkv")
            quantize(source, paths[-1], format=preset, tokenizer="none")
    return paths
