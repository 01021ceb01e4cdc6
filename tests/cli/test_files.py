# SPDX-License-Identifier: Apache-2.0
"""rwkv-cpu quantize, info, cache: what they print, and how they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_cpu._version import __version__
from tests.pth_writer import rwkv7_tensors, write_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path):
    """Run rwkv-cpu in a process of its own, in tmp_path."""

    def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = os.environ | {"RWKV_CPU_HOME": str(tmp_path / "home"), "PYTHONIOENCODING": "utf-8"} | environment
        command = [sys.executable, str(ROOT / "cli.py"), *words]
        return subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True, encoding="utf-8", check=False
        )

    return call


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny.pth", rwkv7_tensors())


def test_quantize_prints_sizes_bits_and_time(run, checkpoint: Path, tmp_path: Path) -> None:
    done = run("quantize", "tiny.pth", "--tokenizer", "none")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny-q8.rwkv\n")
    for word in ("RWKV-7", "bits per weight", "seconds", "kB → "):
        assert word in done.stdout
    assert (tmp_path / "tiny-q8.rwkv").is_file()
    again = run("quantize", "tiny.pth", "--tokenizer", "none")
    assert again.returncode == 1
    assert again.stdout == ""
    assert again.stderr == (
        "rwkv-cpu: error: tiny-q8.rwkv: exists already\nhint: Use --force (force=True) to replace it.\n"
    )
    assert run("quantize", "tiny.pth", "--tokenizer", "none", "--force").returncode == 0


def test_quantize_json_and_template(run, checkpoint: Path, tmp_path: Path) -> None:
    words = ["quantize", "tiny.pth", "ü.rwkv", "--format", "f16", "--tokenizer", "none", "--threads", "2", "--json"]
    found = json.loads(run(*words, "--chat-template", '{"name": "mine", "stop": ["x"]}').stdout)
    assert found["target"] == "ü.rwkv"
    assert found["format"] == "f16"
    assert found["target_bytes"] == (tmp_path / "ü.rwkv").stat().st_size
    assert 16 <= found["bits_per_weight"] < 17
    (tmp_path / "template.json").write_text('{"name": "from a file"}')
    assert run(*words, "--force", "--chat-template", "template.json").returncode == 0
    assert b"from a file" in (tmp_path / "ü.rwkv").read_bytes()
    failed = run(*words, "--force", "--chat-template", "no such template")
    assert failed.returncode == 1
    assert "chat template" in failed.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["quantize"], 2, "CHECKPOINT"),
        (["quantize", "tiny.pth", "--format", "q9"], 2, "q9"),
        (["quantize", "tiny.pth", "--threads", "0"], 2, "threads"),
        (["quantize", "missing.pth"], 1, "missing.pth: no such file"),
        (["quantize", "."], 1, "directory"),
        (["quantize", "tiny.pth"], 1, "no tokenizer is known"),
        (["quantize", "tiny.pth", "no/such/place.rwkv", "--tokenizer", "none"], 1, "no directory"),
        (["info", "missing.rwkv"], 1, "missing.rwkv"),
        (["info", "--verify"], 2, "need a FILE"),
        (["info", "tiny.pth", "--verify"], 1, "checkpoint"),
    ],
)
def test_errors_are_two_lines_without_a_traceback(
    run, checkpoint: Path, words: list[str], code: int, said: str
) -> None:
    done = run(*words)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("rwkv-cpu: error: ")
    assert said in done.stderr
    assert 1 <= done.stderr.count("\n") <= 2


def test_info_of_this_machine(run) -> None:
    found = json.loads(run("info", "--json").stdout)
    assert found["version"] == found["engine_version"] == __version__
    assert found["isa"] in {isa["name"] for isa in found["isas"] if isa["usable"]}
    assert found["threads"] >= 1
    forced = run("info", RWKV_CPU_ISA="scalar").stdout
    assert "scalar: RWKV_CPU_ISA" in forced
    wrong = run("info", RWKV_CPU_ISA="mmx")
    assert wrong.returncode == 0
    assert "mmx" in wrong.stdout


def test_info_of_files(run, checkpoint: Path) -> None:
    run("quantize", "tiny.pth", "m.rwkv", "--tokenizer", "none", "--digest")
    text = run("info", "m.rwkv", "--verify", "--tensors").stdout
    for word in ("RWKV-7", "bits/weight", "verified", "blocks.1.ffn.value.weight", "source_sha256"):
        assert word in text
    found = json.loads(run("info", "m.rwkv", "--json", "--verify").stdout)
    assert found["verified_tensors"] > 50
    assert found["state_bytes"] == 2 * (2 * 64 + 64 * 16) * 4
    found = json.loads(run("info", "tiny.pth", "--json", "--tensors").stdout)
    assert found["kind"] == "checkpoint"
    assert found["formats"] == {"f32": len(found["tensors"])}
    assert json.loads(run("info", "demo", "--json").stdout)["tokenizer"] == "sentencepiece"


def test_info_verify_reports_damage(run, checkpoint: Path, tmp_path: Path) -> None:
    run("quantize", "tiny.pth", "m.rwkv", "--tokenizer", "none")
    raw = bytearray((tmp_path / "m.rwkv").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "m.rwkv").write_bytes(bytes(raw))
    done = run("info", "m.rwkv", "--verify")
    assert done.returncode == 1
    assert "have changed since" in done.stderr


def test_cache_list_and_clear(run, checkpoint: Path, tmp_path: Path) -> None:
    from rwkv_cpu import loading

    assert json.loads(run("cache", "--json").stdout)["models"] == []
    before = os.environ.get("RWKV_CPU_HOME")
    os.environ["RWKV_CPU_HOME"] = str(tmp_path / "home")
    try:
        path = loading.resolve(checkpoint)
    finally:
        os.environ.pop("RWKV_CPU_HOME")
        if before is not None:
            os.environ["RWKV_CPU_HOME"] = before
    assert path.name in run("cache", "list").stdout
    assert "1 file," in run("cache").stdout
    freed = json.loads(run("cache", "clear", "--json").stdout)
    assert freed["freed_bytes"] > 0
    assert not path.exists()
