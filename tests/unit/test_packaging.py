# SPDX-License-Identifier: Apache-2.0
"""One version everywhere, and a wheel that holds what it must and nothing else."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def test_extension_was_built_from_this_version():
    from rwkv_cpu import _version, engine

    assert engine.version() == _version.__version__


def test_extension_was_built_from_this_header():
    from rwkv_cpu import engine

    header = (CHECKOUT / "src" / "rwkv_cpu.h").read_text("utf-8")
    match = re.search(r"#define RWKVC_ABI_VERSION (\d+)", header)
    assert match is not None
    assert engine.abi_version() == int(match.group(1))


def test_installed_metadata_has_this_version():
    from rwkv_cpu import _version

    assert importlib.metadata.version("rwkv-cpu") == _version.__version__


def test_quantize_is_part_of_the_package():
    import rwkv_cpu.quantize

    assert Path(rwkv_cpu.quantize.__file__).name == "__init__.py"


def source_files() -> list[Path]:
    folders = ["rwkv_cpu", "quantize", "src", "tests", "benchmarks", "examples"]
    found = [path for folder in folders for path in (CHECKOUT / folder).rglob("*")]
    return [path for path in [*found, *CHECKOUT.glob("*.py")] if path.suffix in (".py", ".pyi", ".c", ".h")]


def test_every_source_file_names_its_licence():
    missing = [
        str(path.relative_to(CHECKOUT))
        for path in source_files()
        if "SPDX-License-Identifier: Apache-2.0" not in "".join(path.read_text("utf-8").splitlines()[:2])
    ]
    assert not missing


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from what the sdist holds, as an index would."""
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, CHECKOUT]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_PRELOAD")}
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_wheel_is_one_for_every_python(wheel):
    assert "-cp310-abi3-" in Path(wheel.filename or "").name


@pytest.mark.slow
def test_wheel_has_no_other_top_level_module(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rwkv_cpu"}


@pytest.mark.slow
def test_wheel_holds_engine_model_vocabulary_and_notices(wheel):
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    (engine,) = (name for name in sizes if name.startswith("rwkv_cpu/_engine") and name.endswith(".so"))
    assert sizes[engine] < 1_000_000
    assert 4_000_000 < sizes["rwkv_cpu/data/demo.rwkv"] < 6_000_000
    assert "rwkv_cpu/data/rwkv_vocab_v20230424.txt" in sizes
    assert "rwkv_cpu/quantize/__init__.py" in sizes
    assert "rwkv_cpu/py.typed" in sizes
    for notice in ("LICENSE", "NOTICE"):
        assert any(name.endswith(f".dist-info/licenses/{notice}") for name in sizes)


@pytest.mark.slow
def test_wheel_has_no_tests_sources_or_caches(wheel):
    assert not [name for name in wheel.namelist() if name.endswith((".c", ".h", ".pyc")) or "/tests/" in name]


@pytest.mark.slow
def test_c_example_prints_the_token_that_python_finds(demo_path, tmp_path):
    from rwkv_cpu import Model

    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    sources = sorted(map(str, (CHECKOUT / "src").rglob("*.c")))
    flags = ["-std=c11", "-O2", "-ffp-contract=off", "-pthread", "-Isrc", '-DRWKVC_VERSION="test"']
    program = tmp_path / "next_token"
    command = [compiler, *flags, "examples/next_token.c", *sources, "-o", str(program), "-lm"]
    subprocess.run(command, check=True, cwd=CHECKOUT)
    with Model.load(demo_path) as model:
        tokens = model.tokenizer.encode("User: What is the capital of France?\n\nAssistant:")
        logits, _ = model.forward(tokens)
    run = subprocess.run([program, demo_path, *map(str, tokens)], capture_output=True, text=True, check=True)
    assert int(run.stdout) == int(logits.argmax())


def test_c_example_uses_the_public_header_only():
    text = (CHECKOUT / "examples" / "next_token.c").read_text("utf-8")
    assert re.findall(r'#include "([^"]+)"', text) == ["rwkv_cpu.h"]
