# SPDX-License-Identifier: Apache-2.0
"""What the inputs of every product look like: the model itself, run over a text and over what it writes by itself.

The reference is the model in f32 (small ones) or q8, in a temporary file that has no name any more while it is used.
"""

from __future__ import annotations

import contextlib
import logging
import math
import mmap
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu import engine, textfile
from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.errors import ArgumentError, Cancelled
from rwkv_cpu.memory import aligned_zeros
from rwkv_cpu.modelfile import read_header
from rwkv_cpu.softmax import log_softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from typing_extensions import Self

    from rwkv_cpu.tokenizer.base import Tokenizer

__all__ = [
    "DEFAULT_TEXT",
    "Clusters",
    "Reference",
    "default_text",
    "read_text",
    "sample",
    "text_sequences",
]

_log = logging.getLogger("rwkv_cpu")

DEFAULT_TEXT = "default"
TEXT_TOKENS = 512  # of one sequence of text
MAX_TEXT_TOKENS = 16 * TEXT_TOKENS
MIN_TEXT_TOKENS = 1024  # fewer say little about the inputs
SAMPLES, SAMPLE_TOKENS = 32, 256
_PROBES = 4  # pieces of a text that are read in order and shuffled
PROBE_TOKENS = 2 * _PROBES * TEXT_TOKENS  # of a long text
_MAX_TEXT_BYTES = 64 << 20
_CHUNK = 1024  # tokens of a pass: products of the inputs with themselves are worth it
_SEED = 0
_ORDER_GAIN = 1.0  # nats a token; the two trained models: 1.8 on foreign text, with each other's tokenizer 0.1 to 0.6
_CLUSTERS, _CLUSTER_ROUNDS, _CLUSTER_BYTES = 16, 8, 1 << 29
_SHARED = 0.2  # of the contexts of all rows, beside those of a cluster
_TEXT_HINT = "Give a plain UTF-8 text of some pages, of the kind that the model will be used for."


def default_text() -> str:
    """The built-in text; what it consists of stands in its first lines and in the NOTICE beside it."""
    return (resources.files("rwkv_cpu") / "data" / "calibration.txt").read_text("utf-8")


def read_text(path: str | Path) -> str:
    """A user's calibration text. Raises: ModelNotFoundError, ArgumentError, RwkvError."""
    return textfile.read_text(path, max_bytes=_MAX_TEXT_BYTES, hint=_TEXT_HINT)


def token_work(weights: Iterable[engine.TensorInfo]) -> int:
    """Running one token of a reference model, in terms of bytes packed: measured with q8; f32 takes twice as long."""
    infos = {info.name: info for info in weights}
    exact = infos["head.weight"].format == engine.FORMAT_F32
    return sum(info.rows * info.cols for info in infos.values()) // (300 if exact else 600)


class Reference:
    """The unquantised model, run for its inputs and logits; its weights may be replaced for a while.

    Args:
        path: a .rwkv file, which is removed (at once where the system allows it, else by close()).
        threads: of its context; None: the physical cores.
        cancel: ends any call.
    """

    def __init__(self, path: Path, threads: int | None, cancel: CancelToken | None) -> None:
        self._path = path
        self._cancel = cancel
        info = read_header(path)
        self._data = info.data_offset
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        with contextlib.suppress(OSError):  # a system that cannot remove what is mapped
            path.unlink()
        self.model = engine.OpenModel(self._map, str(path))
        self.infos = {tensor.name: tensor for tensor in self.model.tensors()}
        self._context = engine.Context(threads, chunk=_CHUNK)
        self.token_work = token_work(self.infos.values())
        self.n_vocab: int = self.model.config.public().n_vocab

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model, and of the file."""
        self._context.close()
        self.model.close()
        with contextlib.suppress(BufferError):
            self._map.close()
        self._path.unlink(missing_ok=True)

    def _bytes(self, name: str) -> NDArray[np.uint8]:
        info = self.infos[name]
        return np.frombuffer(self._map, np.uint8, info.size_bytes, self._data + info.offset)

    def weights(self, name: str) -> NDArray[np.float32]:
        """A tensor's values, f32 [rows, cols]."""
        return engine.unpack(self.infos[name], self._bytes(name))

    @contextlib.contextmanager
    def replaced(self, names: Sequence[str], change: Callable[[str, NDArray[np.float32]], Any]) -> Iterator[None]:
        """Run with change(name, weights) instead of some tensors' weights."""
        kept = {name: self._bytes(name).copy() for name in names}
        try:
            for name in names:
                info = self.infos[name]
                values = np.ascontiguousarray(change(name, self.weights(name)), np.float32)
                source = values.T if info.transposed else values
                packed = aligned_zeros(info.size_bytes)
                engine.pack(info, source.reshape(info.shape), "f32", 0, engine.packed_panels(info), packed)
                self._bytes(name)[:] = packed
            yield
        finally:
            for name, data in kept.items():
                self._bytes(name)[:] = data

    def run(
        self,
        sequences: Sequence[NDArray[np.uint32]],
        logits: bool = False,
        inputs: Callable[[str, NDArray[np.float32]], None] | None = None,
    ) -> NDArray[np.float32]:
        """Each sequence from an empty state; logits f32 [all tokens, V] or nothing. Raises: Cancelled."""
        floats = self.model.state_floats
        runs = [
            engine.SequenceRun(tokens, None, np.empty(floats, np.float32), "all" if logits else "none")
            for tokens in sequences
        ]
        own = CancelToken()  # through which an exception of inputs() ends the run, and nothing else
        if self._cancel is not None:
            self._cancel.link(own.cancel)
        try:
            if own.cancelled:
                raise Cancelled("the conversion was cancelled")
            return self._context.forward(self.model, runs, cancel=own.pointer, inputs=inputs)
        finally:
            if self._cancel is not None:
                self._cancel.unlink(own.cancel)

    def step(
        self, tokens: NDArray[np.uint32], states: NDArray[np.float32], after: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """One token of each sequence: logits f32 [n, V]. states, after: f32 [n, state_floats]."""
        runs = [
            engine.SequenceRun(np.ascontiguousarray(tokens[i : i + 1]), states[i], after[i]) for i in range(len(tokens))
        ]
        pointer = None if self._cancel is None else self._cancel.pointer
        return self._context.forward(self.model, runs, cancel=pointer)

    def batches(self, sequences: Sequence[NDArray[np.uint32]]) -> Iterator[list[NDArray[np.uint32]]]:
        """In passes of the context."""
        batch: list[NDArray[np.uint32]] = []
        for tokens in sequences:
            if batch and sum(map(len, batch)) + len(tokens) > _CHUNK:
                yield batch
                batch = []
            batch.append(tokens)
        if batch:
            yield batch

    def hessians(
        self,
        sequences: Sequence[NDArray[np.uint32]],
        names: Sequence[str],
        on_tokens: Callable[[int], None],
    ) -> tuple[dict[str, NDArray[np.float32]], Clusters | None]:
        """E[x xᵀ] of some products' inputs, f32 [cols, cols] by the weight's name; the head's apart."""
        wanted = set(names)
        last = max(names, key=list(self.infos).index)
        sums: dict[str, NDArray[np.float32]] = {}
        head = next((name for name in names if self.infos[name].kind == engine.KIND_HEAD), None)
        rows: list[NDArray[np.float32]] = []
        clusters = None if head is None else self._head_clusters(head)

        def see(name: str, x: NDArray[np.float32]) -> None:
            if name not in wanted:
                return
            if name == head:
                rows.append(x.copy())
                return
            x = np.ascontiguousarray(x)
            product = x.T @ x
            if name in sums:
                sums[name] += product
            else:
                sums[name] = product
            if name == last:
                raise _EnoughError

        for batch in self.batches(sequences):
            rows.clear()
            with contextlib.suppress(_EnoughError):
                logits = self.run(batch, head is not None, see)
                if clusters is not None:
                    _add_head(clusters, np.concatenate(rows), _probabilities(logits))
            on_tokens(sum(map(len, batch)))
        return sums, None if clusters is None else _shared(clusters)

    def _head_clusters(self, name: str) -> Clusters:
        cluster, k = cluster_rows(self.weights(name))
        cols = self.infos[name].cols
        return Clusters(cluster, np.zeros((k, cols, cols), np.float32))

    def likelihood(self, sequences: Sequence[NDArray[np.uint32]], on_tokens: Callable[[int], None]) -> float:
        """Mean loss of the next token, nats; on_tokens(n) is called after each pass."""
        total, count = 0.0, 0
        for batch in self.batches(sequences):
            logits = self.run(batch, logits=True)
            row = 0
            for tokens in batch:
                own = log_softmax(logits[row : row + len(tokens) - 1])
                total -= float(own[np.arange(len(tokens) - 1), tokens[1:]].sum(dtype=np.float64))
                count += len(tokens) - 1
                row += len(tokens)
            on_tokens(row)
        return total / max(count, 1)


@dataclass(frozen=True)
class Clusters:
    """Hessians of a head's rows: [k, n, n], and which of them each row of the vocabulary has [V].

    The divergence from an error in row v is as large as p·(1 - p) of token v: a row matters where its token is likely,
    and there the inputs point its way. So rows that point the same way share a Hessian of their own contexts.
    """

    cluster: NDArray[np.intp]
    hessians: NDArray[np.float32]


def cluster_rows(weights: NDArray[np.float32]) -> tuple[NDArray[np.intp], int]:
    """Rows of a head by direction (spherical k-means): the cluster of each, and how many there are."""
    k = int(min(_CLUSTERS, max(1, _CLUSTER_BYTES // (4 * weights.shape[1] ** 2)), max(1, len(weights) // 64)))
    unit = weights / np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-20)
    centres = unit[np.random.default_rng(_SEED).choice(len(unit), k, replace=False)]
    cluster = (unit @ centres.T).argmax(1)
    for _ in range(_CLUSTER_ROUNDS):
        for c in range(k):
            members = cluster == c
            if members.any():
                centre = unit[members].mean(0)
                centres[c] = centre / max(float(np.linalg.norm(centre)), 1e-20)
        cluster = (unit @ centres.T).argmax(1)
    return cluster, k


class _EnoughError(Exception):
    """All inputs that are wanted were seen: the rest of the pass is not needed."""


def _add_head(clusters: Clusters, x: NDArray[np.float32], probabilities: NDArray[np.float32]) -> None:
    probabilities *= 1 - probabilities
    for c, hessian in enumerate(clusters.hessians):
        weight = probabilities[:, clusters.cluster == c].sum(1)
        hessian += (x * weight[:, None]).T @ x


def _shared(clusters: Clusters) -> Clusters:
    """With a part of all contexts in each: some were hardly seen."""
    total = clusters.hessians.sum(0)
    total *= _SHARED / max(float(total.trace(dtype=np.float64)), 1e-30)
    for hessian in clusters.hessians:
        hessian *= 1 / max(float(hessian.trace(dtype=np.float64)), 1e-30)
        hessian += total
    return clusters


def sample(
    reference: Reference,
    on_tokens: Callable[[int], None],
    *,
    seed: int = _SEED,
    n: int | None = None,
    length: int | None = None,
) -> list[NDArray[np.uint32]]:
    """What the model writes by itself from token 0 at temperature 1: text of its own kind, whatever its tokenizer.

    Args: seed: another one gives other samples. n, length: how many, of so many tokens; default: a calibration's.
    """
    n, length = n or SAMPLES, length or SAMPLE_TOKENS
    random = np.random.default_rng(seed)
    floats = reference.model.state_floats
    states = [np.empty((n, floats), np.float32) for _ in range(2)]
    for state in states[0]:
        reference.model.init_state(state)
    tokens: NDArray[np.uint32] = np.zeros((n, length), np.uint32)
    for t in range(length - 1):
        logits = reference.step(tokens[:, t], *states)
        # The largest of logits + Gumbel noise (-log of exponential noise) is a draw from the softmax.
        noise = random.standard_exponential(logits.shape, np.float32)
        tokens[:, t + 1] = (logits - np.log(np.maximum(noise, 1e-30, out=noise), out=noise)).argmax(1)
        states.reverse()
        on_tokens(n)
    return list(tokens)


def text_sequences(
    reference: Reference,
    tokenizer: Tokenizer,
    text: str,
    where: str,
    on_tokens: Callable[[int], None],
    *,
    required: bool,
) -> list[NDArray[np.uint32]]:
    """Pieces of a text, spread over all of it.

    Args:
        where: its name, for errors. required: fail where the text does not fit the model; else leave it out.
        on_tokens: called with how many were run to see whether it does.
    Raises: ArgumentError: too short, or the tokenizer is not the model's.
    """
    ids = np.asarray(tokenizer.encode(text), np.uint32)
    if len(ids) < MIN_TEXT_TOKENS:
        raise ArgumentError(
            f"{where}: {len(ids)} tokens are too few for a calibration: at least {MIN_TEXT_TOKENS} are needed",
            hint=_TEXT_HINT,
        )
    if int(ids.max()) >= reference.n_vocab:
        raise _foreign(where, f"it makes token {int(ids.max())}, the model has {reference.n_vocab}")
    n = min(len(ids), MAX_TEXT_TOKENS) // TEXT_TOKENS
    begins = np.linspace(0, len(ids) - TEXT_TOKENS, n).astype(int)
    pieces = [np.ascontiguousarray(ids[at : at + TEXT_TOKENS]) for at in begins]
    probe = pieces[:: max(1, len(pieces) // _PROBES)]
    random = np.random.default_rng(_SEED)
    in_order = reference.likelihood(probe, on_tokens)
    shuffled = reference.likelihood([random.permutation(piece) for piece in probe], on_tokens)
    if in_order < math.log(reference.n_vocab):
        return pieces
    # A text of another kind is hard to guess, too, but in its order less than without any.
    if required and in_order > shuffled - _ORDER_GAIN:
        raise _foreign(where, f"its tokens are as surprising in order as shuffled ({in_order:.1f} nats each)")
    _log.info("%s: foreign to this model (%.1f nats a token)", where, in_order)
    return pieces if required else []


def _foreign(where: str, why: str) -> ArgumentError:
    return ArgumentError(
        f"{where}: this model was not trained with this tokenizer: {why}",
        hint="Give the model's own with --tokenizer FILE, or leave the text out with --no-calibration.",
    )


def _probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = np.exp(log_softmax(logits))
    return result
