# SPDX-License-Identifier: Apache-2.0
"""Readers of trained checkpoints. They know files and tensors, nothing of models."""

from __future__ import annotations

from rwkv_cpu.checkpoint.base import Checkpoint, TensorMeta, files_of, open_checkpoint, open_container
from rwkv_cpu.checkpoint.recognise import kind_of

__all__ = ["Checkpoint", "TensorMeta", "files_of", "kind_of", "open_checkpoint", "open_container"]
