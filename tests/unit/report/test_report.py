# SPDX-License-Identifier: Apache-2.0
"""The report of a conversion: true figures, one page without a foreign word in its markup, nothing left behind."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from rwkv_cpu import Model
from rwkv_cpu.benchmark import Spread
from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.cli.quantize import command
from rwkv_cpu.errors import Cancelled, RwkvError
from rwkv_cpu.quantize import calibration, quantize
from rwkv_cpu.report import charts, figures, measure, write
from rwkv_cpu.report.page import render
from tests.pth_writer import rwkv7_tensors, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("jinja2")

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} </style></title>'


@pytest.fixture(scope="module", autouse=True)
def little_work() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, samples in ((calibration, "SAMPLES"), (figures, "_SAMPLES")):
            patch.setattr(module, samples, 8)
        patch.setattr(calibration, "SAMPLE_TOKENS", 96)
        patch.setattr(figures, "_SAMPLE_TOKENS", 48)
        patch.setattr(figures, "_SPEED_PROMPT", 8)
        patch.setattr(figures, "_SPEED_TOKENS", 2)
        patch.setattr(figures, "_SPEED_REPEATS", 1)
        patch.setattr("rwkv_cpu.benchmark.runner.READ_BYTES", 1 << 20)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = rwkv7_tensors(n_embd=64, n_ffn=192, n_vocab=320)
    return write_checkpoint(tmp_path_factory.mktemp("report") / "tiny.pth", tensors, "bf16")


@pytest.fixture(scope="module")
def measured(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> figures.Figures:
    made = quantize(checkpoint, tmp_path_factory.mktemp("made") / "m.rwkv", format="q5", tokenizer="none")
    return measure(made, {})


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words += data


def test_figures_are_what_numpy_finds(checkpoint: Path, tmp_path: Path, measured: figures.Figures) -> None:
    """Errors and divergences, by another way than the report's."""
    quantize(checkpoint, tmp_path / "exact.rwkv", format="f32", tokenizer="none")
    chosen, *others = measured.formats
    assert chosen.chosen
    assert [one.name for one in others] == ["q8", "q6", "q4"]  # the file itself is the q5 without calibration
    assert not any(one.chosen for one in others)
    divergences = [others[0].kl_mean, others[1].kl_mean, chosen.kl_mean, others[2].kl_mean]
    assert divergences == sorted(divergences)
    by_name = {one.name: one for one in measured.tensors}
    assert by_name["emb.weight"].format == "q6"
    assert by_name["blocks.1.ffn.key.weight"].bits_per_weight == pytest.approx(5.5, abs=0.1)
    errors = {one.format: one.relative_error for one in measured.tensors if one.cols > 1}
    assert 0 < errors["q8"] < errors["q6"] < errors["q5"] < 0.01
    assert by_name["ln_out.weight"].relative_error == 0
    assert {part.name for part in measured.sensitivity} >= {"emb.weight", "head.weight", "att.key.weight early"}
    assert not measured.measured_for_mixture
    with Model(tmp_path / "exact.rwkv") as exact, Model(measured.made.target) as made:
        tokens = np.arange(1, 300) % 320
        rows = [model.forward(tokens, logits="all")[0].astype(np.float64) for model in (exact, made)]
    logs = [row - np.log(np.exp(row).sum(1, keepdims=True)) for row in rows]
    divergence = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(1).mean()
    assert 0.3 * divergence < chosen.kl_mean < 3 * divergence  # other tokens, the same size


def test_the_sensitivity_of_a_mixture_is_the_one_that_decided(checkpoint: Path, tmp_path: Path) -> None:
    made = quantize(checkpoint, tmp_path / "m.rwkv", bits=6.5, tokenizer="none")
    found = measure(made, {})
    assert [one.name for one in found.formats] == ["mixed", "q8", "q6", "q5", "q4"]
    assert found.measured_for_mixture
    assert found.sensitivity == made.sensitivity
    assert made.sensitivity


def test_record_and_page_say_the_same(measured: figures.Figures, tmp_path: Path) -> None:
    page = write(measured, tmp_path)
    record = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert record["formats"][0]["kl_mean"] == measured.formats[0].kl_mean
    assert record["made"]["bits_per_weight"] == measured.made.bits_per_weight
    assert len(record["tensors"]) == len(measured.tensors)
    words = Page(page.read_text("utf-8")).words
    for expected in ("m.rwkv", charts.small(measured.formats[0].kl_mean), "blocks.1.ffn.value.weight"):
        assert expected in words


def test_a_page_needs_nothing_else(measured: figures.Figures) -> None:
    found = Page(render(measured))
    assert found.tags.count("script") == 1
    assert {name for name, _ in found.attributes} & {"src", "href", "style", "onclick", "onerror"} == set()
    text = render(measured)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    policy = next(value for name, value in found.attributes if name == "content" and "default-src" in (value or ""))
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


def test_hostile_names_stay_text(measured: figures.Figures) -> None:
    """Whatever a file brings: no element, attribute or script more than in an honest page; and the name is shown."""

    def hostile(one: Any) -> Any:
        return dataclasses.replace(one, name=HOSTILE)

    evil = dataclasses.replace(
        measured,
        made=dataclasses.replace(
            measured.made, source=Path("/tmp") / HOSTILE.replace("/", "∕"), calibration=HOSTILE, tokenizer=HOSTILE
        ),
        metadata={HOSTILE: HOSTILE},
        tensors=[dataclasses.replace(one, name=HOSTILE, role=HOSTILE, format=HOSTILE) for one in measured.tensors],
        sensitivity=tuple(hostile(part) for part in measured.sensitivity),
        formats=[hostile(one) for one in measured.formats],
        machine={**measured.machine, "cpu": HOSTILE, "isa": HOSTILE},
    )
    honest, found = Page(render(measured)), Page(render(evil))
    assert set(found.tags) == set(honest.tags)
    assert found.tags.count("script") == 1
    assert found.tags.count("style") == 1
    assert "img" not in found.tags
    assert {name for name, _ in found.attributes} == {name for name, _ in honest.attributes}
    assert HOSTILE in found.words
    assert "49" not in Page(render(dataclasses.replace(measured, metadata={"x": "{{ 7 * 7 }}"}))).words.split()


def test_a_cancelled_report_leaves_the_file_alone(checkpoint: Path, tmp_path: Path) -> None:
    made = quantize(checkpoint, tmp_path / "m.rwkv", tokenizer="none")
    before = made.target.read_bytes()
    for at in (0.0, 0.3, 0.7):
        token, seen = CancelToken(), []

        def progress(done: int, total: int, at: float = at, token: CancelToken = token, seen: Any = seen) -> None:
            seen.append(done)
            if done >= at * total:
                token.cancel()

        with pytest.raises(Cancelled):
            measure(made, {}, on_progress=progress, cancel=token)
        assert seen == sorted(seen)
    assert os.listdir(tmp_path) == ["m.rwkv"]  # noqa: PTH208
    assert made.target.read_bytes() == before


def test_the_command_writes_it_and_says_where(checkpoint: Path, tmp_path: Path) -> None:
    arguments = [str(checkpoint), str(tmp_path / "m.rwkv"), "--tokenizer", "none", "--report", str(tmp_path / "r")]
    result = CliRunner().invoke(command, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["report"] == str(tmp_path / "r" / "index.html")
    assert sorted(os.listdir(tmp_path / "r")) == ["index.html", "report.json"]  # noqa: PTH208
    assert sorted(os.listdir(tmp_path)) == ["m.rwkv", "r"]  # noqa: PTH208


def test_a_directory_that_cannot_be_is_said_before_the_work(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    arguments = [str(checkpoint), str(tmp_path / "m.rwkv"), "--tokenizer", "none", "--report"]
    result = CliRunner().invoke(command, [*arguments, str(tmp_path / "file" / "r")])
    assert isinstance(result.exception, RwkvError)
    assert "file" in str(result.exception)
    assert not (tmp_path / "m.rwkv").exists()


@pytest.mark.parametrize(("number", "text"), [(0.00056, "5.6×10⁻⁴"), (1.0, "1.0×10⁰"), (0.0, "0")])
def test_small_numbers(number: float, text: str) -> None:
    assert charts.small(number) == text


@pytest.mark.parametrize("bits", [4.75, 8.5, 16.0, 32.0])
def test_labels_of_plots_have_room_on_a_phone(measured: figures.Figures, bits: float) -> None:
    """Letters of PHONE_LETTERS, at most 0.65 as wide: labels end inside the plot and do not run into each other."""
    assert f"svg text {{ font-size: {charts.PHONE_LETTERS:g}px; }}" in render(measured)
    formats = [dataclasses.replace(one, bits_per_weight=bits if one.chosen else 6.0) for one in measured.formats]
    for plot in (charts.divergence_over_bits(formats), charts.tails(measured)):
        widths = [0.65 * charts.PHONE_LETTERS * len(tick.label) for tick in plot.x_ticks]
        gaps = [after.at - tick.at for tick, after in itertools.pairwise(plot.x_ticks)]
        assert all(width < gap for width, gap in zip(widths, gaps, strict=False))
        assert len(plot.x_ticks) >= 2
        assert all(0.65 * charts.PHONE_LETTERS * len(tick.label) < plot.left for tick in plot.y_ticks)
        assert plot.y_ticks[-1].at in (plot.top, plot.bottom)  # the axis is labelled to its end


def test_curves_say_what_they_are_when_pointed_at(measured: figures.Figures) -> None:
    curves = charts.tails(measured).curves
    found = Page(render(measured))
    assert curves[-1].text.startswith("this file (q5): half of the tokens above")
    assert {curve.text for curve in curves} <= {value for name, value in found.attributes if name == "data-tip"}


def test_errors_that_are_alike_look_alike(measured: figures.Figures) -> None:
    """Colours go over whole powers of ten, not from the least error to the next."""
    alike = [dataclasses.replace(one, relative_error=2e-5 * (1 + i / 1e4)) for i, one in enumerate(measured.tensors)]
    grid = charts.tensor_grid(alike)
    assert (grid.least, grid.most) == (pytest.approx(1e-5), pytest.approx(1e-4))
    heats = [cell.heat for row in grid.rows for cell in row.cells if cell]
    assert max(heats) - min(heats) < 0.02


def test_a_file_that_is_a_point_of_the_curve_lies_on_it(measured: figures.Figures) -> None:
    plot = charts.divergence_over_bits(measured.formats)
    file = next(point for point in plot.points if point.chosen)
    assert f"{file.x:g} {file.y:g}" in plot.curves[0].path
    calibrated = [dataclasses.replace(one, calibration="default" if one.chosen else None) for one in measured.formats]
    assert f"{file.x:g} {file.y:g}" not in charts.divergence_over_bits(calibrated).curves[0].path


def test_every_class_of_the_page_is_styled(measured: figures.Figures) -> None:
    """And no rule is for a class that no page has, but for those of formats."""
    page = render(measured)
    used = {word for name, value in Page(page).attributes if name == "class" for word in (value or "").split()}
    style = page.partition("<style>")[2].partition("</style>")[0]
    ruled = set(re.findall(r"\.([a-z][\w-]*)(?=[\s.,:{>])", style)) - {"on"}  # set by the script
    names = (*figures.LADDER, "mixed", "chosen", "plain", "spread")
    formats = {f"{kind}-{name}" for kind in "cf" for name in names}
    assert used <= ruled
    assert ruled - used <= formats


def test_plots_bear_odd_figures(measured: figures.Figures) -> None:
    """No divergence at all, one format, a tensor that lost nothing: nothing is divided by zero, all stays inside."""
    zero = [dataclasses.replace(one, kl_mean=0.0, kl_quantiles=[0.0] * 24) for one in measured.formats]
    still = Spread(1.0, 1.0, 1.0)
    zero = [dataclasses.replace(one, decode=still, prefill=still) for one in zero]
    plain = [dataclasses.replace(one, relative_error=0.0) for one in measured.tensors]
    odd = dataclasses.replace(measured, formats=zero, tensors=plain, sensitivity=())
    assert "nan" not in render(odd).lower().replace("tenant", "")
    plot = charts.divergence_over_bits(zero)
    assert all(0 <= point.x <= plot.width and 0 <= point.y <= plot.height for point in plot.points)
