# SPDX-License-Identifier: Apache-2.0
"""The compiled extension; rwkv_cpu.engine is the only module that imports it."""

from typing import Any

ffi: Any
lib: Any
