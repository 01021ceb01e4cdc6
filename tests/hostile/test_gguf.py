# SPDX-License-Identifier: Apache-2.0
"""Damaged and malicious GGUF files: one typed error, little memory."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_cpu.checkpoint import open_checkpoint
from rwkv_cpu.errors import FormatError, RwkvError
from tests import ggml_writer as w

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODEL = w.rwkv7()


def good() -> w.Gguf:
    file = w.gguf_of(MODEL)
    file.set("tokenizer.ggml.model", w.STRING, "rwkv")
    file.set("tokenizer.ggml.tokens", w.ARRAY, (w.STRING, [b"<s>", b"a", b"\\x80"]))
    file.set("tokenizer.ggml.token_type", w.ARRAY, (w.I32, [3, 1, 1]))
    tensor = file.tensor("blk.1.time_mix_key.weight")
    tensor.kind, tensor.raw = w.Q8_0, w.q8_0_blocks(w.C, w.C).tobytes()
    return file


def read_everything(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for key in checkpoint.tensors:
            checkpoint.read(key).tobytes()
        checkpoint.tokenizer  # noqa: B018
        checkpoint.chat_template  # noqa: B018


def refuse(tmp_path: Path, raw: bytes) -> RwkvError:
    """The error that reading *raw* gives, which must come without taking much memory."""
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(RwkvError) as caught:
            read_everything(path)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    return caught.value


def test_the_undamaged_file_is_read(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(good().to_bytes())
    read_everything(path)


@pytest.mark.parametrize("count", [2**60, 2**32, 2**64 - 1, 70000])
@pytest.mark.parametrize("field", ["n_tensors", "n_keys"])
def test_absurd_counts(tmp_path, field, count):
    file = good()
    setattr(file, field, count)
    assert isinstance(refuse(tmp_path, file.to_bytes()), FormatError)


def test_a_string_longer_than_the_file(tmp_path):
    raw = good().to_bytes()
    at = raw.index(b"general.architecture") - 8
    for length in (2**63, 2**40, 255):
        refuse(tmp_path, raw[:at] + struct.pack("<Q", length) + raw[at + 8 :])


@pytest.mark.parametrize("kind", [w.STRING, w.U32, w.U64, w.ARRAY, 77])
def test_an_array_longer_than_the_file(tmp_path, kind):
    raw = good().to_bytes()
    at = raw.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 4
    for count in (2**60, 2**33, 2**21):
        refuse(tmp_path, raw[:at] + struct.pack("<IQ", kind, count) + raw[at + 12 :])


def test_a_token_longer_than_the_file(tmp_path):
    raw = good().to_bytes()
    at = raw.index(b"<s>") - 8
    for length in (2**64 - 1, 2**63, 2**32):
        refuse(tmp_path, raw[:at] + struct.pack("<Q", length) + raw[at + 8 :])


def change(target: str, **fields: object) -> Callable[[w.Gguf], None]:
    def apply(file: w.Gguf) -> None:
        tensor = file.tensor(target)
        for field, content in fields.items():
            setattr(tensor, field, content)

    return apply


HEAD = "output.weight"
DAMAGES = {
    "no dimensions": change(HEAD, sizes=()),
    "five dimensions": change(HEAD, sizes=(w.C, w.V, 1, 1, 1)),
    "a size of zero": change(HEAD, sizes=(w.C, 0)),
    "sizes that overflow": change(HEAD, sizes=(2**33, 2**33, 2**33)),
    "a size of 2^64-1": change(HEAD, sizes=(2**64 - 1, 1)),
    "rows that are no whole blocks": change(HEAD, sizes=(33, w.V), kind=w.Q8_0),
    "an unknown type": change(HEAD, kind=200),
    "an integer type": change(HEAD, kind=26),
    "an offset past the end": change(HEAD, offset=2**62),
    "an offset that wraps": change(HEAD, offset=2**64 - 32),
    "an offset that is not aligned": change(HEAD, offset=36),
    "an overlap": change(HEAD, offset=0),
    "a matrix with one dimension": change(HEAD, sizes=(w.C * w.V,)),
    "a low-rank matrix with one dimension": change("blk.1.time_mix_w1.weight", sizes=(16 * w.C,)),
    "r_k that is no whole number of heads": change("blk.1.time_mix_r_k.weight", sizes=(w.C - 1,)),
    "a fused tensor of five": change("blk.1.time_mix_lerp_fused.weight", sizes=(w.C, 1, 1, 5)),
    "a layer of 99999": change("blk.1.time_mix_r_k.weight", name="blk.99999.time_mix_r_k.weight"),
    "a layer of -1": change("blk.1.time_mix_r_k.weight", name="blk.-1.time_mix_r_k.weight"),
    "a layer of 01": change("blk.1.time_mix_r_k.weight", name="blk.01.time_mix_r_k.weight"),
    "a name twice": change("blk.1.time_mix_r_k.weight", name="blk.0.time_mix_r_k.weight"),
    "a name that is not text": change("blk.1.time_mix_r_k.weight", name="\0\n"),
    "alignment 0": lambda file: file.set("general.alignment", w.U32, 0),
    "alignment 48": lambda file: file.set("general.alignment", w.U32, 48),
    "alignment 2^31": lambda file: file.set("general.alignment", w.U32, 2**31),
    "alignment as text": lambda file: file.set("general.alignment", w.STRING, "32"),
    "head size 0": lambda file: file.set("rwkv7.wkv.head_size", w.U32, 0),
    "head size as truth": lambda file: file.set("rwkv7.wkv.head_size", w.BOOL, True),
    "architecture as number": lambda file: file.set("general.architecture", w.U32, 7),
    "epsilon NaN": lambda file: file.set("rwkv7.attention.layer_norm_epsilon", w.F32_KEY, float("nan")),
    "epsilon as text": lambda file: file.set("rwkv7.attention.layer_norm_epsilon", w.STRING, "1e-5"),
    "no architecture": lambda file: file.keys.pop(0),
    "a key twice": lambda file: file.keys.append(file.keys[0]),
    "a tokenizer without tokens": lambda file: file.set("tokenizer.ggml.tokens", w.U32, 1),
    "no text among the tokens": lambda file: file.set("tokenizer.ggml.tokens", w.ARRAY, (w.STRING, [b"<s>"])),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused(tmp_path, damage):
    file = good()
    damage(file)
    refuse(tmp_path, file.to_bytes())


def test_types_shorter_than_the_tokens_are_no_error(tmp_path):
    file = good()
    file.set("tokenizer.ggml.token_type", w.ARRAY, (w.I32, [3]))
    path = tmp_path / "model.gguf"
    path.write_bytes(file.to_bytes())
    read_everything(path)


def test_every_truncation_is_refused(tmp_path):
    raw = good().to_bytes()
    header = raw.index(b"blk.1.time_mix_lerp_fused.weight") + 100
    for size in [*range(8, header, 61), *range(header, len(raw) - 1, 40009), len(raw) - 1]:
        refuse(tmp_path, raw[:size])


def test_scales_that_leave_float16_when_rescaled_are_refused(tmp_path):
    file = w.gguf_of(w.rwkv6())
    file.set("rwkv6.rescale_every_n_layers", w.U32, 1)
    blocks = w.q8_0_blocks(w.C, w.C)
    blocks[0, :2] = np.array([65504.0], "<f2").view(np.uint8)
    tensor = file.tensor("blk.1.time_mix_output.weight")
    tensor.kind, tensor.raw = w.Q8_0, blocks.tobytes()
    assert "blocks.1.att.output.weight" in str(refuse(tmp_path, file.to_bytes()))


def test_the_bad_files_of_the_goldens(shared, tmp_path):
    folder = shared / "goldens" / "bad"
    files = sorted(folder.glob("*.gguf"))
    assert len(files) >= 10
    for path in files:
        if path.stem.startswith("control"):
            read_everything(path)
        else:
            refuse(tmp_path, path.read_bytes())


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_never_does_anything_but_a_typed_error(tmp_path, data):
    raw = bytearray(good().to_bytes())
    header = bytes(raw).index(b"blk.1.time_mix_lerp_fused.weight") + 100
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header))
        raw[at : at + 8] = data.draw(st.binary(min_size=0, max_size=9))
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(raw)
    with contextlib.suppress(RwkvError):
        read_everything(path)
