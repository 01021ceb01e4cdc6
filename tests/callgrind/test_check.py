# SPDX-License-Identifier: Apache-2.0
"""The comparison of instruction counts with their baseline; `make callgrind` runs the counting itself."""

from __future__ import annotations

import json
import re

from tests.callgrind.check import BASELINE, TOLERANCE, compare


def test_more_instructions_than_tolerated_are_reported_and_fewer_are_not() -> None:
    expected = {"a": 1000, "b": 1000, "c": 1000}
    found = {"a": 1000 + round(1000 * TOLERANCE) + 1, "b": 1000 + round(1000 * TOLERANCE), "c": 500}
    assert [line.split(":")[0] for line in compare(found, expected)] == ["a"]


def test_what_is_counted_on_one_side_only_is_reported() -> None:
    assert compare({"new": 1, "same": 1}, {"old": 1, "same": 1}) == [
        "new: not in the baseline",
        "old: in the baseline, but not counted",
    ]


def test_the_baseline_covers_both_paths_and_phases_of_every_model() -> None:
    baselines = json.loads(BASELINE.read_text("utf-8"))
    assert baselines
    for compiler, counts in baselines.items():
        assert re.fullmatch(r"(gcc|clang) \d+", compiler)
        labels = {name.rsplit(" ", 2)[0] for name in counts}
        assert {"demo", "RWKV-4.0 q8", "RWKV-7.0 f32", "RWKV-7a q8"} <= labels
        assert set(counts) == {
            f"{m} {isa} {p}" for m in labels for isa in ("scalar", "avx2") for p in ("prefill", "decode")
        }
        assert min(counts.values()) > 1000
