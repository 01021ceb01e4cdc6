# SPDX-License-Identifier: Apache-2.0
"""The forward call: the same bits however it is called, states, cancelling, errors."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rwkv_cpu import CancelToken, Model, engine, errors
from rwkv_cpu.errors import (
    ArgumentError,
    Busy,
    Cancelled,
    ForkedError,
    ModelClosedError,
    NonFiniteError,
    RwkvError,
    StateError,
    TokenError,
    UnsupportedModelError,
)
from rwkv_cpu.scheduler import PASS_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ISAS = [isa.name for isa in engine.isas() if isa.usable]
PRODUCTS = (engine.KIND_MATRIX, engine.KIND_LOW_RANK, engine.KIND_VALUE, engine.KIND_HEAD)
TOKENS = np.random.default_rng(7).integers(0, 320, 150).astype(np.uint32)


@pytest.fixture(scope="session", params=["f32", "f16", "q8", "q6", "q5", "q4"])
def rwkv_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden RWKV-7 model in each format."""
    from rwkv_cpu.quantize import quantize

    source = request.config.rootpath / "tests" / "data" / "goldens" / "v7-bf16.pth"
    target = tmp_path_factory.mktemp("models") / f"golden-{request.param}.rwkv"
    quantize(source, target, format=request.param, tokenizer="none")
    return target


@pytest.fixture
def model(rwkv_file: Path) -> Iterator[Model]:
    with Model(rwkv_file) as model:
        yield model


@pytest.fixture(scope="session")
def expected(rwkv_file: Path) -> tuple[bytes, bytes]:
    """Logits of all tokens and the last state, by plain C on one thread in one chunk."""
    with Model(rwkv_file, threads=1, isa="scalar") as model:
        logits, state = model.forward(TOKENS, logits="all")
        return logits.tobytes(), state.data.tobytes()


# --------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_same_bits_on_every_isa_with_any_threads(
    rwkv_file: Path, expected: tuple[bytes, bytes], isa: str, threads: int
) -> None:
    with Model(rwkv_file, threads=threads, isa=isa) as model:
        assert (model.isa, model.threads) == (isa, threads)
        logits, state = model.forward(TOKENS, logits="all")
        assert (logits.tobytes(), state.data.tobytes()) == expected


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("chunk", [1, 5, 64, 1000])
def test_same_bits_in_any_chunks(rwkv_file: Path, expected: tuple[bytes, bytes], isa: str, chunk: int) -> None:
    with Model(rwkv_file, threads=2, isa=isa) as model:
        state = model.new_state()
        steps = range(0, len(TOKENS), chunk)
        rows = [model.advance(TOKENS[at : at + chunk], state, logits="all") for at in steps]
        assert (np.concatenate(rows).tobytes(), state.data.tobytes()) == expected


@pytest.mark.parametrize("chunk", [1, 3, 12, 64])
def test_same_bits_with_small_chunks_inside_the_engine(model: Model, expected: tuple[bytes, bytes], chunk: int) -> None:
    context = engine.Context(threads=2, chunk=chunk)
    opened = engine.OpenModel(model._file.buffer)
    state = np.empty(opened.state_floats, np.float32)
    logits = context.forward(opened, [engine.SequenceRun(TOKENS, None, state, "all")])
    assert (logits.tobytes(), state.tobytes()) == expected
    context.close()
    opened.close()


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_in_a_batch_with_others(rwkv_file: Path, expected: tuple[bytes, bytes], isa: str) -> None:
    with Model(rwkv_file, isa=isa) as model:
        others = [TOKENS[:1], TOKENS[5:40], TOKENS[::-1].copy(), TOKENS[:13]]
        logits, states = model.forward_batch([others[0], TOKENS, *others[1:]], logits="all")
        assert logits[1] is not None
        assert (logits[1].tobytes(), states[1].data.tobytes()) == expected
        for ids, rows, state in zip(others, [logits[0], *logits[2:]], [states[0], *states[2:]], strict=True):
            alone, alone_state = model.forward(ids, logits="all")
            assert rows is not None
            assert np.array_equal(rows, alone)
            assert np.array_equal(state.data, alone_state.data)


def test_batched_decode_equals_single_decode(model: Model) -> None:
    starts = [model.forward(TOKENS[i : i + 9 + i])[1] for i in range(8)]
    together, ends = model.forward_batch([TOKENS[i : i + 1] for i in range(8)], starts)
    for i in range(8):
        logits, state = model.forward(TOKENS[i : i + 1], starts[i])
        assert together[i] is not None
        assert np.array_equal(together[i], logits)
        assert np.array_equal(ends[i].data, state.data)
    in_place = model.advance_batch([TOKENS[i : i + 1] for i in range(8)], starts)
    for i in range(8):
        assert np.array_equal(in_place[i], together[i])
        assert np.array_equal(starts[i].data, ends[i].data)
        assert starts[i].digest == ends[i].digest


def test_a_batch_in_place_wants_a_state_for_every_sequence(model: Model) -> None:
    state = model.new_state()
    before = state.data.tobytes()
    with pytest.raises(ArgumentError, match="2 sequences and 1 states"):
        model.advance_batch([[1], [2]], [state])
    with pytest.raises(ArgumentError, match="0 sequences"):
        model.advance_batch([], [])
    with pytest.raises(TokenError):
        model.advance_batch([[1], [model.n_vocab]], [state, model.new_state()])
    assert state.data.tobytes() == before


def test_a_batch_in_place_reads_a_state_that_it_has_twice_in_order(model: Model) -> None:
    twice, once = model.new_state(), model.new_state()
    model.advance_batch([TOKENS[:3], TOKENS[3:5]], [twice, twice])
    model.advance(TOKENS[:5], once)
    assert np.array_equal(twice.data, once.data)


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_when_the_host_flushes_subnormals(
    inner: Any, rwkv_file: Path, expected: tuple[bytes, bytes], isa: str
) -> None:
    with Model(rwkv_file, threads=2, isa=isa) as model:
        try:
            if not inner.lib.flush_to_zero(1):
                pytest.skip("this CPU has no such switch here")
            tiny = np.float32(1e-40) * np.float32(0.5)
            logits, state = model.forward(TOKENS, logits="all")
            still = np.float32(1e-40) * np.float32(0.5)
        finally:
            inner.lib.flush_to_zero(0)
        assert tiny == still  # the host's setting is given back
        assert (logits.tobytes(), state.data.tobytes()) == expected


def test_state_after_every_token(model: Model) -> None:
    opened = engine.OpenModel(model._file.buffer)
    context = engine.Context(threads=2, chunk=4)
    ids = TOKENS[:11]
    states = np.empty((len(ids), opened.state_floats), np.float32)
    start = model.forward(TOKENS[20:30])[1]
    run = engine.SequenceRun(ids, start.data, states.reshape(-1), "all", every_state=True)
    logits = context.forward(opened, [run])
    one = start
    for t in range(len(ids)):
        row, one = model.forward(ids[t : t + 1], one)
        assert np.array_equal(logits[t], row)
        assert np.array_equal(states[t], one.data)
    context.close()
    opened.close()


# ---------------------------------------------------------------------------------------- states


def test_forward_leaves_the_given_state_alone(model: Model) -> None:
    state = model.forward(TOKENS[:10])[1]
    before = state.data.copy()
    model.forward(TOKENS[10:20], state)
    assert np.array_equal(state.data, before)
    assert state.n_tokens == 10


def test_state_survives_saving_and_loading(model: Model, tmp_path: Path) -> None:
    state = model.forward(TOKENS[:40])[1]
    state.save(tmp_path / "ü.state")
    again = model.load_state(tmp_path / "ü.state")
    assert np.array_equal(again.data, state.data)
    assert again.n_tokens == 40
    assert np.array_equal(model.forward(TOKENS[40:50], again)[0], model.forward(TOKENS[40:50], state)[0])


def test_state_parts_cover_the_state(model: Model) -> None:
    state = model.forward(TOKENS[:4])[1]
    parts = state.parts()
    assert {name: part.shape for name, part in parts.items()} == {
        "att_shift": (2, 128),
        "ffn_shift": (2, 128),
        "wkv": (2, 2, 64, 64),
    }
    assert sum(part.size for part in parts.values()) == state.data.size


def test_state_of_another_model_is_refused(model: Model, demo_path: Path, tmp_path: Path) -> None:
    with Model(demo_path) as other:
        state = other.new_state()
        state.save(tmp_path / "other.state")
        with pytest.raises(StateError, match="another model"):
            model.forward([1], state)
    with pytest.raises(StateError, match="another model"):
        model.load_state(tmp_path / "other.state")


@pytest.mark.parametrize("damage", ["cut", "bit", "header", "nan", "empty"])
def test_damaged_state_files_are_refused(model: Model, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.state"
    state = model.forward(TOKENS[:4])[1]
    if damage == "nan":
        state.data[17] = np.nan
    state.save(path)
    raw = bytearray(path.read_bytes())
    if damage == "bit":
        raw[-5] ^= 4
    elif damage == "header":
        raw[9] ^= 0xFF
    path.write_bytes(bytes(raw[: len(raw) // 2] if damage == "cut" else raw[: 0 if damage == "empty" else None]))
    with pytest.raises(ValueError, match=r"a\.state|NaN"):
        model.load_state(path)


# ------------------------------------------------------------------------------------- cancelling


def test_cancel_between_chunks_keeps_whole_chunks(model: Model) -> None:
    token, state = CancelToken(), model.forward(TOKENS[:3])[1]
    long = np.resize(TOKENS, PASS_TOKENS * 5)

    def stop(done: int, total: int) -> None:
        assert total == len(long)
        if done == 2 * PASS_TOKENS:
            token.cancel()

    with pytest.raises(Cancelled) as caught:
        model.advance(long, state, cancel=token, progress=stop)
    assert caught.value.n_done == 2 * PASS_TOKENS
    assert state.n_tokens == 3 + 2 * PASS_TOKENS
    expected = model.forward(np.concatenate([TOKENS[:3], long[: 2 * PASS_TOKENS]]))[1]
    assert np.array_equal(state.data, expected.data)


def test_cancel_from_another_thread_leaves_a_valid_state(model: Model) -> None:
    long = np.resize(TOKENS, 200_000)
    token, state = CancelToken(), model.new_state()
    started = threading.Event()
    caught: list[Cancelled] = []

    def run() -> None:
        try:
            model.advance(long, state, logits="none", cancel=token, progress=lambda *_: started.set())
        except Cancelled as error:
            caught.append(error)

    worker = threading.Thread(target=run)
    worker.start()
    assert started.wait(60)
    token.cancel()
    worker.join(60)
    assert caught
    assert 0 < state.n_tokens < len(long)
    assert state.n_tokens == caught[0].n_done
    assert np.array_equal(state.data, model.forward(long[: state.n_tokens], logits="none")[1].data)


def test_cancelled_before_it_begins(model: Model) -> None:
    token, state = CancelToken(), model.forward(TOKENS[:5])[1]
    before = state.data.copy()
    token.cancel()
    with pytest.raises(Cancelled) as caught:
        model.advance(TOKENS, state, cancel=token)
    assert caught.value.n_done == 0
    assert np.array_equal(state.data, before)


def test_an_error_in_the_progress_callback_comes_out(model: Model) -> None:
    def fail(done: int, total: int) -> None:
        raise RuntimeError(f"{done} of {total}")

    with pytest.raises(RuntimeError, match="150 of 150"):
        model.forward(TOKENS, progress=fail)
    assert model.forward(TOKENS[:2])[0].shape == (320,)


def test_ctrl_c_ends_a_prefill_with_and_without_a_callback(rwkv_file: Path) -> None:
    """In a process of its own, since the signal goes to the main thread. Nothing is printed."""
    for callback in ("None", "lambda done, total: None"):
        code = f"""
import os, signal, threading
from rwkv_cpu import Model
model = Model({str(rwkv_file)!r}, isa="scalar")
state = model.new_state()
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    model.advance([5] * 3_000_000, state, logits="none", progress={callback})
except KeyboardInterrupt:
    assert state.n_tokens < 3_000_000
    print("stopped")
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        assert (run.returncode, run.stdout, run.stderr) == (0, "stopped\n", "")


def test_the_inputs_of_every_product_are_shown(model: Model) -> None:
    """Calibration: what W multiplies, once for each token and weight; the result does not change."""
    seen: dict[str, list[np.ndarray]] = {}

    def show(name: str, x: np.ndarray) -> None:
        seen.setdefault(name, []).append(x.copy())

    state: np.ndarray = np.empty(model.state_bytes // 4, np.float32)
    run = engine.SequenceRun(TOKENS, None, state, "all")
    opened = model._opened()
    logits = model.context.forward(opened, [run], inputs=show)
    assert logits.tobytes() == model.forward(TOKENS, logits="all")[0].tobytes()
    products = {info.name: info for info in opened.tensors() if info.kind in PRODUCTS}
    assert set(products) == set(seen)
    for name, rows in seen.items():
        x = np.concatenate(rows)
        assert x.shape == (len(TOKENS), products[name].cols)
        assert np.isfinite(x).all()
    head = products["head.weight"]
    weight = engine.unpack(head, opened.bytes_of(head.name))
    assert np.abs(np.concatenate(seen[head.name]) @ weight.T - logits).max() < 1e-3


def test_an_error_in_the_inputs_callback_comes_out(model: Model) -> None:
    def fail(_name: str, _x: np.ndarray) -> None:
        raise KeyError("mine")

    run = engine.SequenceRun(TOKENS, None, np.empty(model.state_bytes // 4, np.float32))
    with pytest.raises(KeyError, match="mine"):
        model.context.forward(model._opened(), [run], inputs=fail)


def test_a_progress_callback_cannot_close_the_running_model(model: Model) -> None:
    def close(done: int, total: int) -> None:
        with pytest.raises(Busy):
            model.close()

    model.forward(TOKENS, progress=close)
    assert model.forward(TOKENS[:2])[0].shape == (320,)


def test_threads_take_turns_with_one_state(model: Model) -> None:
    state, expected = model.new_state(), model.new_state()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: model.advance([5], state, logits="none"), range(200)))
    model.advance([5] * 200, expected, logits="none")
    assert state.n_tokens == 200
    assert np.array_equal(state.data, expected.data)


def test_copies(model: Model) -> None:
    state = model.forward(TOKENS[:5])[1]
    for twin in (copy.copy(state), copy.deepcopy(state)):
        before = twin.data.copy()
        model.advance([1], state)
        model.advance([2], state)
        assert np.array_equal(twin.data, before)
    for how in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied"):
            how(model)


# ----------------------------------------------------------------------------------------- errors


def test_other_misuse_has_typed_errors(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="logits"):
        model.forward([1], logits="some")  # type: ignore[call-overload]
    with pytest.raises(TokenError):
        model.forward([[1], [1, 2]])  # type: ignore[list-item]
    with pytest.raises(StateError):
        model.forward([1], 3)  # type: ignore[arg-type]
    os.mkfifo(tmp_path / "fifo")
    for what in ("/dev/zero", tmp_path / "fifo", tmp_path):
        with pytest.raises(RwkvError):
            model.load_state(what)
        with pytest.raises(RwkvError):
            model.new_state().save(what)


@pytest.mark.parametrize("ids", [[320], [-1], [1, 2, 400, 3], [2**40]])
def test_ids_outside_the_vocabulary_are_named(model: Model, ids: list[int]) -> None:
    position = next(i for i, token in enumerate(ids) if not 0 <= token < 320)
    with pytest.raises(TokenError, match=f"position {position}"):
        model.forward(ids)


@pytest.mark.parametrize("ids", [[], [0.5], [[1, 2]], ["a"]])
def test_what_is_no_list_of_ids_is_refused(model: Model, ids: Any) -> None:
    with pytest.raises(TokenError):
        model.forward(ids)


def test_a_state_with_nan_gives_an_error_not_noise(model: Model) -> None:
    state = model.forward(TOKENS[:4])[1]
    for part in state.parts().values():
        part[...] = np.nan
    with pytest.raises(NonFiniteError):
        model.forward(TOKENS[:4], state)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("part", ["att_shift", "ffn_shift", "wkv"])
def test_one_nan_in_a_state_is_an_error_on_every_isa(rwkv_file: Path, isa: str, part: str) -> None:
    with Model(rwkv_file, isa=isa) as model:
        for place in (0, 3, 31, 77):
            state = model.forward(TOKENS[:4])[1]
            state.parts()[part].reshape(2, -1)[0, place] = np.nan
            with pytest.raises(NonFiniteError):
                model.forward(TOKENS[:4], state)


def test_tokens_that_change_during_the_call_do_no_harm(model: Model, rwkv_file: Path) -> None:
    """A model takes a copy; the engine checks the very copy that it uses."""
    ids = np.resize(TOKENS, 60_000).astype(np.uint32)
    expected = model.forward(ids, logits="none")[1]

    def spoiled(call: Callable[[Callable[[int, int], None]], object]) -> None:
        writer = threading.Thread(target=lambda: [ids.fill(value) for value in (5, 0x7FFFFFFF)])

        def spoil(done: int, total: int) -> None:
            if not writer.ident:
                writer.start()

        try:
            call(spoil)
        finally:
            writer.join()

    state = model.new_state()
    spoiled(lambda spoil: model.advance(ids, state, logits="none", progress=spoil))
    assert np.array_equal(state.data, expected.data)
    ids[:] = np.resize(TOKENS, 60_000)
    run = engine.SequenceRun(ids, None, np.empty_like(state.data), "none")
    with pytest.raises(TokenError, match="changed during the call"):
        spoiled(lambda spoil: model.context.forward(model._engine, [run], progress=spoil))


def test_unknown_isa_and_absurd_threads(rwkv_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedModelError, match="sse9"):
        Model(rwkv_file, isa="sse9")
    for threads in (0, -1, 100_000):
        with pytest.raises(ArgumentError):
            Model(rwkv_file, threads=threads)
    monkeypatch.setenv("RWKV_CPU_ISA", "mmx")
    with pytest.raises(UnsupportedModelError, match=r"RWKV_CPU_ISA.*mmx"):
        Model(rwkv_file)


@pytest.mark.parametrize("isa", ISAS)
def test_environment_chooses_the_isa(rwkv_file: Path, monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    monkeypatch.setenv("RWKV_CPU_ISA", isa)
    with Model(rwkv_file) as model:
        assert model.isa == isa


def test_closed_model(rwkv_file: Path) -> None:
    model = Model(rwkv_file)
    state = model.new_state()
    model.close()
    model.close()
    for call in (lambda: model.forward([1]), lambda: model.advance([1], state), model.new_state, lambda: model.isa):
        with pytest.raises(ModelClosedError):
            call()


# ------------------------------------------------------------------------------ threads, processes


def test_loading_in_eight_threads_at_once(rwkv_file: Path, expected: tuple[bytes, bytes]) -> None:
    def use(_: int) -> bytes:
        with Model(rwkv_file, threads=2) as model:
            return model.forward(TOKENS, logits="all")[0].tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(use, range(8))) == {expected[0]}


def test_threads_share_a_model(model: Model, expected: tuple[bytes, bytes]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model.forward(TOKENS, logits="all")[0].tobytes(), range(8)))
    assert set(found) == {expected[0]}


def test_threads_can_be_changed_between_calls(model: Model, expected: tuple[bytes, bytes]) -> None:
    for threads in (3, 1, 2):
        model.threads = threads
        assert model.threads == threads
        assert model.forward(TOKENS, logits="all")[0].tobytes() == expected[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_of_fork_works_with_threads_of_its_own(model: Model, expected: tuple[bytes, bytes]) -> None:
    model.threads = 3
    model.forward(TOKENS)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if model.forward(TOKENS, logits="all")[0].tobytes() == expected[0] else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert model.forward(TOKENS, logits="all")[0].tobytes() == expected[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_inherited_context_is_an_error_not_a_hang(model: Model) -> None:
    context = engine.Context(threads=2)
    opened = engine.OpenModel(model._file.buffer)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run = engine.SequenceRun(TOKENS, None, np.empty(opened.state_floats, np.float32))
            context.forward(opened, [run])
        except ForkedError:
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    context.close()
    opened.close()


def test_every_status_has_an_exception() -> None:
    statuses = [
        value for name in dir(engine.lib) if name.startswith("RWKVC_E_") and (value := getattr(engine.lib, name))
    ]
    assert sorted(statuses) == list(range(1, 13))
    for status in statuses:
        with pytest.raises(errors.RwkvError):
            engine.check(status)
