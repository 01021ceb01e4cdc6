# SPDX-License-Identifier: Apache-2.0
"""rwkv-cpu eval, as users run it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from rwkv_cpu.cli import main
from rwkv_cpu.modelfile import ModelFile

TEXT = "User: What is 7 plus 5?\n\nAssistant: 7 plus 5 is 12.\n\nUser: Tell me a joke.\n\nAssistant: No.\n\n" * 8
CTRL_C = "\x03"
ESTIMATE = {"value", "low", "high"}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    lines = [
        {"query": "User: What is 7 plus 5?\n\nAssistant: 7 plus 5 is", "choices": ["12.", "3."], "gold": 0},
        {"query": "User: What is 2 plus 1?\n\nAssistant: 2 plus 1 is", "choices": ["12.", "3."], "gold": 1},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def refused(home, capsys):
    """refused("--text", …) → (exit code, what it wrote to stderr); nothing may go to stdout. In this process: quick."""

    def run(*options):
        with pytest.raises(SystemExit) as ended:
            main(["eval", *options])
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "unexpected" not in shown.err
        return ended.value.code, shown.err

    return run


def result(run) -> dict:
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return json.loads(run.stdout)


def test_perplexity_as_text_and_as_json(rwkv, text):
    shown = rwkv("eval", "--text", str(text))
    assert shown.returncode == 0
    assert shown.stderr == ""
    assert "perplexity" in shown.stdout
    found = result(rwkv("eval", "demo", "--text", str(text), "--json"))
    assert set(found) == {"kind", "text", "model", "reference", "divergence"}
    assert (found["kind"], found["text"], found["reference"]) == ("text", "text.txt", None)
    own = found["model"]
    assert own["text_bytes"] == len(TEXT)
    assert own["window"] is None
    for name in ("loss", "perplexity", "bits_per_byte"):
        assert set(own[name]) == ESTIMATE
        assert own[name]["low"] <= own[name]["value"] <= own[name]["high"]
    assert f"{own['perplexity']['value']:.4f}" in shown.stdout
    piped = result(rwkv("eval", "--text", "-", "--json", "--window", "20", "--max-tokens", "100", input=TEXT))
    assert (piped["text"], piped["model"]["window"], piped["model"]["tokens"]) == ("stdin", 20, 100)


def test_a_reference_gives_divergence(rwkv, text):
    found = result(rwkv("eval", "--text", str(text), "--reference", "demo", "--json"))
    assert set(found["divergence"]) == {"tokens", "kl_mean", "kl_median", "kl_99", "top1", "perplexity_ratio"}
    assert found["divergence"]["kl_mean"]["value"] == 0
    assert found["divergence"]["top1"]["value"] == 1
    assert found["reference"]["perplexity"] == found["model"]["perplexity"]
    shown = rwkv("eval", "--text", str(text), "--reference", "demo")
    assert "top-1 agreement" in shown.stdout


def test_a_checkpoint_as_reference_is_opened_exactly(rwkv, checkout, tmp_path):
    golden = checkout / "tests" / "data" / "goldens" / "v7-bf16.pth"
    text = tmp_path / "x.txt"
    text.write_text("no tokenizer", "utf-8")
    run = rwkv("eval", str(golden), "--reference", str(golden), "--text", str(text))
    assert run.returncode == 1
    assert "has no tokenizer" in run.stderr


def test_questions_last_words_and_their_json(rwkv, questions, tmp_path):
    found = result(rwkv("eval", "--jsonl", str(questions), "--reference", "demo", "--json"))
    assert set(found) == {"kind", "items", "model", "reference", "comparison"}
    assert found["kind"] == "multiple_choice"
    assert found["model"]["acc"] | {"stderr": 0} == {**found["model"]["acc"], "value": 1, "stderr": 0}
    assert set(found["model"]["acc_norm"]) == ESTIMATE | {"stderr"}
    assert found["comparison"]["agreement"]["value"] == 1
    shown = rwkv("eval", "--jsonl", str(questions), "--max-items", "1")
    assert "accuracy by byte" in shown.stdout
    words = tmp_path / "words.jsonl"
    words.write_text('{"text": "User: What is 7 plus 5?\\n\\nAssistant: 7 plus 5 is 12."}\n', "utf-8")
    found = result(rwkv("eval", "--jsonl", str(words), "--json"))
    assert found["kind"] == "last_word"
    assert found["model"]["acc"]["value"] == 1
    assert found["model"]["perplexity"]["value"] < 2


def test_recall(rwkv, text):
    found = result(rwkv("eval", "--recall", "--distances", "32,1k", "--seeds", "1", "--json"))
    assert [row["distance"] for row in found["rows"]] == [32, 1024]
    assert found["rows"][0]["answered"]["value"] > found["rows"][1]["answered"]["value"]
    assert {"verdict", "chance", "examples", "facts", "style", "filler", "seeds", "model", "seconds"} <= set(found)
    shown = rwkv("eval", "--recall", "--distances", "32", "--seeds", "1", "--filler", str(text), "--style", "plain")
    assert "plain style, text.txt filler" in shown.stdout


def test_perplexity_by_position(rwkv, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text(TEXT * 8, "utf-8")
    found = result(rwkv("eval", "--text", str(path), "--perplexity-by-position", "--window", "64", "--json"))
    assert (found["kind"], found["short"]) == ("position", 64)
    assert set(found["bins"][-1]) == {"first", "last", "tokens", "loss", "short_loss", "gain", "state_rms"}
    shown = rwkv("eval", "--text", str(path), "--perplexity-by-position")
    assert "state RMS" in shown.stdout


def test_plots_are_written_whole(rwkv, text, questions, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "long.txt").write_text(TEXT * 8, "utf-8")
    plots = {
        "text.png": ("--text", str(text)),
        "kl.svg": ("--text", str(text), "--reference", "demo"),
        "tasks.png": ("--jsonl", str(questions), "--reference", "demo"),
        "recall.png": ("--recall", "--distances", "16,32", "--seeds", "1"),
        "positions.pdf": ("--text", str(tmp_path / "long.txt"), "--perplexity-by-position"),
    }
    begins = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    for name, options in plots.items():
        run = rwkv("eval", *options, "--plot", str(tmp_path / name))
        assert run.returncode == 0, run.stderr
        assert run.stderr == ""
        assert run.stdout.endswith(f"plot: {tmp_path / name}\n")
        assert (tmp_path / name).read_bytes().startswith(begins[(tmp_path / name).suffix])
    assert not list(tmp_path.glob(".*.part"))


def test_without_matplotlib_a_plot_is_refused_before_the_work(home, text, tmp_path):
    code = (
        "import sys\nsys.modules['matplotlib'] = None\nfrom rwkv_cpu.cli import main\n"
        f"main(['eval', '--text', {str(text)!r}, '--plot', {str(tmp_path / 'x.png')!r}])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "pip install 'rwkv-cpu[plot]'" in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "nothing to evaluate on"),
        (("--text", "a", "--recall"), "--text and --recall are given"),
        (("--recall", "--window", "5"), "--window goes with --text"),
        (("--recall", "--reference", "demo"), "--reference goes with --text or --jsonl"),
        (("--text", "a", "--distances", "5"), "--distances goes with --recall"),
        (("--jsonl", "a", "--perplexity-by-position"), "--perplexity-by-position goes with --text"),
        (("--text", "a", "--perplexity-by-position", "--reference", "demo"), "without --reference"),
        (("--recall", "--distances", "5,x"), "--distances 5,x"),
        (("--recall", "--distances", "0"), "--distances 0"),
        (("--text", "a", "--window", "0"), "--window"),
        (("--recall", "--style", "poem"), "--style"),
    ],
)
def test_impossible_options_are_wrong_use(refused, options, says):
    code, shown = refused(*options)
    assert code == 2
    assert says in shown
    assert "hint:" in shown


def test_what_is_wrong_with_files_is_told(refused, text, demo_path, tmp_path, make_rwkv):
    binary, latin, empty = tmp_path / "binary", tmp_path / "latin.txt", tmp_path / "empty.txt"
    binary.write_bytes(b"ab\0c")
    latin.write_bytes("Käse".encode("latin-1"))
    empty.write_bytes(b"")
    other = make_rwkv(format="q8")
    for options, says in [
        (("--text", str(tmp_path / "none.txt")), "no such file"),
        (("--text", str(tmp_path)), "this is a directory"),
        (("--text", str(binary)), "binary file (byte 2 is zero)"),
        (("--text", str(latin)), "not UTF-8 text (byte 1)"),
        (("--text", str(empty)), "the text is empty"),
        (("--text", str(text), "--perplexity-by-position"), "too few"),
        (("--text", str(text), "--reference", str(other)), "vocabulary"),
        (("--jsonl", str(text)), "text.txt, line 1: this is not JSON"),
        (("--text", str(text), "--plot", "x.gif"), "a plot's name ends in .png"),
        (("--text", str(text), "--plot", str(tmp_path / "none" / "x.png")), "no such folder"),
        (("--text", str(text), "--reference", str(tmp_path / "m.rwkv")), "no model called"),
        (("nothing.rwkv", "--text", str(text)), "no model called"),
        ((str(other), "--recall"), "no tokenizer"),
    ]:
        code, shown = refused(*options)
        assert code == 1, options
        assert says in shown, options


def test_weights_that_are_not_finite_are_told(rwkv, text, demo_path, tmp_path):
    """A file damaged after it was made: its scales are NaN."""
    damaged = tmp_path / "damaged.rwkv"
    raw = bytearray(demo_path.read_bytes())
    with ModelFile(demo_path) as file:
        tensor = file.tensors["head.weight"]
        at = file.info.data_offset + tensor.offset
    raw[at + 1024 : at + 1088] = np.full(32, np.nan, np.float16).tobytes()
    damaged.write_bytes(raw)
    for options in (("--text", str(text)), ("--text", str(text), "--reference", "demo"), ("--recall",)):
        run = rwkv("eval", str(damaged), *options)
        assert run.returncode == 1
        assert "not finite" in run.stderr
        assert "Warning" not in run.stderr


@pytest.mark.parametrize("options", [(), ("--perplexity-by-position",), ("--reference", "demo", "--window", "100")])
def test_a_bar_shows_how_far_it_is_and_ctrl_c_ends_it(terminal, tmp_path, options):
    path = tmp_path / "long.txt"
    path.write_text(TEXT * 3000, "utf-8")
    term = terminal("eval", "--text", str(path), *options)
    term.wait_for("long.txt ━")
    term.type(CTRL_C)
    assert term.exit_code() == 130
    assert "Traceback" not in term.raw
    assert "perplexity" not in term.text()


def test_ctrl_c_ends_recall(terminal):
    term = terminal("eval", "--recall", "--distances", "900k")
    term.wait_for("recall ━")
    term.type(CTRL_C)
    assert term.exit_code() == 130
