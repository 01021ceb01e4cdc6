# SPDX-License-Identifier: Apache-2.0
"""A few seconds of fuzzing for each reader; FUZZ_SECONDS asks for more, `make fuzz` runs for as long as one likes."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz import readers

SECONDS = float(os.environ.get("FUZZ_SECONDS", "4"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits its memory the way Linux does")
@pytest.mark.parametrize("reader", readers.READERS)
def test_damaged_files_give_typed_errors_in_bounded_time_and_memory(reader, tmp_path):
    if reader in ("huggingface", "directory") and find_spec("tokenizers") is None:
        pytest.skip("needs the tokenizers package")
    found = readers.fuzz(reader, SECONDS, artifacts=tmp_path)
    assert not found["failures"], "\n".join(f"{f['what']}\n  {f['file']}" for f in found["failures"])
    assert found["inputs"] > 10
    assert len(found["outcomes"]) > 3, "the damage never gets past the first check"


def test_a_failure_is_found_and_kept(tmp_path, monkeypatch):
    """The harness itself: an error that is none of ours, and a process that dies."""
    for body in ("raise ValueError('not ours')", "import os; os.abort()"):
        script = tmp_path / "readers.py"
        source = Path(readers.__file__).read_text("utf-8")
        patched = source.replace(
            "CHECKOUT = Path(__file__).resolve().parents[2]", f"CHECKOUT = Path({str(readers.CHECKOUT)!r})"
        )
        patched = patched.replace("            self._target.run(self._path)\n", f"            {body}\n", 1)
        script.write_text(patched, "utf-8")
        monkeypatch.setattr(readers, "__file__", str(script))
        found = readers.fuzz("world", 0.2, artifacts=tmp_path / "kept")
        assert found["failures"]
        assert Path(found["failures"][0]["file"]).parent == tmp_path / "kept"
