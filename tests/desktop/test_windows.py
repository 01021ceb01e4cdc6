# SPDX-License-Identifier: Apache-2.0
"""The examples' windows, used with real clicks and keys on a display in memory; see driver.py."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("driver.py")
# A window must be able to repaint this often even on a busy machine; alone it is a few hundredths of a second.
LONGEST_GAP_MS = 500
BUSY_FACTOR = 4
MODULES = {"tk": "_tkinter", "qt": "PySide6"}


def use(kit: str, display: str, home: Path, *more: str) -> dict[str, Any]:
    """What the driver saw. The engine is held to plain C, so that 5,000 tokens take a while."""
    environment = {**os.environ, "DISPLAY": display, "RWKV_CPU_HOME": str(home), "RWKV_CPU_ISA": "scalar"}
    environment.pop("QT_QPA_PLATFORM", None)
    done = subprocess.run(
        [sys.executable, str(DRIVER), kit, *more],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("kit", ["tk", "qt"])
def test_a_window_answers_stops_takes_back_edits_branches_and_never_freezes(
    kit: str, display: str, tmp_path: Path
) -> None:
    if shutil.which("xdotool") is None:
        pytest.skip("needs xdotool for clicks and keys; on Debian and Ubuntu: apt install xdotool")
    if importlib.util.find_spec(MODULES[kit]) is None:
        pytest.skip(
            f"needs {MODULES[kit]}: " + ("pip install PySide6-Essentials" if kit == "qt" else "apt install python3-tk")
        )
    seen = use(kit, display, tmp_path)
    print(json.dumps(seen))
    assert "failed" not in seen
    assert seen["typed"] == "My name is Ada."
    assert seen["answers"][1] == "Your name is Ada."
    assert "tokens/s" in seen["speed"]
    assert seen["while_reading"].startswith("Reading: ")
    assert (seen["after_stop"], seen["turns_after_stop"]) == ("Stopped", 3)
    assert seen["long_tokens"] > 5000
    assert seen["branches"] == ["branch 2", "edit 1", "main"]
    assert seen["beats"] > 100
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    assert seen["longest_gap_ms"] < LONGEST_GAP_MS * (BUSY_FACTOR if busy else 1)
    # The conversation goes on in the next window.
    sessions = list((tmp_path / "sessions").iterdir())
    assert len(sessions) == 1
