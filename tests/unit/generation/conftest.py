# SPDX-License-Identifier: Apache-2.0
"""The demonstration model, opened once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rwkv_cpu import Model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def demo_model(demo_path: Path) -> Iterator[Model]:
    with Model(demo_path) as model:
        yield model
