# SPDX-License-Identifier: Apache-2.0
"""What all tests share: where things are, and small models made on the spot."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

import rwkv_cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHECKOUT = Path(__file__).resolve().parent.parent

# A checkout that was built but not installed: quantize/ is rwkv_cpu.quantize all the same.
if not any((Path(folder) / "quantize").is_dir() for folder in rwkv_cpu.__path__):
    rwkv_cpu.__path__.append(str(CHECKOUT))

# Whoever is started in the background of a shell ignores Ctrl-C, and so would the programs that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run, and no verdict by the clock: machines are shared.
hypothesis.settings.register_profile("rwkv_cpu", deadline=None, derandomize=True)
hypothesis.settings.load_profile("rwkv_cpu")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The top of the repository."""
    return CHECKOUT


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """An X display in memory, for tests of windows: what DISPLAY is to be."""
    if shutil.which("Xvfb") is None:
        pytest.skip("needs an X server in memory; on Debian and Ubuntu: apt install xvfb")
    ours, theirs = os.pipe()  # the server tells its number when it is ready
    command = ["Xvfb", "-displayfd", str(theirs), "-screen", "0", "1280x860x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[theirs], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        os.close(theirs)
        with os.fdopen(ours) as told:
            number = told.readline().strip()
        yield f":{number}"
        server.terminate()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Golden data, trained checkpoints and probes, kept beside the checkout."""
    folder = CHECKOUT.parent / "shared"
    if not (folder / "goldens" / "index.json").is_file():
        pytest.skip(f"needs the shared test data beside the checkout: {folder} is not there")
    return folder


@pytest.fixture(scope="session")
def demo_path() -> Path:
    """The bundled demonstration model."""
    path = CHECKOUT / "rwkv_cpu" / "data" / "demo.rwkv"
    if not path.is_file():
        pytest.skip("rwkv_cpu/data/demo.rwkv was not made yet (rwkv_cpu/data/README.md says how)")
    return path


@pytest.fixture(scope="session")
def make_pth(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_pth(n_layer=2, n_embd=128, n_vocab=256, n_ffn=0, head_size=64, zeros=0.87, seed=0) → synthetic RWKV-7.

    The same arguments give the same file, made once.
    """
    from benchmarks.synthetic import Shape, tensors, write_pth

    folder = tmp_path_factory.mktemp("checkpoints")

    def make(
        *,
        n_layer: int = 2,
        n_embd: int = 128,
        n_vocab: int = 256,
        n_ffn: int = 0,
        head_size: int = 64,
        zeros: float = 0.87,
        seed: int = 0,
    ) -> Path:
        path = folder / f"L{n_layer}-C{n_embd}-V{n_vocab}-F{n_ffn}-N{head_size}-z{zeros:g}-s{seed}.pth"
        if not path.exists():
            write_pth(path, list(tensors(Shape(n_layer, n_embd, n_vocab, head_size, n_ffn), zeros)), seed)
        return path

    return make


@pytest.fixture(scope="session")
def make_rwkv(make_pth: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_rwkv(format="q8", **as make_pth) → the same as a .rwkv file without a tokenizer."""
    from rwkv_cpu.quantize import quantize

    folder = tmp_path_factory.mktemp("models")

    def make(*, format: str = "q8", **shape: float) -> Path:  # noqa: A002 (its name everywhere)
        source = make_pth(**shape)
        path = folder / f"{source.stem}-{format}.rwkv"
        if not path.exists():
            quantize(source, path, format=format, tokenizer="none")
        return path

    return make
