# SPDX-License-Identifier: Apache-2.0
"""Every kernel on every instruction set: exact against numpy where it is integer, the same bits as scalar elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rwkv_cpu import engine
from rwkv_cpu.errors import ArgumentError, NonFiniteError

GUARD = 64
COLS = [1, 31, 32, 33, 64, 95, 96, 100, 257, 1024]


class Guarded:
    """An array with guard bytes on both sides, so that a write outside it shows."""

    def __init__(self, ffi: Any, shape: tuple[int, ...] | int, dtype: Any, skip: int = 0) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.full(size + 2 * GUARD + 64 + skip, 0xA5, np.uint8)
        start = -raw.ctypes.data % 64 + GUARD + skip
        self._raw, self._inside = raw, slice(start, start + size)
        self.array = raw[self._inside].view(dtype).reshape(shape)
        self.array[...] = 0
        self.pointer = ffi.from_buffer(
            {"f": "float[]", "i": "int32_t[]", "u": "uint8_t[]"}[np.dtype(dtype).kind]
            if np.dtype(dtype).itemsize != 1 or np.dtype(dtype).kind == "u"
            else "int8_t[]",
            self.array,
            require_writable=True,
        )
        if np.dtype(dtype) == np.uint32:
            self.pointer = ffi.cast("uint32_t *", self.pointer)

    def check(self) -> None:
        """Nothing outside was written."""
        outside = np.ones(self._raw.size, bool)
        outside[self._inside] = False
        assert (self._raw[outside] == 0xA5).all()


class Input:
    """Activations for q8 products, quantised by the kernels under test."""

    def __init__(self, inner: Any, kernels: Any, x: np.ndarray, parts: int = 1, at_once: int = 3) -> None:
        ffi = inner.ffi
        tokens, cols = x.shape
        self.groups = -(-cols // 64) * 2
        self.columns = tokens * parts
        self.values = Guarded(ffi, self.groups * 32 * self.columns, np.int8)
        self.scales = Guarded(ffi, self.groups * self.columns * 16, np.uint8)
        self.raw = ffi.new("rwkvc_q8_input *")
        self.raw.values = self.values.pointer
        self.raw.scales = ffi.cast("rwkvc_q8_scale *", self.scales.pointer)
        self.nonzero = Guarded(ffi, self.groups * self.columns * 64, np.uint8)
        self.counts = Guarded(ffi, self.groups * self.columns, np.uint8)
        if parts == 1:
            self.raw.nonzero = ffi.cast("rwkvc_sparse_group *", self.nonzero.pointer)
            self.raw.counts = self.counts.pointer
        self.raw.groups, self.raw.columns, self.raw.tile = self.groups, self.columns, kernels.q8_tile
        self.tile = int(kernels.q8_tile)
        x = np.ascontiguousarray(x, np.float32)
        for token in range(0, tokens, at_once):  # any tokens and groups at a time
            last = min(token + at_once, tokens)
            for group in range(0, self.groups, 4):
                at = ffi.from_buffer("float[]", x[token:]) + min(32 * group, cols)
                n = min(4, self.groups - group)
                kernels.q8_quantise(at, cols, token, last, group, n, cols, parts, self.raw)
        for guarded in (self.values, self.scales, self.nonzero, self.counts):
            guarded.check()

    def column(self, c: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Integers [groups * 32], scales and offsets [groups] of one column, found by the documented layout.

        The scale is 2^e * mantissa, where unit = 1.5 * 2^(23 + e); the offset is what begin has beyond unit's bits.
        """
        base = c // self.tile * self.tile
        n, t = min(self.tile, self.columns - base), c % self.tile
        per = self.groups * 32
        values = self.values.array[base * per : (base + n) * per].reshape(self.groups, 8, n, 4)[:, :, t].reshape(-1)
        fields = self.scales.array.view([("begin", "i4"), ("unit", "f4"), ("mantissa", "f4"), ("quarter", "u4")])
        found = fields[base * self.groups : (base + n) * self.groups].reshape(self.groups, n)[:, t]
        assert np.array_equal(found["mantissa"], 1 + found["quarter"] / np.float32(4))
        assert (found["quarter"] < 4).all()
        scales = found["unit"] / np.float32(1.5 * 2**23) * found["mantissa"]
        offsets = found["begin"] - np.ascontiguousarray(found["unit"]).view(np.int32)
        return values.astype(np.int64), scales, offsets


BITS = {engine.FORMAT_Q8: 8, engine.FORMAT_Q6: 6, engine.FORMAT_Q5: 5, engine.FORMAT_Q4: 4}
INTEGERS = [pytest.param(fmt, id=engine.format_name(fmt)) for fmt in BITS]
BOOK = np.array([-128, -101, -77, -60, -44, -30, -17, -5, 0, 13, 25, 39, 55, 74, 99, 127], np.int8)


def aligned(size: int) -> np.ndarray:
    raw = np.zeros(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size]


def tensor(kind: int, fmt: int, rows: int, cols: int) -> engine.TensorInfo:
    return engine.TensorInfo("w", kind, fmt, None, (rows, cols), False, rows, cols)


def packed(weights: np.ndarray, kind: int, fmt: int = engine.FORMAT_Q8) -> tuple[engine.TensorInfo, np.ndarray]:
    info = tensor(kind, fmt, *weights.shape)
    buffer = aligned(engine.packed_bytes(info))
    engine.pack(info, np.ascontiguousarray(weights, np.float32), "f32", 0, engine.packed_panels(info), buffer)
    return info, buffer


class Weights:
    """Random integers of a format, with scales of a power of two: products and their sums are exact in f32.

    integers, stored: int64 [rows, cols], as they are multiplied and as they are packed; scales f32 [rows, groups].
    """

    def __init__(self, rng: np.random.Generator, kind: int, fmt: int, rows: int, cols: int, *, scaled: bool) -> None:
        self.bits = BITS[fmt]
        half = 1 << (self.bits - 1)
        groups = -(-cols // 32)
        self.stored = rng.integers(-half, half, (rows, cols)).astype(np.int8)
        self.book = BOOK if self.bits == 4 else None
        self.integers = (BOOK[self.stored + 8] if self.bits == 4 else self.stored).astype(np.int64)
        self.scales = (2.0 ** rng.integers(-3, 4, (rows, groups)) if scaled else np.ones((rows, groups))).astype("f4")
        self.info = tensor(kind, fmt, rows, cols)
        self.buffer = aligned(engine.packed_bytes(self.info))
        scales = self.scales.astype(np.float16)
        engine.pack_integers(self.info, self.stored, scales, 0, engine.packed_panels(self.info), self.buffer, self.book)

    @property
    def values(self) -> np.ndarray:
        """f64 [rows, cols]"""
        return self.integers * np.repeat(self.scales, 32, axis=1)[:, : self.info.cols].astype(float)

    def pointers(self, ffi: Any) -> tuple[Any, Any]:
        """Weights and book, as kernels take them."""
        header = 64 if self.bits == 4 else 0
        weights = ffi.from_buffer("uint8_t[]", self.buffer[header:])
        return weights, ffi.from_buffer("uint8_t[]", self.buffer) if header else ffi.NULL


# ---------------------------------------------------------------------------------------- integers


@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("parts", [1, 2])
def test_quantised_activations_equal_numpy(inner: Any, kernels: Any, cols: int, parts: int) -> None:
    rng = np.random.default_rng(cols)
    x = (rng.standard_normal((5, cols)) * 10.0 ** rng.integers(-3, 4, (5, 1))).astype(np.float32)
    x[1, :] = 0
    if cols >= 64:
        x[2, 32:64] = 0
    got = Input(inner, kernels, x, parts)
    padded = np.zeros((5, got.groups * 32), np.float32)
    padded[:, :cols] = x
    for t in range(5):
        groups = padded[t].reshape(-1, 32)
        largest = np.abs(groups).max(1)
        mantissa, exponent = np.frexp(np.where(largest > 0, largest / np.float32(127), 1))  # mantissa in [0.5, 1)
        scale = (np.ceil(mantissa * 8) / 8 * 2.0**exponent).astype(np.float32)
        q = np.rint(np.clip(groups * (1 / scale)[:, None], -127, 127))
        values, scales, offsets = got.column(t * parts)
        assert np.array_equal(values, q.reshape(-1))
        assert np.array_equal(scales, scale)
        assert np.array_equal(offsets, -128 * q.sum(1))
        if parts == 2:
            fine, fine_scales, _ = got.column(2 * t + 1)
            whole = values.reshape(-1, 32) * scales[:, None].astype(float)
            whole += fine.reshape(-1, 32) * fine_scales[:, None].astype(float)
            # a rest of half a step is 128 finer ones, of which 127 can be told
            assert np.abs(whole - groups).max(initial=0) <= scale.max() / 256 * 1.01


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e37])
def test_activations_that_no_scale_holds_show_in_every_product(inner: Any, kernels: Any, bad: float) -> None:
    x = np.zeros((2, 64), np.float32)
    x[1, 40] = bad
    weights = Weights(np.random.default_rng(0), engine.KIND_MATRIX, engine.FORMAT_Q8, 16, 64, scaled=True)
    found = products(inner, kernels, engine.FORMAT_Q8, weights, Input(inner, kernels, x))
    assert (found[0] == 0).all()
    assert np.isnan(found[1]).all()


def products(inner: Any, table: Any, fmt: int, weights: Weights, acts: Input) -> np.ndarray:
    """f32 [columns, 16] of a panel: as it is while there are few columns, unpacked otherwise."""
    ffi, multiply = inner.ffi, table.panel[fmt]
    panel, book = weights.pointers(ffi)
    if fmt != engine.FORMAT_Q8 and acts.columns > 4:
        panels = Guarded(ffi, (acts.groups // 2, 1088), np.uint8)
        table.unpack[fmt](panel, book, acts.groups // 2, panels.pointer)
        panels.check()
        panel, book, multiply = panels.pointer, ffi.NULL, table.unpacked[fmt]
    quarters = ffi.NULL
    if acts.columns > acts.tile:
        guarded = Guarded(ffi, (acts.groups, 4, 16), np.float32)
        table.quarters(panel, acts.groups // 2, guarded.pointer)
        guarded.check()
        quarters = guarded.pointer
    found = []
    for first in range(0, acts.columns, acts.tile):
        n = min(acts.tile, acts.columns - first)
        out = Guarded(ffi, (n, 16), np.float32)
        multiply(panel, book, quarters, acts.raw, first, n, out.pointer)
        out.check()
        found.append(out.array)
    return np.concatenate(found)


@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 12, 13, 25])
def test_integer_products_equal_numpy_exactly(inner: Any, kernels: Any, fmt: int, cols: int, tokens: int) -> None:
    """Scales that are powers of two: the kernel's result is exact."""
    rng = np.random.default_rng(tokens * 1000 + cols)
    weights = Weights(rng, engine.KIND_MATRIX, fmt, 16, cols, scaled=True)
    x = rng.integers(-15, 16, (tokens, cols)).astype(np.float32)
    x[:, ::32] = -127
    acts = Input(inner, kernels, x)
    assert np.array_equal(products(inner, kernels, fmt, weights, acts), x @ weights.values.T)


@pytest.mark.parametrize("extreme", [127, -127])
def test_extreme_products_do_not_saturate(inner: Any, kernels: Any, extreme: int) -> None:
    weights, x = np.full((16, 64), extreme, np.float32), np.full((1, 64), -127, np.float32)
    _, buffer = packed(weights, engine.KIND_MATRIX)
    out = Guarded(inner.ffi, 16, np.float32)
    acts = Input(inner, kernels, x)
    panel = inner.ffi.from_buffer("uint8_t[]", buffer)
    kernels.panel[engine.FORMAT_Q8](panel, inner.ffi.NULL, inner.ffi.NULL, acts.raw, 0, 1, out.pointer)
    assert (out.array == 64 * extreme * -127).all()


def extreme(kind: int, fmt: int, rows: int, stored: str) -> tuple[Weights, int]:
    """[rows, 64] of one panel, all the least or the most that the format holds, with scales of 1; and that integer."""
    weights = Weights(np.random.default_rng(0), kind, fmt, rows, 64, scaled=False)
    half = 1 << (weights.bits - 1)
    weights.stored[...] = -half if stored == "least" else half - 1
    weights.buffer[...] = 0
    scales = np.ones((rows, 2), np.float16)
    engine.pack_integers(weights.info, weights.stored, scales, 0, 1, weights.buffer, weights.book)
    return weights, int(BOOK[weights.stored[0, 0] + 8]) if weights.bits == 4 else int(weights.stored[0, 0])


@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize("stored", ["least", "most"])
@pytest.mark.parametrize("activation", [-127, 127])
@pytest.mark.parametrize("tokens", [1, 5])
def test_extreme_integers_do_not_saturate(
    inner: Any, kernels: Any, fmt: int, stored: str, activation: int, tokens: int
) -> None:
    """Also -128, which GGML's blocks and books may hold."""
    weights, integer = extreme(engine.KIND_MATRIX, fmt, 16, stored)
    acts = Input(inner, kernels, np.full((tokens, 64), activation, np.float32))
    assert (products(inner, kernels, fmt, weights, acts) == 64 * integer * activation).all()


@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize("stored", ["least", "most"])
@pytest.mark.parametrize("activation", [-127, 127])
@pytest.mark.parametrize("tokens", [1, 29])
def test_extreme_value_integers_do_not_saturate(
    inner: Any, kernels: Any, fmt: int, stored: str, activation: int, tokens: int
) -> None:
    weights, integer = extreme(engine.KIND_VALUE, fmt, 128, stored)
    acts = Input(inner, kernels, np.full((tokens, 64), activation, np.float32))
    panel, book = weights.pointers(inner.ffi)
    sums = Guarded(inner.ffi, (tokens, 128), np.float32)
    kernels.value_sparse[fmt](panel, book, 128, 0, 128, 2, acts.raw, sums.pointer)
    sums.check()
    assert (sums.array == 64 * integer * activation).all()


@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize("cols", [32, 100, 1024])
@pytest.mark.parametrize("tokens", [1, 4, 13])
def test_integer_products_have_the_same_bits_as_scalar(
    inner: Any, kernels: Any, scalar: Any, fmt: int, cols: int, tokens: int
) -> None:
    rng = np.random.default_rng(cols)
    weights = Weights(rng, engine.KIND_MATRIX, fmt, 16, cols, scaled=True)
    _, weights.buffer = packed(rng.standard_normal((16, cols)), engine.KIND_MATRIX, fmt)
    x = rng.standard_normal((tokens, cols)).astype(np.float32)
    found = [products(inner, table, fmt, weights, Input(inner, table, x)) for table in (kernels, scalar)]
    assert found[0].tobytes() == found[1].tobytes()


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("tokens", [1, 4, 29])
def test_the_list_of_what_is_not_zero_is_in_order_and_padded(
    inner: Any, kernels: Any, zeros: float, tokens: int
) -> None:
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, 160)) * (rng.random((tokens, 160)) >= zeros)
    acts = Input(inner, kernels, x)
    for t in range(tokens):
        base, values = t // acts.tile * acts.tile, acts.column(t)[0].reshape(-1, 32)
        n = min(acts.tile, tokens - base)
        for group in range(acts.groups):
            at = base * acts.groups + group * n + t - base
            expected, found = np.flatnonzero(values[group]), acts.nonzero.array[64 * at :][:64]
            assert acts.counts.array[at] == expected.size
            assert np.array_equal(found[: expected.size], expected)
            assert np.array_equal(found[32:][: expected.size].view(np.int8), values[group][expected])
            padded = -(-expected.size // 4) * 4
            assert not found[32:][expected.size : padded].any()
            assert (found[:padded] < 32).all()


@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize(("rows", "cols"), [(64, 32), (128, 100), (256, 96), (320, 257), (900, 1024)])
@pytest.mark.parametrize(("zeros", "tokens"), [(0.0, 1), (0.5, 1), (0.9, 1), (1.0, 1), (0.8, 3), (0.5, 26), (0.9, 26)])
def test_sparse_and_dense_value_products_agree_and_equal_numpy(
    inner: Any, kernels: Any, fmt: int, rows: int, cols: int, zeros: float, tokens: int
) -> None:
    ffi, rng = inner.ffi, np.random.default_rng(rows + cols)
    weights = Weights(rng, engine.KIND_VALUE, fmt, rows, cols, scaled=True)
    x = rng.integers(-15, 16, (tokens, cols)).astype(np.float32)
    x[:, ::32] = 127
    x *= rng.random((tokens, cols)) >= zeros
    x[:, ::32] *= 127 / np.maximum(1, np.abs(x[:, ::32]))  # scales of 1, or no scale
    acts = Input(inner, kernels, x)
    columns = [acts.column(t) for t in range(tokens)]
    used = np.array([values.reshape(-1, 32) * scales[:, None] for values, scales, _ in columns])
    expected = np.zeros((tokens, (rows + 127) // 128 * 128))
    expected[:, :rows] = used.reshape(tokens, -1)[:, :cols].astype(float) @ weights.values.T
    whole = np.allclose(used, np.rint(used))
    groups = -(-cols // 32)
    slice_rows, panel_rows = (64, 256) if weights.bits == 8 else (128, 512)
    _, book = weights.pointers(ffi)
    start = weights.buffer[64 if weights.bits == 4 else 0 :]
    for panel in range(0, rows, panel_rows):
        height = min(panel_rows, -(-rows // slice_rows) * slice_rows - panel)
        pointer = ffi.from_buffer("uint8_t[]", start[panel * groups * (4 * weights.bits + 2) :])
        some = int(rng.integers(0, height // 128 + 1)) * 128
        for row, end in ((0, some), (some, height)):  # any whole units at a time
            if row == end:
                continue
            sparse = Guarded(ffi, (tokens, end - row), np.float32)
            kernels.value_sparse[fmt](pointer, book, height, row, end - row, groups, acts.raw, sparse.pointer)
            sparse.check()
            for half in range((end - row) // 64):
                part = row // 64 + half
                panels = Guarded(ffi, (4, acts.groups // 2, 1088), np.uint8)
                kernels.value_repack[fmt](pointer, book, height, part, groups, panels.pointer)
                panels.check()
                dense = np.zeros((4, tokens, 16), np.float32)
                for v in range(4):
                    q8 = ffi.from_buffer("uint8_t[]", panels.array[v])
                    for base in range(0, tokens, acts.tile):
                        out = ffi.from_buffer("float[]", dense[v, base:])
                        n = min(acts.tile, tokens - base)
                        kernels.panel[engine.FORMAT_Q8](q8, ffi.NULL, ffi.NULL, acts.raw, base, n, out)
                # lane l of panel v is row 16 (l / 4) + 4 v + l % 4
                ordered = dense.reshape(4, tokens, 4, 4).transpose(1, 2, 0, 3).reshape(tokens, 64)
                got = sparse.array[:, 64 * half :][:, :64]
                assert np.array_equal(got, ordered)
                exact = expected[:, panel + 64 * part :][:, :64]
                if whole:
                    assert np.array_equal(got, exact)
                else:
                    assert np.allclose(got, exact, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# ----------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize("kind", [engine.KIND_MATRIX, engine.KIND_VALUE, engine.KIND_EMBEDDING])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (16, 32), (17, 64), (100, 95), (320, 257), (700, 544)])
def test_integers_come_back_as_they_were_packed(fmt: int, kind: int, rows: int, cols: int) -> None:
    weights = Weights(np.random.default_rng(rows), kind, fmt, rows, cols, scaled=True)
    assert np.array_equal(engine.unpack(weights.info, weights.buffer), weights.values)
    again = aligned(len(weights.buffer))
    panels = engine.packed_panels(weights.info)
    scales = weights.scales.astype(np.float16)
    for first in range(panels):  # any ranges, in any order
        panel = panels - 1 - first
        engine.pack_integers(weights.info, weights.stored, scales, panel, panel + 1, again, weights.book)
    assert np.array_equal(again, weights.buffer)


def numpy_matrix(weights: Weights) -> np.ndarray:
    """A MATRIX as formats/format.h describes it."""
    bits, (rows, cols) = weights.bits, weights.stored.shape
    stored = np.zeros((-(-rows // 16) * 16, -(-cols // 64) * 64), np.uint8)
    stored[...] = 1 << (bits - 1)
    stored[:rows, :cols] = weights.stored.astype(int) + (1 << (bits - 1))
    scales = np.zeros((stored.shape[0], stored.shape[1] // 32), np.float16)
    scales[:rows, : weights.scales.shape[1]] = weights.scales
    out = [] if weights.book is None else [(weights.book.astype(int) + 128).astype(np.uint8), np.zeros(48, np.uint8)]
    for panel in range(0, len(stored), 16):
        for record in range(0, stored.shape[1], 64):
            for group in (record, record + 32):
                # [quad, row, input of the quad]
                quads = stored[panel : panel + 16, group : group + 32].reshape(16, 8, 4).transpose(1, 0, 2)
                if bits == 8:
                    out.append(quads)
                    continue
                out.append(quads[:4] & 15 | (quads[4:] & 15) << 4)
                high = quads >> 4
                if bits == 5:
                    out.append(np.bitwise_or.reduce([high[k] << k for k in range(8)]))
                if bits == 6:
                    out += [np.bitwise_or.reduce([high[m + k] << 2 * k for k in range(4)]) for m in (0, 4)]
            out.append(scales[panel : panel + 16, record // 32 : record // 32 + 2].T.copy().view(np.uint8))
    return np.concatenate([part.astype(np.uint8).reshape(-1) for part in out])


@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize(("rows", "cols"), [(16, 64), (20, 96), (48, 300)])
def test_a_matrix_is_laid_out_as_documented(fmt: int, rows: int, cols: int) -> None:
    weights = Weights(np.random.default_rng(rows), engine.KIND_MATRIX, fmt, rows, cols, scaled=True)
    assert np.array_equal(weights.buffer, numpy_matrix(weights))


@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize("spread", [1e-9, 1e-3, 1.0, 1e4])
def test_quantising_has_the_same_bits_as_scalar(inner: Any, kernels: Any, scalar: Any, fmt: int, spread: float) -> None:
    ffi, rng = inner.ffi, np.random.default_rng(5)
    for case in range(20):
        x = (rng.standard_normal((32, 16)) * spread * 10.0 ** rng.uniform(-2, 2, 16)).astype(np.float32)
        x[:, 3] = 0
        x[:, 4] = 1e-40
        if case % 2:
            x[:, 5] = np.float32(spread)
        found = []
        for table in (kernels, scalar):
            q, scales = Guarded(ffi, (32, 16), np.int8), Guarded(ffi, 32, np.uint8)
            book = ffi.from_buffer("int8_t[]", BOOK)
            table.quantise[fmt](ffi.from_buffer("float[]", x), book, q.pointer, ffi.cast("uint16_t *", scales.pointer))
            q.check()
            scales.check()
            found.append((q.array.tobytes(), scales.array.tobytes()))
        assert found[0] == found[1]


def test_q8_takes_the_best_of_eight_scales_and_rounds_to_nearest() -> None:
    """The definition in f64: scales of largest / 127.5, / 127, ... / 124, as halves."""
    weights = np.random.default_rng(1).standard_normal((40, 96)).astype(np.float32)
    info, buffer = packed(weights, engine.KIND_MATRIX)
    groups = weights.reshape(40, 3, 32).astype(np.float64)
    largest = np.abs(groups).max(2)
    best, errors = np.zeros_like(groups), []
    for step in range(8):
        scale = (largest / (127.5 - 0.5 * step)).astype(np.float16).astype(np.float64)[:, :, None]
        stored = scale * np.clip(np.rint(groups / scale), -127, 127)
        errors.append(((groups - stored) ** 2).sum(2))
        better = errors[-1] <= np.min(errors, axis=0)
        best[better] = stored[better]
    assert np.allclose(engine.unpack(info, buffer), best.reshape(40, 96), rtol=1e-6)
    assert np.min(errors, axis=0).sum() < 0.9 * errors[1].sum()


@pytest.mark.parametrize(("fmt", "most"), [("q6", 0.0205), ("q5", 0.041), ("q4", 0.083)])
def test_scales_are_searched_for(fmt: str, most: float) -> None:
    """The error relative to normally distributed weights; a scale from the largest value alone misses these."""
    weights = np.random.default_rng(2).standard_normal((64, 1024)).astype(np.float32)
    info, buffer = packed(weights, engine.KIND_MATRIX, engine.format_by_name(fmt))
    error = np.sqrt(((engine.unpack(info, buffer) - weights) ** 2).mean())
    assert 0 < error < most


def test_integers_outside_of_the_format_are_refused() -> None:
    for fmt, bits in BITS.items():
        if bits == 8:
            continue
        info = tensor(engine.KIND_MATRIX, fmt, 16, 64)
        stored = np.zeros((16, 64), np.int8)
        stored[3, 40] = 1 << (bits - 1)
        with pytest.raises(ArgumentError, match=f"{stored[3, 40]} in row 3 does not fit"):
            engine.pack_integers(info, stored, np.ones((16, 2), np.float16), 0, 1, aligned(engine.packed_bytes(info)))


def test_a_book_must_ascend_and_belongs_to_q4() -> None:
    weights = np.ones((16, 64), np.float32)
    info = tensor(engine.KIND_MATRIX, engine.FORMAT_Q4, 16, 64)
    buffer = aligned(engine.packed_bytes(info))
    with pytest.raises(ArgumentError, match="ascend"):
        engine.pack(info, weights, "f32", 0, 1, buffer, book=BOOK[::-1])
    with pytest.raises(ArgumentError, match="16"):
        engine.pack(info, weights, "f32", 0, 1, buffer, book=BOOK[:15])


@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_weights_that_cannot_be_stored_are_refused_by_row(fmt: int, value: float) -> None:
    weights = np.zeros((40, 96), np.float32)
    weights[33, 50] = value
    with pytest.raises(NonFiniteError, match="row 33"):
        packed(weights, engine.KIND_MATRIX, fmt)


# ------------------------------------------------------------------------------------- f32 and f16


@pytest.mark.parametrize("fmt", [engine.FORMAT_F32, engine.FORMAT_F16])
@pytest.mark.parametrize("cols", [1, 7, 64, 100])
@pytest.mark.parametrize("sparse", [False, True])
def test_float_products(inner: Any, kernels: Any, scalar: Any, fmt: int, cols: int, sparse: bool) -> None:
    ffi, rng = inner.ffi, np.random.default_rng(cols)
    weights = rng.standard_normal((16 * 6, cols)).astype(np.float16).astype(np.float32)
    _, buffer = packed(weights, engine.KIND_MATRIX, fmt)
    panel_bytes = len(buffer) // 6
    for tokens in sorted({1, 2, int(kernels.plain_tile)}):
        x = (rng.standard_normal((tokens, cols)) * (rng.random((tokens, cols)) < 0.5)).astype(np.float32)
        found = []
        for table in (kernels, scalar):
            out = Guarded(ffi, (tokens, 6, 16), np.float32)
            for t in range(0, tokens, table.plain_tile):
                n = min(int(table.plain_tile), tokens - t)
                table.plain_panels(
                    ffi.from_buffer("uint8_t[]", buffer), panel_bytes, 6, fmt, cols, ffi.from_buffer("float[]", x[t:]),
                    cols, n, sparse, ffi.from_buffer("float[]", out.array[t:]),
                )  # fmt: skip
            out.check()
            found.append(out.array)
        assert found[0].tobytes() == found[1].tobytes()
        assert np.allclose(found[0].reshape(tokens, -1), x @ weights.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fmt", [engine.FORMAT_F32, engine.FORMAT_F16, *INTEGERS])
@pytest.mark.parametrize("cols", [16, 64, 80])
def test_embedding_rows_are_the_stored_values(inner: Any, kernels: Any, fmt: int, cols: int) -> None:
    rng = np.random.default_rng(cols)
    info, buffer = packed(rng.standard_normal((7, cols)), engine.KIND_EMBEDDING, fmt)
    raw = inner.ffi.new("rwkvc_tensor *")
    data = inner.ffi.from_buffer("uint8_t[]", buffer)
    header = 64 if fmt == engine.FORMAT_Q4 else 0
    raw.data, raw.book, raw.kind, raw.format, raw.rows, raw.cols = data + header, data, info.kind, fmt, 7, cols
    expected = engine.unpack(info, buffer)
    for row in range(7):
        out = Guarded(inner.ffi, cols, np.float32)
        kernels.embedding(raw, row, out.pointer)
        out.check()
        assert np.array_equal(out.array, expected[row])


def test_half_conversion_is_exact(inner: Any) -> None:
    halves = np.arange(65536, dtype=np.uint16)
    floats = np.array([inner.lib.rwkvc_half_to_float(int(h)) for h in halves], np.float32)
    expected = halves.view(np.float16).astype(np.float32)
    assert np.array_equal(floats, expected, equal_nan=True)
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            rng.integers(0, 1 << 32, 20000, dtype=np.uint64).astype(np.uint32).view(np.float32),
            expected[np.isfinite(expected)][::7] * np.float32(1 + 2**-12),
            (expected[1:31000:5] + expected[2:31001:5]) / 2,  # ties
        ]
    )
    values = values[~np.isnan(values)].astype(np.float32)
    got = np.array([inner.lib.rwkvc_float_to_half(float(v)) for v in values], np.uint16)
    with np.errstate(over="ignore"):
        assert np.array_equal(got, values.astype(np.float16).view(np.uint16))


# ------------------------------------------------------------------------------------- elementwise

ELEMENTARY = {"exp": (0, np.exp, 2), "tanh": (1, np.tanh, 3), "sigmoid": (2, lambda x: 1 / (1 + np.exp(-x)), 3)}


@pytest.mark.parametrize("name", ELEMENTARY)
def test_elementary_functions(inner: Any, kernels: Any, scalar: Any, name: str) -> None:
    which, exact, ulps = ELEMENTARY[name]
    x = np.concatenate([np.linspace(-110, 90, 40000), np.linspace(-1, 1, 40000), [0.0, -0.0] * 8])
    x = np.resize(x.astype(np.float32), x.size // 16 * 16)
    found = []
    for table in (kernels, scalar):
        y = Guarded(inner.ffi, x.size, np.float32)
        table.elementary(which, inner.ffi.from_buffer("float[]", x), x.size, y.pointer)
        y.check()
        found.append(y.array)
    assert found[0].tobytes() == found[1].tobytes()
    with np.errstate(over="ignore"):
        expected = exact(x.astype(np.float64))
        finite = expected < np.finfo(np.float32).max
        assert np.isinf(found[0][~finite]).all()
        step = np.spacing(np.maximum(np.abs(expected[finite]), np.float32(1e-38)).astype(np.float32))
        # below exp(-88.7) sigmoid is 0: its true value is subnormal
        assert (np.abs(found[0][finite] - expected[finite]) <= ulps * step + 1e-37).all()


@pytest.mark.parametrize("lane", [0, 1, 7, 15, 16, 23, 31])
def test_nan_stays_visible(inner: Any, kernels: Any, lane: int) -> None:
    """In quantised activations it makes the scale NaN; functions keep it. Else a damaged state would give noise."""
    x = np.linspace(-1, 1, 32).astype(np.float32).reshape(1, 32)
    x[0, lane] = np.nan
    assert np.isnan(Input(inner, kernels, x).column(0)[1][0])
    y = np.zeros(32, np.float32)
    for which in range(3):
        kernels.elementary(which, inner.ffi.from_buffer("float[]", x[0]), 32, inner.ffi.from_buffer("float[]", y))
        assert np.array_equal(np.isnan(y), np.isnan(x[0]))
    for name in ("STORE", "ADD", "TANH", "SIGMOID", "RELU2"):
        pointers = inner.ffi.from_buffer("float[]", x[0]), inner.ffi.from_buffer("float[]", y)
        y[:] = 0
        kernels.finish(getattr(inner.lib, f"RWKVC_{name}"), pointers[0], 16, 2, 16, pointers[1], 16)
        assert np.array_equal(np.isnan(y), np.isnan(x[0]))


@pytest.mark.parametrize("n", [16, 48, 768])
def test_layer_norm_and_token_shift(inner: Any, kernels: Any, scalar: Any, n: int) -> None:
    ffi, rng = inner.ffi, np.random.default_rng(n)
    x, w, b = (rng.standard_normal(n).astype(np.float32) for _ in range(3))
    pointers = [ffi.from_buffer("float[]", a) for a in (x, w, b)]
    norms, shifts = [], []
    for table in (kernels, scalar):
        y, z = Guarded(ffi, n, np.float32), Guarded(ffi, n, np.float32)
        table.layer_norm(*pointers, n, 1e-5, y.pointer)
        table.token_shift(*pointers, ffi.NULL, n, z.pointer)
        y.check()
        z.check()
        norms.append(y.array)
        shifts.append(z.array)
    assert norms[0].tobytes() == norms[1].tobytes()
    assert shifts[0].tobytes() == shifts[1].tobytes()
    wide = x.astype(float)
    assert np.allclose(norms[0], (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5) * w + b, atol=1e-5)
    assert np.allclose(shifts[0], x + (w - x) * b, atol=1e-5)


def fields(x: Input) -> list[bytes]:
    return [a.array.tobytes() for a in (x.values, x.scales, x.nonzero, x.counts)]


@pytest.mark.parametrize("n", [16, 48, 768])
@pytest.mark.parametrize("with_extra", [False, True])
@pytest.mark.parametrize("first_last", [(3, 4), (0, 12), (12, 15)])
def test_token_shift_to_int8_is_the_shift_quantised(
    inner: Any, kernels: Any, n: int, with_extra: bool, first_last: tuple[int, int]
) -> None:
    ffi, rng = inner.ffi, np.random.default_rng(n)
    x, previous, extra = (rng.standard_normal((15, n)).astype(np.float32) for _ in range(3))
    mix = rng.standard_normal(n).astype(np.float32)
    shifted = np.zeros((15, n), np.float32)
    first, last = first_last

    def rows(a: np.ndarray) -> list[Any]:
        return [ffi.from_buffer("float[]", row) for row in a]

    mixes, extras = ffi.from_buffer("float[]", mix), rows(extra) if with_extra else [ffi.NULL] * 15
    for t in range(first, last):
        kernels.token_shift(rows(x)[t], rows(previous)[t], mixes, extras[t], n, rows(shifted)[t])
    wide = x + (previous - x) * (mix + extra * with_extra)
    assert np.allclose(shifted[first:last], wide[first:last], atol=1e-5)
    expected, got = Input(inner, kernels, shifted), Input(inner, kernels, np.zeros((15, n)))
    for begin in range(first, last, got.tile):  # a tile at most
        end, one = (
            min(begin + got.tile, last),
            ffi.new("float *[]", rows(x[begin:])),
        )
        other = ffi.new("float *[]", rows(previous[begin:]))
        kernels.token_shift_q8(one, other, mixes, extras[begin], n, n, begin, end, got.raw)
    assert fields(got) == fields(expected)
    for guarded in (got.values, got.scales):
        guarded.check()


@pytest.mark.parametrize("zeros", [0.0, 0.87, 1.0])
def test_whole_tiles_become_the_same_int8_as_tokens_alone(inner: Any, kernels: Any, scalar: Any, zeros: float) -> None:
    rng = np.random.default_rng(9)
    x = (rng.standard_normal((29, 160)) * 10.0 ** rng.uniform(-42, 37, (29, 1))).astype(np.float32)
    x[rng.random(x.shape) < zeros] = 0
    for place, value in ((0, np.nan), (40, np.inf), (80, -np.inf), (120, 3e38), (150, 1e-44), (33, -3e-39)):
        x[place % 29, place] = value
    expected = fields(Input(inner, scalar, x, at_once=1))
    one, all_of_them = Input(inner, kernels, x, at_once=1), Input(inner, kernels, x, at_once=29)
    if kernels.q8_tile == scalar.q8_tile:
        assert fields(one) == expected
    assert fields(all_of_them) == fields(one)
    for column in range(29):
        for ours, theirs in zip(all_of_them.column(column), Input(inner, scalar, x).column(column), strict=True):
            assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("lanes", [1, 5, 15, 16])
def test_epilogues_write_only_their_lanes(inner: Any, kernels: Any, lanes: int) -> None:
    rng = np.random.default_rng(lanes)
    sums = rng.standard_normal((3, 16)).astype(np.float32)
    before = rng.standard_normal((3, lanes)).astype(np.float32)
    meaning = {
        "RWKVC_STORE": sums,
        "RWKVC_ADD": np.pad(before, ((0, 0), (0, 16 - lanes))) + sums,
        "RWKVC_TANH": np.tanh(sums),
        "RWKVC_SIGMOID": 1 / (1 + np.exp(-sums)),
        "RWKVC_RELU2": np.maximum(sums, 0) ** 2,
    }
    for name, expected in meaning.items():
        out = Guarded(inner.ffi, (3, lanes), np.float32)
        out.array[...] = before
        code = getattr(inner.lib, name)
        kernels.finish(code, inner.ffi.from_buffer("float[]", sums), 16, 3, lanes, out.pointer, lanes)
        out.check()
        assert np.allclose(out.array, expected[:, :lanes], atol=1e-6)


# ---------------------------------------------------------------------------------------------- wkv


def wkv7_reference(p: dict[str, np.ndarray], state: np.ndarray, layer0: bool) -> tuple[np.ndarray, np.ndarray]:
    """RWKV-7's time mix of one head in f64 (ARCHITECTURES section 6); state [key, value]."""
    p = {name: value.astype(np.float64) for name, value in p.items()}
    s, out = state.astype(np.float64).T, []  # [value, key]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    for t in range(len(p["r"])):
        decay = np.exp(-np.exp(-0.5) * sigmoid(p["w0"] + p["w"][t]))
        a = sigmoid(p["a0"] + p["a"][t])
        kk = p["k"][t] * p["k_k"]
        kk = kk / max(np.linalg.norm(kk), 1e-12)
        k = p["k"][t] * (1 + (a - 1) * p["k_a"])
        v = p["v"][t]
        if not layer0:
            v = v + (p["v_first"][t] - v) * sigmoid(p["v0"] + p["v_mix"][t])
        sa = -(s @ kk)
        s = s * decay + np.outer(sa, kk * a) + np.outer(v, k)
        y = s @ p["r"][t]
        y = (y - y.mean()) / np.sqrt(y.var() + 64e-5) * p["ln_weight"] + p["ln_bias"]
        y = y + (p["r"][t] * k * p["r_k"]).sum() * v
        out.append(y * p["g"][t])
    return np.array(out), s.T


@pytest.mark.parametrize("n", [8, 16, 24, 40, 64, 80, 128])
@pytest.mark.parametrize("layer0", [True, False])
@pytest.mark.parametrize("tokens", [1, 5])
def test_wkv7(inner: Any, kernels: Any, scalar: Any, n: int, layer0: bool, tokens: int) -> None:
    ffi, rng = inner.ffi, np.random.default_rng(n)
    per_token = ("r", "w", "k", "v", "a", "v_mix", "v_first", "g")
    vectors = ("w0", "a0", "v0", "k_k", "k_a", "r_k", "ln_weight", "ln_bias")
    p = {name: rng.standard_normal((tokens, n)).astype(np.float32) for name in per_token}
    p |= {name: rng.standard_normal(n).astype(np.float32) for name in vectors}
    state = rng.standard_normal((n, n)).astype(np.float32)
    expected, expected_state = wkv7_reference(p, state, layer0)
    found = []
    for table, aligned_state in ((kernels, True), (kernels, False), (scalar, True)):
        arrays = {}
        for name, value in {**p, "kk": np.zeros((tokens, n)), "y": np.zeros((tokens, n))}.items():
            arrays[name] = Guarded(ffi, value.shape, np.float32)
            arrays[name].array[...] = value
        states = Guarded(ffi, (tokens, n, n), np.float32, skip=0 if aligned_state else 16)
        head = ffi.new("rwkvc_wkv7 *")
        head.tokens, head.head_size, head.ld, head.gn_eps, head.state_step = tokens, n, n, 64e-5, n * n
        for name, guarded in arrays.items():
            setattr(head, name, guarded.pointer)
        if layer0:
            head.v_mix = head.v0 = ffi.NULL
        head.state_in, head.state_out = ffi.from_buffer("float[]", state), states.pointer
        table.wkv7(head)
        for guarded in [*arrays.values(), states]:
            guarded.check()
        found.append((arrays["y"].array, states.array))
        if layer0:
            assert np.array_equal(arrays["v_first"].array, p["v"])
    for y, after in found[1:]:
        assert found[0][0].tobytes() == y.tobytes()
        assert found[0][1].tobytes() == after.tobytes()
    assert np.allclose(found[0][0], expected, rtol=2e-3, atol=2e-3)
    assert np.allclose(found[0][1][-1], expected_state, rtol=1e-4, atol=1e-4)


def test_wkv7_of_a_zero_key_is_finite(inner: Any, kernels: Any) -> None:
    ffi, n = inner.ffi, 64
    zero, out, state = np.zeros(n, np.float32), np.ones((12, n), np.float32), np.zeros((n, n), np.float32)
    head = ffi.new("rwkvc_wkv7 *")
    head.tokens, head.head_size, head.ld, head.gn_eps = 1, n, n, 64e-5
    for i, name in enumerate(("r", "w", "k", "v", "a", "kk", "v_first", "g", "y")):
        setattr(head, name, ffi.from_buffer("float[]", out[i]))
    for name in ("w0", "a0", "k_k", "k_a", "r_k", "ln_weight", "ln_bias"):
        setattr(head, name, ffi.from_buffer("float[]", zero))
    head.state_in = head.state_out = ffi.from_buffer("float[]", state)
    kernels.wkv7(head)
    assert np.isfinite(out).all()
    assert np.isfinite(state).all()


@pytest.mark.parametrize("n", [8, 24, 64, 80])
@pytest.mark.parametrize("version", [5, 6])
def test_wkv6(inner: Any, kernels: Any, scalar: Any, n: int, version: int) -> None:
    ffi, rng, tokens = inner.ffi, np.random.default_rng(n), 4
    p = {name: rng.standard_normal((tokens, n)).astype(np.float32) for name in ("r", "k", "v", "g", "w")}
    p |= {name: rng.standard_normal(n).astype(np.float32) for name in ("bonus", "ln_weight", "ln_bias")}
    p["decay"] = rng.random(n).astype(np.float32)
    state = rng.standard_normal((n, n)).astype(np.float32)
    wide = {name: value.astype(np.float64) for name, value in p.items()}
    s, expected = state.astype(np.float64), []  # [key, value]
    for t in range(tokens):
        decay = wide["decay"] if version == 5 else np.exp(-np.exp(wide["decay"] + wide["w"][t]))
        y = wide["r"][t] @ (s + np.outer(wide["bonus"] * wide["k"][t], wide["v"][t]))
        s = s * decay[:, None] + np.outer(wide["k"][t], wide["v"][t])
        y = (y - y.mean()) / np.sqrt(y.var() + 64e-5) * wide["ln_weight"] + wide["ln_bias"]
        expected.append(y * wide["g"][t] / (1 + np.exp(-wide["g"][t])))
    found = []
    for table in (kernels, scalar):
        arrays = {name: Guarded(ffi, value.shape, np.float32) for name, value in p.items()}
        arrays["y"] = Guarded(ffi, (tokens, n), np.float32)
        for name, value in p.items():
            arrays[name].array[...] = value
        out = Guarded(ffi, (n, n), np.float32)
        head = ffi.new("rwkvc_wkv6 *")
        head.tokens, head.head_size, head.ld, head.gn_eps = tokens, n, n, 64e-5
        for name, guarded in arrays.items():
            setattr(head, name, guarded.pointer)
        if version == 5:
            head.w = ffi.NULL
        head.state_in, head.state_out = ffi.from_buffer("float[]", state), out.pointer
        table.wkv6(head)
        for guarded in [*arrays.values(), out]:
            guarded.check()
        found.append((arrays["y"].array, out.array))
    assert found[0][0].tobytes() == found[1][0].tobytes()
    assert found[0][1].tobytes() == found[1][1].tobytes()
    assert np.allclose(found[0][0], expected, rtol=2e-3, atol=2e-3)
    assert np.allclose(found[0][1], s, rtol=1e-4, atol=1e-4)


def test_wkv4(inner: Any, kernels: Any, scalar: Any) -> None:
    """Keys of up to 200, whose exponential no f32 holds."""
    ffi, rng, tokens = inner.ffi, np.random.default_rng(4), 6
    r, v = (rng.standard_normal((tokens, 16)).astype(np.float32) for _ in range(2))
    k = (rng.standard_normal((tokens, 16)) * 70).astype(np.float32)
    decay, bonus = -np.exp(rng.standard_normal(16)).astype(np.float32), rng.standard_normal(16).astype(np.float32)
    start = np.concatenate([np.zeros(32), np.full(16, -1e38)]).astype(np.float32)
    aa, bb, pp = (part.astype(np.longdouble) for part in np.split(start, 3))
    expected = []
    for t in range(tokens):
        q = np.maximum(pp, bonus + k[t])
        e1, e2 = np.exp(pp - q), np.exp(bonus + k[t] - q)
        expected.append(r[t] * (e1 * aa + e2 * v[t]) / (e1 * bb + e2))
        q = np.maximum(pp + decay, k[t])
        e1, e2 = np.exp(pp + decay - q), np.exp(k[t] - q)
        aa, bb, pp = e1 * aa + e2 * v[t], e1 * bb + e2, q
    found = []
    for table in (kernels, scalar):
        y, out = Guarded(ffi, (tokens, 16), np.float32), Guarded(ffi, 48, np.float32)
        c = ffi.new("rwkvc_wkv4 *")
        c.tokens, c.ld, c.part = tokens, 16, 16
        for name, value in (("r", r), ("k", k), ("v", v), ("decay", decay), ("bonus", bonus), ("state_in", start)):
            setattr(c, name, ffi.from_buffer("float[]", value))
        c.y, c.state_out = y.pointer, out.pointer
        table.wkv4(c)
        y.check()
        out.check()
        found.append((y.array, out.array))
    assert found[0][0].tobytes() == found[1][0].tobytes()
    assert found[0][1].tobytes() == found[1][1].tobytes()
    assert np.allclose(found[0][0], np.array(expected, np.float64), rtol=1e-4, atol=1e-4)
    assert np.allclose(found[0][1], np.concatenate([aa, bb, pp]).astype(np.float64), rtol=1e-4, atol=1e-4)
