# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' own code: what is counted, planned and written. Nothing here times anything."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks import compare, context, neighbour, quality, synthetic, tables
from benchmarks.compare import OURS, PEER, TORCH, Program
from benchmarks.models import BITS, EQUAL, GGUF_BITS, Files, Weights
from benchmarks.protocol import Worker, WorkerError, serve
from rwkv_cpu import quantize

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = synthetic.Shape(n_layer=2, n_embd=128, n_vocab=256)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    synthetic.write_pth(folder / "tiny.pth", list(synthetic.tensors(SHAPE, 0.5)))
    quantize.quantize(folder / "tiny.pth", folder / "tiny-q8.rwkv", tokenizer="none")
    return folder


# ------------------------------------------------------------------------------------- sizes and files


@pytest.mark.parametrize(
    ("name", "layers", "width", "parameters"),
    [
        ("0.1B", 12, 768, 0.19e9),
        ("0.4B", 24, 1024, 0.45e9),
        ("1.5B", 24, 2048, 1.53e9),
        ("2.9B", 32, 2560, 2.95e9),
        ("7.2B", 32, 4096, 7.20e9),
    ],
)
def test_sizes_are_those_of_the_released_models(name, layers, width, parameters):
    shape = synthetic.SIZES[name]
    assert (shape.n_layer, shape.n_embd, shape.n_vocab, shape.ffn) == (layers, width, 65536, 4 * width)
    assert sum(tensor.size for tensor in synthetic.tensors(shape)) == pytest.approx(parameters, rel=0.02)


def test_a_tensor_is_generated_in_blocks_of_bounded_size():
    largest = max(synthetic.tensors(synthetic.SIZES["7.2B"]), key=lambda tensor: tensor.size)
    blocks = largest.blocks(0)
    assert len(next(blocks)) == synthetic.BLOCK_VALUES < largest.size


def test_files_are_named_by_weights_and_format_and_not_made_twice(tmp_path):
    weights, files = Weights("0.4B", 87.0), Files(tmp_path, "python")
    assert weights.stem == "synthetic-0.4B-zeros87"
    for name in ("synthetic-0.4B-zeros87.pth", "synthetic-0.4B-zeros87-q8.rwkv", "synthetic-0.4B-zeros87-q4_k.gguf"):
        (tmp_path / name).write_bytes(b"here")
    assert files.checkpoint(weights).read_bytes() == b"here"
    assert files.ours(weights, "q8").read_bytes() == b"here"
    assert files.gguf(weights, "q4_k").read_bytes() == b"here"
    real = Weights("model", None, tmp_path / "model.pth")
    assert files.checkpoint(real) == tmp_path / "model.pth"


def test_equal_formats_have_equal_bits():
    for ours, theirs in EQUAL.items():
        assert theirs in GGUF_BITS
        assert BITS[theirs] == pytest.approx(BITS[ours], abs=0.07)


# --------------------------------------------------------------------------------- programs that fit


def program(tmp_path: Path, family: str, name: str, size: int) -> Program:
    path = tmp_path / f"{family}-{name}"
    with path.open("wb") as file:
        file.truncate(size)
    return Program(family, name, path, "python")


def test_programs_that_do_not_fit_together_run_in_groups_and_pairs_stay_together(tmp_path):
    gb = 10**9
    q8, q8_0 = program(tmp_path, OURS, "q8", 2 * gb), program(tmp_path, PEER, "q8_0", 2 * gb)
    q4, q4_0 = program(tmp_path, OURS, "q4", gb), program(tmp_path, PEER, "q4_0", gb)
    torch = program(tmp_path, TORCH, "fp32", 4 * gb)
    everything = [q8, q8_0, q4, q4_0, torch]
    assert compare.groups_that_fit(everything, 100) == ([everything], [])
    groups, left_out = compare.groups_that_fit(everything, 5)
    assert groups == [[q8, q8_0], [q4, q4_0]]
    assert len(left_out) == 1
    assert left_out[0].startswith("rwkv fp32: 8.8 GB")
    assert compare.groups_that_fit(everything, 1)[0] == []


# ------------------------------------------------------------------------------------------- tables


def test_numbers_have_three_digits_and_no_exponent():
    assert [tables.number(value) for value in (1234.5, 99.96, 12.34, 1.234, 0.01)] == [
        *("1,234", "100.0", "12.3", "1.23", "0.01")
    ]


def run_of(size="0.4B", zeros=87.0):
    about = {
        "rwkv_cpu q8": {"family": OURS, "format": "q8", "multiply_adds": 10**9},
        "llama.cpp q8_0": {"family": PEER, "format": "q8_0"},
        "llama.cpp q4_0": {"family": PEER, "format": "q4_0"},
    }
    decode = {"seconds": 1, "bytes_per_token": 2e8, "zeros": 0.88, "read_gbs": 40.0}
    found = {
        "decode": {
            "rwkv_cpu q8": [{**decode, "rate": 100.0}, {**decode, "rate": 120.0}, {**decode, "rate": 110.0}],
            "llama.cpp q8_0": [{"rate": 50.0}, {"rate": 60.0}, {"rate": 40.0}],
        },
        "prefill": {
            "rwkv_cpu q8": [{"rate": 200.0}] * 3,
            "llama.cpp q8_0": [{"rate": 50.0}] * 3,
            "llama.cpp q4_0": [{"rate": 80.0}] * 3,
        },
        "batch": {"rwkv_cpu q8": [{"rate": 330.0}] * 3},
    }
    group = compare.summarise(found, about, [0.8, 0.8, 0.8])
    return {"size": size, "zeros": zeros, "label": "0.4B, 87 % zeros", "left_out": ["x: no room"], "groups": [group]}


def test_ratios_are_taken_within_a_round():
    found = {(one["work"], one["peer"]): one for one in tables.ratios(run_of())}
    decode = found["decode", "llama.cpp q8_0"]
    assert decode["ratio"] == {"median": 2.0, "min": 2.0, "max": 2.75}
    assert decode["target"] == 2.0
    assert found["prefill", "llama.cpp q8_0"]["ratio"]["median"] == 4.0
    fastest = found["prefill, fastest", "llama.cpp q4_0"]
    assert (fastest["ratio"]["median"], fastest["target"]) == (2.5, 3.0)
    assert found["8 at once", "rwkv_cpu q8, one"]["ratio"]["median"] == 3.0


def test_shares_of_the_limits():
    group = run_of()["groups"][0]
    decode = group["work"]["decode"]["rwkv_cpu q8"]
    assert decode["gbs"]["median"] == pytest.approx(22.0)
    assert decode["share"]["median"] == pytest.approx(0.55)
    assert group["work"]["prefill"]["rwkv_cpu q8"]["share"]["median"] == pytest.approx(2 * 1e9 * 200 / 0.8e12)
    assert "share" not in group["work"]["prefill"]["llama.cpp q8_0"]


@pytest.mark.parametrize(
    ("work", "size", "zeros", "wanted"),
    [
        *[("decode", "0.1B", 87, 2.0), ("decode", "0.4B", 0, 1.5), ("decode", "1.5B", 87, 1.6)],
        *[("decode", "1.5B", 0, 1.25), ("decode", "0.4B", 50, None), ("decode", "demo", None, None)],
        ("prefill", "7.2B", 87, 5.0),
    ],
)
def test_targets_are_the_promised_ones(work, size, zeros, wanted):
    assert tables.target(work, {"size": size, "zeros": zeros}) == wanted


def test_the_report_has_a_line_per_program_and_says_what_did_not_run():
    about = {"cpu": "a CPU", "cores": 2, "load_average": 0.1, "commit": "abc"}
    settings = {"threads": 2, "prompt": 512, "tokens": 32, "rounds": 3}
    text = tables.comparison({"machine": about, "settings": settings, "runs": [run_of()]})
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines[:5]} == {lines[0].count("|")}
    assert "| rwkv_cpu q8 | 8.5 | 110 (100 … 120) | 22.0 (20.0 … 24.0) | 55 % | 88 % |" in text
    assert "**2.00× (2.00 … 2.75)** | ≥ 2× |" in text
    assert "Not run: x: no room" in text
    assert "int8 peak 0.80" in text


def test_plots_are_written_and_are_the_same_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import plots

    about, settings = {"cpu": "a CPU"}, {"threads": 2}
    result = {"machine": about, "settings": settings, "runs": [run_of()]}
    first = [path.read_bytes() for path in plots.comparison(result, tmp_path / "a")]
    assert first == [path.read_bytes() for path in plots.comparison(result, tmp_path / "b")]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["batch.svg", "decode.svg", "prefill.svg"]
    assert b"rwkv_cpu q8" in first[0]


def test_quantisations_are_plotted_from_what_was_measured(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    rows = [("q4", 4.75, 4e-3), ("q4 --no-calibration", 4.75, 6e-3), ("--bits 5.6", 5.6, 1e-3), ("Q4_0", 4.76, 1e-2)]
    measured = [{"name": name, "bits_per_weight": bits, "kl": kl} for name, bits, kl in rows]
    file, plot = tmp_path / "a-model.json", tmp_path / "plot.svg"
    file.write_text(json.dumps(measured), "utf-8")
    assert quality.main(["--render", str(file), "--plot", str(plot)]) == 0
    drawn = plot.read_text("utf-8")
    assert all(f">{name}</text>" in drawn for name in ("a-model", "q4", "Q4_0"))
    assert ">--bits 5.6</text>" not in drawn
    for wrong in ([], ["--plot", str(plot)], ["--render", str(file)]):
        with pytest.raises(SystemExit):
            quality.main(wrong)
    assert "belong together" in capsys.readouterr().err


# ------------------------------------------------------------------------- conversations, neighbours


def test_a_transformers_cache_grows_with_the_conversation():
    shape = context.Transformer(24, 1024)
    assert shape.cache_bytes(1) == 2 * 2 * 24 * 1024
    assert shape.cache_bytes(1_000_000) == 10**6 * shape.cache_bytes(1)
    assert shape.weights == pytest.approx(24 * 12 * 1024**2, rel=0.01)
    at_once = shape.seconds_at_best(0, 8.5, 1e9)
    assert at_once == pytest.approx(shape.weights * 8.5 / 8 / 1e9)
    assert shape.seconds_at_best(1000, 8.5, 1e9) - at_once == pytest.approx(1000 * shape.cache_bytes(1) / 1e9)


def test_a_neighbours_toll_is_a_share_of_the_quiet_thread():
    rates = {
        "1 thread": {"decode": [10.0, 20.0, 30.0], "prefill": [100.0] * 3},
        "busy": {"decode": [9.0, 14.0, 15.0], "prefill": [80.0] * 3},
    }
    quiet, busy = neighbour.summarise(rates, "1 thread")
    assert quiet["decode"]["share"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert busy["decode"]["share"] == {"median": 0.7, "min": 0.5, "max": 0.9}
    assert busy["prefill"]["share"]["median"] == 0.8


# ------------------------------------------------------------------------------------------ workers


def test_a_worker_answers_each_task_and_refuses_unknown_ones():
    sink = io.StringIO()
    source = io.StringIO('{"do": "double", "x": 4}\n{"do": "halve", "x": 4}\n')
    serve({"name": "toy"}, {"double": lambda x: {"x": 2 * x}}, source, sink)
    answers = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert answers == [{"name": "toy", "tasks": ["double"]}, {"x": 8}, {"error": "no task 'halve'"}]


def test_our_worker_does_its_tasks_on_a_tiny_model(tiny):
    worker = Worker(sys.executable, "worker_ours.py", tiny / "tiny-q8.rwkv", 1, 64)
    try:
        assert worker.about["n_vocab"] == SHAPE.n_vocab
        assert worker.can("decode")
        assert not worker.can("zeros")
        assert worker.run("prefill", tokens=[1, 2, 3])["seconds"] > 0
        decode = worker.run("decode", prompt=[1, 2], tokens=[3, 4])
        assert 0.3 < decode["zeros"] < 0.8
        assert decode["bytes_per_token"] > 0
        assert worker.run("batch", prompt=[1], sequences=3, steps=2)["seconds"] > 0
        assert worker.run("tokenize", text="hello")["ids"] == []
        with pytest.raises(WorkerError, match="no task 'fly'"):
            worker.run("fly")
    finally:
        worker.close()


def test_a_worker_that_cannot_start_is_an_error(tmp_path):
    with pytest.raises(WorkerError, match="ended with"):
        Worker(sys.executable, "worker_ours.py", tmp_path / "none.rwkv", 1, 64)


def test_first_token_mode_answers_once(tiny):
    worker = Worker(sys.executable, "worker_ours.py", tiny / "tiny-q8.rwkv", 1, 64, "--first-token")
    worker.close()
    assert 0 <= worker.about["token"] < SHAPE.n_vocab


def test_llama_cpp_reads_the_tiny_model_and_does_its_tasks(tiny):
    python = os.environ.get("RWKV_CPU_PEER_PYTHON")
    if not python:
        pytest.skip("RWKV_CPU_PEER_PYTHON names no interpreter with llama-cpp-python and gguf")
    path = Files(tiny, python).gguf(Weights("tiny", None, tiny / "tiny.pth"), "q8_0")
    worker = Worker(python, "worker_llama_cpp.py", path, 1, 64)
    try:
        assert worker.run("prefill", tokens=[1, 2, 3])["seconds"] > 0
        assert worker.run("decode", prompt=[1, 2], tokens=[3, 4])["seconds"] > 0
        assert worker.run("batch", prompt=[1], sequences=3, steps=2)["seconds"] > 0
    finally:
        worker.close()
