# SPDX-License-Identifier: Apache-2.0
"""The page: a template filled by jinja2 with everything escaped, and a policy that lets no other script run."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import secrets
from importlib import resources
from typing import TYPE_CHECKING

from rwkv_cpu.errors import RwkvError, UnsupportedModelError
from rwkv_cpu.memory import human_bytes
from rwkv_cpu.report import charts

if TYPE_CHECKING:
    from pathlib import Path

    from rwkv_cpu.report.figures import Figures

__all__ = ["PAGE_NAME", "RECORD_NAME", "check_ready", "render", "write"]

PAGE_NAME, RECORD_NAME = "index.html", "report.json"


def check_ready(directory: Path) -> None:
    """Whether a report can be written there, before the work begins; makes the directory.

    Raises: UnsupportedModelError: jinja2 is missing. RwkvError: no such directory can be had.
    """
    _jinja()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RwkvError(f"{directory}: {error.strerror}", hint="Name a directory to put the report into.") from error
    if not os.access(directory, os.W_OK):
        raise RwkvError(f"{directory}: cannot be written to", hint="Name a directory to put the report into.")


def write(figures: Figures, directory: Path) -> Path:
    """Write report.json and the page; returns the page's path. Each appears complete or not at all.

    Raises: RwkvError: the disk is full.
    """
    _replace(directory / RECORD_NAME, json.dumps(figures.to_dict(), indent=1) + "\n")
    _replace(directory / PAGE_NAME, render(figures))
    return directory / PAGE_NAME


def render(figures: Figures) -> str:
    """The page as HTML, with everything in it that it needs."""
    import jinja2
    import markupsafe

    def own(name: str) -> str:
        return (resources.files("rwkv_cpu") / "report" / name).read_text("utf-8")

    script, style = own("page.js"), own("page.css")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    written: str = environment.from_string(own("page.html")).render(
        figures=figures,
        made=figures.made,
        chosen=figures.formats[0],
        curve=charts.divergence_over_bits(figures.formats),
        tails=charts.tails(figures),
        grid=charts.tensor_grid(figures.tensors),
        sensitivity=charts.sensitivity_bars(figures.sensitivity, figures.tensors),
        speed={which: charts.speed_bars(figures.formats, which) for which in ("decode", "prefill")},
        parts=charts.size_parts(figures.tensors, figures.made.target_bytes),
        human_bytes=human_bytes,
        small=charts.small,
        # The only text that is not escaped: the package's own.
        style=markupsafe.Markup(style),  # noqa: S704
        script=markupsafe.Markup(script),  # noqa: S704
        script_hash=_hash(script),
        style_hash=_hash(style),
    )
    return written.lstrip()


def _hash(text: str) -> str:
    """As a content security policy wants it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _jinja() -> None:
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise UnsupportedModelError(
            "a report needs the package jinja2, which is not installed", hint="pip install 'rwkv-cpu[report]'"
        ) from error


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".rwkv_cpu-{secrets.token_hex(8)}.part")
    try:
        part.write_text(text, "utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise RwkvError(f"{path}: cannot be written: {error.strerror}", hint="Is the disk full?") from error
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
