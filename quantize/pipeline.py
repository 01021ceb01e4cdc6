# SPDX-License-Identifier: Apache-2.0
"""The conversion itself: tensors are read, packed and written part by part on all threads; then the table.

Memory holds a part for each thread; of calibrated tensors the one being packed and the one being written. The bytes do
not depend on the number of threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rwkv_cpu import engine
from rwkv_cpu._version import __version__
from rwkv_cpu.checkpoint import Checkpoint, files_of, open_checkpoint
from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.memory import aligned_zeros
from rwkv_cpu.modelfile import ModelWriter, Place, build_header
from rwkv_cpu.quantize.embed import NO_TOKENIZER, OPTIONAL, TokenizerBytes, find_tokenizer
from rwkv_cpu.quantize.plan import Plan, make_plan, mix, recognise
from rwkv_cpu.quantize.report import Report, Sensitivity
from rwkv_cpu.quantize.workers import Output, Progress, Workers, converting
from rwkv_cpu.tokenizer import from_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.quantize.calibrated import Calibrator
    from rwkv_cpu.quantize.calibration import Clusters, Reference

__all__ = ["quantize"]

_log = logging.getLogger("rwkv_cpu")
_SHA_BYTES = 1 << 20
_SHA, _NO_SHA = "rwkv_cpu.source_sha256", "0" * 64
_MAX_EXACT_BYTES = 1 << 29  # models up to this size in f32 are calibrated in f32, larger ones in q8
_TABLE_ROOM = 256  # bytes a tensor that header and table take at most


def quantize(
    source: str | Path,
    target: str | Path,
    *,
    format: str | None = None,  # noqa: A002 (its name everywhere)
    bits: float | None = None,
    size_bytes: int | None = None,
    calibration: str | Path | None = None,
    tokenizer: str | Path | None = None,
    chat_template: str | bytes | None = None,
    threads: int | None = None,
    gn_eps: float | None = None,
    lora: str | Path | None = None,
    lora_alpha: float | None = None,
    pissa_init: str | Path | None = None,
    source_digest: bool | None = None,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> Report:
    """Convert the checkpoint *source* to the .rwkv file *target*.

    Args:
        source: a trained checkpoint, recognised by its content: a file, or a directory of Hugging Face's layout.
        target: the file to write; appears complete or not at all.
        format: how matrices are stored: "q8" (the default), "q6", "q5", "q4", "f16" or "f32". Vectors stay f32,
            low-rank pairs q8. In q5 the embedding is q6, in q4 embedding and head are q5: they are the most
            sensitive.
        bits: instead of a format: bits per weight of embedding, head and matrices together, 4.5 to 8.5. Each gets one
            of q4, q5, q6 and q8, more bits where the model, run with this part in q4, diverges more.
        size_bytes: likewise, for a file that is at most so large.
        calibration: "default" (the built-in text) or a text file: run the model over it and over samples of its own,
            and choose integers by what the inputs of each product look like. Takes minutes for a billion weights. None:
            least squared error of the weights, in seconds. Without a tokenizer its own samples suffice.
        tokenizer: a World vocabulary, a sentencepiece model or a tokenizer.json; "none" for none; "optional" for none
            if none is found. Not given: the checkpoint's own, FILE.model beside it, World's where the vocabulary has
            its size, a tokenizer.json beside it that fits.
        chat_template: what goes into the file as its template: a name or JSON (chat.ChatTemplate). Default: the
            checkpoint's own, or "world".
        threads: for packing; default: the physical cores this process may use.
        gn_eps: epsilon of the group norm after the recurrence; default: what config.json says in a directory, or the
            version's own.
        lora: an adapter (LoRA or PiSSA, as RWKV-PEFT writes them) to merge into the checkpoint, in f32.
        lora_alpha: LoRA's alpha, which does not stand in the file.
        pissa_init: PiSSA's file of initial factors; then there is no alpha.
        source_digest: take the checkpoint's sha256 for the file's metadata. Default: with calibration, beside which it
            takes no time; without, it would take longest, as it cannot be shared among cores.
        force: replace an existing target.
        on_progress: called with (work done, work in all) about 20 times a second, on the caller's thread: bytes packed,
            and what calibration takes in terms of them.
        cancel: a CancelToken; another thread may set it.

    Returns: sizes, bits per weight and time.

    Raises:
        ModelNotFoundError, FormatError, UnsupportedModelError, ShapeError: the checkpoint cannot be used.
        NonFiniteError: NaN or Inf in a tensor, named.
        ArgumentError: unknown format; the target is the source; lora_alpha is missing; bits or size_bytes cannot be
            reached; the calibration text is too short, or the tokenizer another model's.
        Cancelled; RwkvError: the target exists, the disk is full, no tokenizer was found.
    """
    began = time.perf_counter()
    source, target = Path(source), Path(target)
    if threads is not None and threads < 1:
        raise ArgumentError(f"threads is {threads}: at least 1 is needed")
    preset = _preset(format, bits, size_bytes, calibration)
    text = None if calibration is None else _calibration_text(calibration)
    with contextlib.ExitStack() as stack:
        checkpoint = stack.enter_context(_open(source, lora, lora_alpha, pissa_init))
        config = recognise(checkpoint)
        if any(name.endswith(".att.time_state") for name in checkpoint.tensors):
            _log.warning("%s: its tuned starting state is not kept: give it to chat and generate as --state", source)
        gn_eps = getattr(checkpoint, "gn_eps", None) if gn_eps is None else gn_eps
        if gn_eps is not None:
            engine.set_group_norm_epsilon(config, gn_eps)
        sizes = config.public()
        # One that cannot be used is no obstacle where the user names another.
        inside = checkpoint.tokenizer if tokenizer is None or tokenizer == OPTIONAL else None
        embedded = find_tokenizer(source, sizes.n_vocab, tokenizer, inside)
        contents: dict[str, bytes] = {}
        if embedded.kind != NO_TOKENIZER:
            contents[f"tokenizer.{embedded.kind}"] = embedded.data
        template = chat_template if chat_template is not None else checkpoint.chat_template or b"world"
        contents["chat_template"] = template.encode() if isinstance(template, str) else template
        plan = make_plan(checkpoint, config, preset or "q4", {name: data for name, data in contents.items() if data})
        ModelWriter.check_target(target, force=force)
        files = files_of(checkpoint)
        source_bytes = sum(file.stat().st_size for file in files)
        if target.exists() and any(target.samefile(file) for file in (*files, *_given(lora, pissa_init))):
            raise ArgumentError(f"{target}: this is the checkpoint itself", hint="Name another file.")
        progress = Progress(on_progress, plan.data_bytes)
        workers = stack.enter_context(Workers(threads or engine.default_threads(), cancel))
        calibrator = None
        found: list[Sensitivity] = []
        if preset is None or text is not None:
            reference_plan = _reference_plan(checkpoint, config)
            foreseen = _foresee(reference_plan, plan, progress, calibrated=text is not None)
            reference = _reference(checkpoint, reference_plan, target, workers, progress, threads, cancel)
            stack.enter_context(reference)
            sequences = _sequences(reference, embedded, text, str(calibration), progress)
            if preset is None:
                plan, found = _mixture(reference, sequences, plan, bits, size_bytes, progress)
            if text is not None:
                calibrator = _calibrator(reference, sequences, plan, progress, foreseen)
        calibrated_with = None if calibration is None else Path(calibration).name
        given = {"format": preset, "bits": bits, "size_bytes": size_bytes, "calibration": calibrated_with}
        options = {name: value for name, value in given.items() if value is not None} | {"tokenizer": embedded.kind}
        about = {
            "rwkv_cpu.version": __version__,
            "rwkv_cpu.architecture": sizes.name,
            "rwkv_cpu.format": preset or "mixed",
            "rwkv_cpu.bits_per_weight": f"{plan.bits_per_weight:.4f}",
            "rwkv_cpu.parameters": str(plan.parameters),
            "rwkv_cpu.tokenizer": embedded.kind,
            "rwkv_cpu.options": json.dumps(options),
            "rwkv_cpu.source": source.name or source.resolve().name,
            "rwkv_cpu.source_kind": checkpoint.kind,
            "rwkv_cpu.source_bytes": str(source_bytes),
        }
        if lora is not None:
            about["rwkv_cpu.lora"] = Path(lora).name
        if source_digest is None:
            source_digest = calibration is not None
        if source_digest:
            about[_SHA] = _NO_SHA  # known at the end only, its length from the beginning
        size = _convert(checkpoint, plan, about, target, workers, progress, force=force, calibrator=calibrator)
        progress.done()
    report = Report(
        source=source,
        target=target,
        format=preset or "mixed",
        architecture=sizes.name,
        tokenizer=embedded.kind,
        parameters=plan.parameters,
        source_bytes=source_bytes,
        target_bytes=size,
        bits_per_weight=plan.bits_per_weight,
        file_bits_per_weight=8 * size / plan.parameters,
        formats=plan.formats,
        calibration=calibrated_with,
        sensitivity=tuple(found),
        seconds=time.perf_counter() - began,
    )
    _log.info("converted %s to %s: %d bytes in %.2f s", source, target, size, report.seconds)
    return report


def _open(source: Path, lora: str | Path | None, lora_alpha: float | None, pissa_init: str | Path | None) -> Checkpoint:
    """The checkpoint, with the adapter merged in if there is one."""
    if lora is not None:
        from rwkv_cpu.checkpoint.adapters import AdaptedCheckpoint

        init = None if pissa_init is None else Path(pissa_init)
        return AdaptedCheckpoint(open_checkpoint(source), Path(lora), lora_alpha, init)
    if lora_alpha is not None or pissa_init is not None:
        raise ArgumentError("lora_alpha and pissa_init belong to an adapter, and none is given", hint="Give lora too.")
    return open_checkpoint(source)


def _given(*paths: str | Path | None) -> list[Path]:
    return [Path(path) for path in paths if path is not None]


def _preset(
    format: str | None,  # noqa: A002
    bits: float | None,
    size_bytes: int | None,
    calibration: str | Path | None,
) -> str | None:
    """The format of all matrices; None: a mixture."""
    if (format is not None) + (bits is not None) + (size_bytes is not None) > 1:
        raise ArgumentError("format, bits and size are three ways to say the same", hint="Give one of them.")
    if bits is not None or size_bytes is not None:
        return None
    if calibration is not None and format in ("f16", "f32"):
        raise ArgumentError(f"{format} needs no calibration", hint="It is for q8, q6, q5, q4, bits and size.")
    return format or "q8"


def _calibration_text(calibration: str | Path) -> str:
    from rwkv_cpu.quantize.calibration import DEFAULT_TEXT, default_text, read_text

    return default_text() if calibration == DEFAULT_TEXT else read_text(calibration)


def _reference_plan(checkpoint: Checkpoint, config: engine.Config) -> Plan:
    """The model to calibrate with: exact, if it is not too large."""
    plan = make_plan(checkpoint, config, "f32", {})
    return plan if plan.data_bytes <= _MAX_EXACT_BYTES else make_plan(checkpoint, config, "q8", {})


def _reference(
    checkpoint: Checkpoint,
    plan: Plan,
    target: Path,
    workers: Workers,
    progress: Progress,
    threads: int | None,
    cancel: CancelToken | None,
) -> Reference:
    """The model to calibrate with, in a file beside the target that is removed as soon as it is open."""
    from rwkv_cpu.quantize.calibration import Reference

    path = target.with_name(f".rwkv_cpu-{secrets.token_hex(8)}.part")
    progress.expect(plan.data_bytes)
    try:
        _convert(checkpoint, plan, {}, path, workers, progress, force=False)
        return Reference(path, threads, cancel)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sequences(
    reference: Reference, embedded: TokenizerBytes, text: str | None, where: str, progress: Progress
) -> list[NDArray[np.uint32]]:
    """What the model is run over: samples of its own, and the text where there is a tokenizer for it."""
    from rwkv_cpu.quantize import calibration

    token = reference.token_work
    found: list[NDArray[np.uint32]] = []

    def ran(n: int) -> None:
        progress.work(token * n)

    if text is not None and embedded.kind != NO_TOKENIZER:
        builtin = where == calibration.DEFAULT_TEXT
        where = "the built-in calibration text" if builtin else where
        tokenizer = from_bytes(embedded.kind, embedded.data)
        found = calibration.text_sequences(reference, tokenizer, text, where, ran, required=not builtin)
    return calibration.sample(reference, ran) + found


def _mixture(
    reference: Reference,
    sequences: list[NDArray[np.uint32]],
    plan: Plan,
    bits: float | None,
    size_bytes: int | None,
    progress: Progress,
) -> tuple[Plan, list[Sensitivity]]:
    """The plan with a format for each tensor that fits into *bits* or *size_bytes*; what was measured for it."""
    from rwkv_cpu.quantize import mixture

    tensors = mixture.integer_tensors(plan.weights)
    rest = plan.data_bytes - sum(info.size_bytes for info in tensors) + _TABLE_ROOM * (len(plan.all) + 1)
    if bits is not None:
        # The headers of books and the padding of small tensors are not held against it.
        room = int(bits * sum(info.rows * info.cols for info in tensors) / 8) + 64 * len(tensors)
    else:
        room = (size_bytes or 0) - rest
    mixture.check_room(tensors, room, rest if bits is None else None)
    progress.expect(reference.token_work * mixture.tokens_to_run(reference, sequences, tensors))
    found = mixture.measure(reference, sequences, tensors, lambda n: progress.work(reference.token_work * n))
    return mix(plan, mixture.allocate(found, {info.name: info for info in tensors}, room)), found


def _foresee(reference_plan: Plan, plan: Plan, progress: Progress, *, calibrated: bool) -> int:
    """Expect what calibration takes from the beginning, as an estimate needs it: probing the text, sampling,
    choosing. Returns the last one's part, which counts on a long text and the formats of *plan*.
    """
    from rwkv_cpu.quantize import calibration
    from rwkv_cpu.quantize.calibrated import expected_work

    token = calibration.token_work(reference_plan.weights)
    sampled, n_layer = calibration.SAMPLES * calibration.SAMPLE_TOKENS, plan.config.public().n_layer
    most = sampled + calibration.MAX_TEXT_TOKENS
    work = expected_work(plan.weights, n_layer, token, most) if calibrated else 0
    progress.expect(token * (sampled + (calibration.PROBE_TOKENS if calibrated else 0)) + work)
    return work


def _calibrator(
    reference: Reference, sequences: list[NDArray[np.uint32]], plan: Plan, progress: Progress, foreseen: int
) -> Calibrator:
    from rwkv_cpu.quantize.calibrated import Calibrator, expected_work

    tokens, n_layer = sum(map(len, sequences)), plan.config.public().n_layer
    progress.expect(expected_work(plan.weights, n_layer, reference.token_work, tokens) - foreseen)
    return Calibrator(reference, sequences, plan.weights, progress.work)


def _convert(
    checkpoint: Checkpoint,
    plan: Plan,
    about: dict[str, str],
    target: Path,
    workers: Workers,
    progress: Progress,
    *,
    force: bool,
    calibrator: Calibrator | None = None,
) -> int:
    """Write the file; returns its size. An empty *about* is for a file that nobody keeps."""
    places = [(info.name, Place(info.offset, info.size_bytes)) for info in plan.all]
    header_bytes = len(build_header(about, places))
    size = header_bytes + plan.data_bytes
    with ModelWriter(target, size, force=force) as writer:
        digest = workers.submit(source_sha256, files_of(checkpoint), workers) if _SHA in about else None
        out = Output(writer, workers, progress, header_bytes, checkpoint.path)
        tensors = ((info, None) for info in plan.weights) if calibrator is None else calibrator.tensors()
        for info, hessian in tensors:
            if hessian is None or _is_exact(checkpoint, info):
                out.pack(info, *_source_of(checkpoint, info))
            else:
                out.put(info, _pack_calibrated(checkpoint, info, hessian, workers, progress))
        for info in plan.texts:
            packed = aligned_zeros(info.size_bytes)
            data = plan.contents[info.name]
            packed[: len(data)] = np.frombuffer(data, np.uint8)
            out.put(info, packed)
        out.finish()
        if digest is not None:
            about[_SHA] = workers.result(digest)
        writer.write(0, build_header(about, places))
        writer.write(header_bytes, engine.write_table(plan.config, plan.all))
        workers.check()
        writer.commit()
    return size


def _is_exact(checkpoint: Checkpoint, info: engine.TensorInfo) -> bool:
    """Whether the source is integers that move as they are."""
    bits = {"q8_0": 8, "q5_0": 5, "q4_0": 4}.get(checkpoint.tensors[info.source].dtype)
    target = {engine.FORMAT_Q8: 8, engine.FORMAT_Q6: 6, engine.FORMAT_Q5: 5}.get(info.format, 0)
    return bits is not None and bits <= target


def _pack_calibrated(
    checkpoint: Checkpoint,
    info: engine.TensorInfo,
    hessian: NDArray[np.float32] | Clusters,
    workers: Workers,
    progress: Progress,
) -> NDArray[np.uint8]:
    from rwkv_cpu.quantize.calibrated import pack_calibrated, tensor_work

    with converting(checkpoint.path, info):
        packed = aligned_zeros(info.size_bytes)
        plain = info.with_format(engine.FORMAT_F32)
        values = aligned_zeros(engine.packed_bytes(plain))
        array, dtype = _source_of(checkpoint, info)
        engine.pack(plain, array, dtype, 0, engine.packed_panels(plain), values)
        weights = engine.unpack(plain, values)
        del values
        pack_calibrated(info, weights, hessian, packed, workers.cover)
    progress.work(tensor_work(info) + info.size_bytes)
    return packed


def _source_of(checkpoint: Checkpoint, info: engine.TensorInfo) -> tuple[NDArray[Any], engine.Dtype]:
    """The tensor as the engine takes it: an array of its rows and columns as stored, and its dtype."""
    dtype = checkpoint.tensors[info.source].dtype
    with converting(checkpoint.path, info):
        array = checkpoint.read(info.source)
        if dtype == "f64":
            with np.errstate(over="ignore"):  # what becomes Inf is refused when packed, by name
                array, dtype = array.astype(np.float32), "f32"
    return array, cast("engine.Dtype", dtype)


def source_sha256(paths: Iterable[Path], workers: Workers) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(_SHA_BYTES):
                workers.check()
                digest.update(part)
    return digest.hexdigest()
