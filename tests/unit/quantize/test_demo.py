# SPDX-License-Identifier: Apache-2.0
"""The bundled model is what its recipe says."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from click.testing import CliRunner

from rwkv_cpu.cli.quantize import command
from rwkv_cpu.describe import describe_file, verify_file
from rwkv_cpu.places import bundled_model

if TYPE_CHECKING:
    from pathlib import Path


def test_the_bundled_model_is_whole() -> None:
    about = describe_file(bundled_model())
    assert about["architecture"] == "RWKV-7"
    assert about["tokenizer"] == "sentencepiece"
    assert verify_file(bundled_model()) > 100


def test_the_written_command_gives_the_same_bytes(shared: Path, tmp_path: Path) -> None:
    recipe = bundled_model().with_name("README.md").read_text("utf-8")
    found = re.search(r"^ {4}rwkv-cpu quantize (.*\\\n.*)$", recipe, re.MULTILINE)
    assert found is not None
    words = shlex.split(found[1].replace("\\\n", " "))
    words[0] = words[0].replace("../shared", str(shared))
    words[1] = str(tmp_path / "demo.rwkv")
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "demo.rwkv").read_bytes() == bundled_model().read_bytes()
