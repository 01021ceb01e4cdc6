# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import pytest

from rwkv_cpu import memory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and control groups are Linux")


def forecast(available, weights=1_000_000_000):
    return memory.MemoryForecast(weights, 0, available, "machine")


def test_a_model_that_fits_gives_no_warning():
    assert not forecast(2_000_000_000).would_swap
    assert forecast(2_000_000_000).warning == ""
    assert forecast(2_000_000_000).hint == ""


def test_a_model_that_does_not_fit_is_named_with_both_figures():
    assert forecast(500_000_000).would_swap
    assert "1.0 GB" in forecast(500_000_000).warning
    assert "500 MB" in forecast(500_000_000).warning
    assert forecast(500_000_000).hint


def test_an_unknown_system_gives_no_warning():
    assert not forecast(None).would_swap


def test_a_checkpoint_is_forecast_as_what_it_will_be_converted_to(tmp_path):
    checkpoint = tmp_path / "x.pth"
    checkpoint.write_bytes(b"\0" * 160_000)
    sizes = {
        f: memory.forecast_file(checkpoint, format=f).weights_bytes for f in ("q4", "q5", "q6", "q8", "f16", "f32")
    }
    assert 45_000 < sizes["q4"] < sizes["q5"] < sizes["q6"] < 80_000
    assert 80_000 < sizes["q8"] < 100_000 < 160_000 <= sizes["f16"] < 170_000 < 320_000 <= sizes["f32"]


def test_a_model_file_is_forecast_at_its_size(tmp_path):
    file = tmp_path / "x.rwkv"
    file.write_bytes(b"\0" * 1234)
    assert memory.forecast_file(file).weights_bytes == 1234


@linux
def test_this_machine_says_what_is_available_and_used():
    assert memory.available_bytes() > 1_000_000
    assert memory.resident_bytes() > 1_000_000


@linux
def test_the_tightest_group_limits_and_cached_files_count_as_free(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/outer/inner\n")
    for folder, limit, used, cached in (("outer", "6000", 5000, 1000), ("outer/inner", "max", 4000, 500)):
        (groups / folder).mkdir(parents=True)
        (groups / folder / "memory.max").write_text(limit + "\n")
        (groups / folder / "memory.current").write_text(f"{used}\n")
        (groups / folder / "memory.stat").write_text(f"anon 1\nfile {cached}\n")
    assert memory._available(proc, groups) == (2000, "container")


@linux
def test_without_limits_the_machine_counts(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemAvailable:    8000 kB\n")
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    assert memory._available(tmp_path, tmp_path / "none") == (8000 * 1024, "machine")
    assert memory._available(tmp_path / "none", tmp_path) == (None, "machine")


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1234, "1.2 kB"),
        (123456, "123 kB"),
        (4_900_000, "4.9 MB"),
        (999_600, "1.0 MB"),
        (7_900_000_000, "7.9 GB"),
    ],
)
def test_sizes_read_well(n, text):
    assert memory.human_bytes(n) == text
