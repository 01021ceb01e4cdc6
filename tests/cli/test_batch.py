# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu generate --batch``: whole, interrupted, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from rwkv_cpu import CancelToken, Model
from rwkv_cpu.batch import run_batch
from rwkv_cpu.errors import ArgumentError

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = [sys.executable, "-m", "rwkv_cpu", "generate"]


def write(path: Path, lines: list[object]) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def read(path: Path) -> dict[int, dict]:
    """By index; each stands there once."""
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len({entry["index"] for entry in found}) == len(found)
    return {entry["index"]: entry for entry in found}


def test_lines_have_options_ids_and_errors_of_their_own(demo_path: Path, tmp_path: Path):
    source = write(
        tmp_path / "in.jsonl",
        [
            {"id": "a", "prompt": "Once upon a time", "max_tokens": 5},
            {"messages": [{"role": "user", "content": "What is 7 plus 5?"}], "id": 7},
            "no json",
            "",
            {"prompt": "Once", "temperature": -1, "id": "x"},
            {"prompt": "Once", "no_such_option": 1},
            {"nothing": 1},
            {"prompt": "Once upon a time", "max_tokens": 5, "stop": "a"},
        ],
    )
    run = subprocess.run(
        [*COMMAND, str(demo_path), "--batch", str(source), "-o", str(tmp_path / "out"), "--temp", "0", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stderr
    assert json.loads(run.stdout)["done"] == 7
    assert json.loads(run.stdout)["failed"] == 4
    found = read(tmp_path / "out")
    with Model(demo_path) as model:
        assert found[0]["text"] == model.generate("Once upon a time", max_tokens=5, temperature=0).read()
    assert (found[0]["id"], found[1]["id"]) == ("a", 7)
    assert found[0]["generated_tokens"] == 5
    assert found[1]["text"] == "7 plus 5 is 12."
    assert {i for i, entry in found.items() if "error" in entry} == {2, 4, 5, 6}
    assert found[4]["id"] == "x"
    assert "temperature" in found[4]["error"]
    assert "a" not in found[7]["text"]


@pytest.mark.parametrize(
    "options",
    [
        {"state": 5},
        {"grammar": "root ::= x"},
        {"cancel": 1},
        {"params": {}},
        {"stop": 5},
        {"stop": [5]},
        {"max_tokens": "5"},
        {"banned": 5},
        {"dry_breakers": 5},
        {"logit_bias": [1]},
        {"seed": "x"},
    ],
)
def test_a_line_with_a_wrong_option_is_an_error_of_that_line(demo_path: Path, tmp_path: Path, options: dict):
    source = write(tmp_path / "in", [{"prompt": "Once", **options}, {"prompt": "Once", "max_tokens": 2}])
    with Model(demo_path) as model:
        done = run_batch(model, source, tmp_path / "out")
    assert (done.done, done.failed) == (2, 1)
    found = read(tmp_path / "out")
    assert next(iter(options)) in found[0]["error"]
    assert "text" in found[1]


def test_the_texts_are_those_of_one_by_one(demo_path: Path, tmp_path: Path):
    lines = [{"prompt": f"The {i}th time", "seed": i, "max_tokens": 10 + i} for i in range(24)]
    source = write(tmp_path / "in", lines)
    with Model(demo_path) as model:
        passes = model._scheduler._n_passes
        run_batch(model, source, tmp_path / "out", parallel=8)
        together = model._scheduler._n_passes - passes
        found = read(tmp_path / "out")
        for i, line in enumerate(lines):
            assert found[i]["text"] == model.generate(**line).read()
    assert together < sum(entry["generated_tokens"] for entry in found.values()) * 0.75


def test_a_cancelled_run_goes_on_where_it_was(demo_path: Path, tmp_path: Path):
    source = write(tmp_path / "in", [{"prompt": f"Word {i}", "seed": i, "max_tokens": 20} for i in range(30)])
    with Model(demo_path) as model:
        token = CancelToken()
        first = run_batch(
            model,
            source,
            tmp_path / "out",
            parallel=3,
            on_progress=lambda progress: token.cancel() if progress.done == 7 else None,
            cancel=token,
        )
        assert 7 <= first.done < 30
        before = (tmp_path / "out").read_bytes()
        run_batch(model, source, tmp_path / "out")
        assert (tmp_path / "out").read_bytes().startswith(before)
        found = read(tmp_path / "out")
        assert sorted(found) == list(range(30))
        run_batch(model, source, tmp_path / "whole")
    assert {i: e["text"] for i, e in found.items()} == {i: e["text"] for i, e in read(tmp_path / "whole").items()}


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_interrupted_from_outside(demo_path: Path, tmp_path: Path, how: str):
    source = write(tmp_path / "in", [{"prompt": f"Word {i}", "seed": i, "max_tokens": 60} for i in range(300)])
    out = tmp_path / "out"
    command = [*COMMAND, str(demo_path), "--batch", str(source), "-o", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(getattr(signal, how))
    process.communicate(timeout=60)
    assert process.returncode == (130 if how == "SIGINT" else -signal.SIGKILL)
    kept = out.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert 5 <= kept.count(b"\n") < 300
    with out.open("ab") as file:
        file.write(b'{"index": 299, "o')  # as a kill in the middle of writing leaves it
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert out.read_bytes().startswith(kept)
    assert sorted(read(out)) == list(range(300))


def test_what_belongs_to_other_lines_is_not_added_to(demo_path: Path, tmp_path: Path):
    source = write(tmp_path / "in", [{"prompt": "One", "max_tokens": 2}])
    with Model(demo_path) as model:
        run_batch(model, source, tmp_path / "out")
        write(source, [{"prompt": "Two", "max_tokens": 2}])
        before = (tmp_path / "out").read_bytes()
        with pytest.raises(ArgumentError, match="not made from"):
            run_batch(model, source, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == before
        (tmp_path / "notes").write_text("mine\n")
        with pytest.raises(ArgumentError):
            run_batch(model, source, tmp_path / "notes")
        assert (tmp_path / "notes").read_text() == "mine\n"
        with pytest.raises(ArgumentError):
            run_batch(model, source, tmp_path / "new", parallel=0)


def test_wrong_use_is_told(tmp_path: Path):
    for arguments in (["--batch", "x"], ["-o", "x", "-p", "y"], ["--batch", "x", "-o", "y", "-p", "z"]):
        run = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert run.returncode == 2
        assert run.stderr
