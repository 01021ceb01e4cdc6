# SPDX-License-Identifier: Apache-2.0
"""LoRA, PiSSA and tuned states: merged exactly, refused by name where they do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from rwkv_cpu import Model
from rwkv_cpu.chat import Chat
from rwkv_cpu.checkpoint import open_checkpoint
from rwkv_cpu.checkpoint.adapters import AdaptedCheckpoint
from rwkv_cpu.checkpoint.tuned_state import is_tuned_state
from rwkv_cpu.errors import (
    ArgumentError,
    FormatError,
    ModelNotFoundError,
    RwkvError,
    ShapeError,
    StateError,
    UnsupportedModelError,
)
from rwkv_cpu.quantize import quantize
from tests.pth_writer import bf16, rwkv7_tensors, write_checkpoint
from tests.safetensors_writer import Arrays, as_fla, as_web_rwkv, write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

RANK = 4
TENSORS = rwkv7_tensors()
TARGETS = ["blocks.0.att.key", "blocks.1.ffn.key", "blocks.1.ffn.value", "head"]


def factors(names: list[str] = TARGETS, *, seed: int = 1, init: bool = False) -> Arrays:
    rng = np.random.default_rng(seed)
    found: Arrays = {}
    for name in names:
        rows, cols = TENSORS[f"{name}.weight"].shape
        for part, shape in (("A", (RANK, cols)), ("B", (rows, RANK))):
            found[f"{name}.{'init_' if init else ''}lora_{part}"] = rng.standard_normal(shape).astype("f4")
    return found


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base.pth", TENSORS, "bf16")


def widened(array: np.ndarray) -> np.ndarray:
    """What bf16 keeps of it."""
    return (bf16(array).astype(np.uint32) << 16).view(np.float32).reshape(array.shape)


def merged(base: Path, lora: Path, alpha: float | None = None, init: Path | None = None) -> Arrays:
    with AdaptedCheckpoint(open_checkpoint(base), lora, alpha, init) as checkpoint:
        found = {}
        for name, meta in checkpoint.tensors.items():
            found[name] = np.array(checkpoint.read(name))
            assert found[name].shape == meta.shape
            assert (found[name].dtype == np.float32) == (meta.dtype == "f32")
        return found


def test_lora_is_merged_and_the_rest_left_alone(base: Path, tmp_path: Path) -> None:
    pairs = factors()
    found = merged(base, write_checkpoint(tmp_path / "lora.pth", pairs), 8)
    for name, array in TENSORS.items():
        stem = name.removesuffix(".weight")
        if stem in TARGETS:
            product = pairs[f"{stem}.lora_B"].astype("f8") @ pairs[f"{stem}.lora_A"]
            np.testing.assert_allclose(found[name], widened(array) + 8 / RANK * product, rtol=2e-6, atol=2e-6)
        else:
            assert np.array_equal(found[name], bf16(array).reshape(array.shape))


def test_all_containers_and_namings_merge_the_same(base: Path, tmp_path: Path) -> None:
    pairs = factors()
    expected = merged(base, write_checkpoint(tmp_path / "lora.pth", pairs), 16)
    prefixed = {f"model.{name}": array for name, array in pairs.items()}
    web = {
        name.replace("lora_A", "lora.0").replace("lora_B", "lora.1"): array.T if name.endswith("A") else array
        for name, array in pairs.items()
    }
    fla = write_safetensors(tmp_path / "fla.safetensors", {n: bf16(a) for n, a in as_fla(TENSORS).items()})
    for source, lora in (
        (base, write_safetensors(tmp_path / "lora.safetensors", pairs)),
        (base, write_checkpoint(tmp_path / "prefixed.pth", prefixed)),
        (base, write_safetensors(tmp_path / "web.st", web)),
        (fla, tmp_path / "lora.pth"),
    ):
        found = merged(source, lora, 16)
        for name in TARGETS:
            assert found[f"{name}.weight"].tobytes() == expected[f"{name}.weight"].tobytes()


def test_pissa_takes_the_initial_factors_away(base: Path, tmp_path: Path) -> None:
    pairs, initial = factors(), factors(seed=2, init=True)
    lora, init = write_checkpoint(tmp_path / "l.pth", pairs), write_checkpoint(tmp_path / "init.pth", initial)
    found = merged(base, lora, None, init)
    for stem in TARGETS:
        product = pairs[f"{stem}.lora_B"].astype("f8") @ pairs[f"{stem}.lora_A"]
        product -= initial[f"{stem}.init_lora_B"].astype("f8") @ initial[f"{stem}.init_lora_A"]
        expected = widened(TENSORS[f"{stem}.weight"]) + product
        np.testing.assert_allclose(found[f"{stem}.weight"], expected, rtol=2e-6, atol=4e-6)
    prefixed = write_checkpoint(tmp_path / "p.pth", {f"model.{name}": array for name, array in initial.items()})
    again = merged(base, lora, 99, prefixed)  # PiSSA has no alpha
    assert all(again[name].tobytes() == array.tobytes() for name, array in found.items())


def test_other_tensors_of_the_file_replace(base: Path, tmp_path: Path) -> None:
    new = {"blocks.1.ln2.weight": np.arange(64, dtype="f4"), "blocks.0.att.w0": np.ones(64, "f4")}
    found = merged(base, write_checkpoint(tmp_path / "lora.pth", new))
    for name, array in new.items():
        assert np.array_equal(found[name].reshape(-1), array)
        assert found[name].shape == TENSORS[name].shape


def test_converted_with_an_adapter_equals_the_merged_checkpoint(base: Path, tmp_path: Path) -> None:
    lora = write_checkpoint(tmp_path / "lora.pth", factors())
    whole = write_checkpoint(tmp_path / "whole.pth", TENSORS | merged_as_f32(base, lora))
    tokens, logits = [1, 2, 3], []
    quantize(base, tmp_path / "a.rwkv", format="f32", tokenizer="none", lora=lora, lora_alpha=16)
    quantize(whole, tmp_path / "b.rwkv", format="f32", tokenizer="none")
    for name in ("a", "b"):
        with Model(tmp_path / f"{name}.rwkv") as model:
            logits.append(model.forward(tokens)[0])
    assert logits[0].tobytes() == logits[1].tobytes()


def merged_as_f32(base: Path, lora: Path) -> Arrays:
    return {
        name: array if array.dtype == np.float32 else (array.astype(np.uint32) << 16).view(np.float32)
        for name, array in merged(base, lora, 16).items()
    }


def test_model_load_keeps_one_copy_for_each_adapter(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RWKV_CPU_HOME", str(tmp_path / "home"))
    lora = write_checkpoint(tmp_path / "lora.pth", factors())
    paths = []
    for options in (
        {},
        {"lora": lora, "lora_alpha": 8},
        {"lora": lora, "lora_alpha": 16},
        {"lora": lora, "lora_alpha": 8},
    ):
        with Model.load(base, **options) as model:
            paths.append(model.path)
    assert len(set(paths)) == 3
    assert paths[1] == paths[3]
    with pytest.raises(ArgumentError, match=r"\.rwkv"):
        Model.load(paths[0], lora=lora, lora_alpha=8)
    with pytest.raises(ArgumentError, match="none is given"):
        Model.load(base, lora_alpha=8)


# --------------------------------------------------------------------------------------- refusals


def without(tensors: Arrays, name: str) -> Arrays:
    return {key: array for key, array in tensors.items() if key != name}


NAME = "blocks.0.att.key"
SQUARE = np.zeros((64, 64), "f4")


@pytest.mark.parametrize(
    ("tensors", "alpha", "error", "said"),
    [
        (factors(), None, ArgumentError, "alpha"),
        (factors(), 0, ArgumentError, "positive"),
        (factors(), float("nan"), ArgumentError, "positive"),
        (without(factors(), f"{NAME}.lora_B"), 8, FormatError, "partner"),
        ({f"{NAME}.lora_A": SQUARE, f"{NAME}.lora_B": SQUARE[:, :3]}, 8, ShapeError, "att.key"),
        ({f"{NAME}.lora_A": SQUARE[:2, :9], f"{NAME}.lora_B": SQUARE[:, :2]}, 8, ShapeError, "att.key"),
        ({f"{NAME}.lora_A": SQUARE[:0], f"{NAME}.lora_B": SQUARE[:, :0]}, 8, ShapeError, "att.key"),
        ({"blocks.9.att.key.lora_A": SQUARE, "blocks.9.att.key.lora_B": SQUARE}, 8, ShapeError, r"blocks\.9"),
        ({f"{NAME}.lora_A": SQUARE.astype("i8"), f"{NAME}.lora_B": SQUARE}, 8, UnsupportedModelError, "i64"),
        ({"blocks.0.ln2.weight": SQUARE}, None, ShapeError, "ln2"),
        ({"blocks.0.ln9.weight": SQUARE}, None, ShapeError, "ln9"),
        ({f"{NAME}.bone": SQUARE}, 8, UnsupportedModelError, "Bone"),
        ({f"{NAME}.disha": SQUARE}, None, UnsupportedModelError, "DiSHA"),
        ({"base_model.model.x.lora_A.weight": SQUARE}, 8, UnsupportedModelError, "PEFT"),
        ({"something": SQUARE}, 8, UnsupportedModelError, "something"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_merged_is_refused_and_named(
    base: Path, tmp_path: Path, tensors: Arrays, alpha: float | None, error: type[RwkvError], said: str
) -> None:
    lora = write_checkpoint(tmp_path / "lora.pth", tensors)
    with pytest.raises(error, match=said) as caught:
        quantize(base, tmp_path / "m.rwkv", tokenizer="none", lora=lora, lora_alpha=alpha)
    assert str(lora) in str(caught.value) or error is ArgumentError
    assert not (tmp_path / "m.rwkv").exists()


def test_pissa_without_all_initial_factors_is_refused(base: Path, tmp_path: Path) -> None:
    lora = write_checkpoint(tmp_path / "l.pth", factors())
    init = write_checkpoint(tmp_path / "init.pth", factors(TARGETS[:2], init=True))
    with pytest.raises(FormatError, match="init_lora_A"):
        merged(base, lora, None, init)


def test_options_of_an_adapter_without_one_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="none is given"):
        quantize(base, tmp_path / "m.rwkv", lora_alpha=16)
    with pytest.raises(ModelNotFoundError):
        quantize(base, tmp_path / "m.rwkv", lora=tmp_path / "none.pth", lora_alpha=16)


def test_quantize_command_merges(base: Path, tmp_path: Path) -> None:
    from rwkv_cpu.cli.quantize import command

    lora = write_checkpoint(tmp_path / "lora.pth", factors())
    common = [str(base), str(tmp_path / "m.rwkv"), "--format", "f32", "--tokenizer", "none", "--lora", str(lora)]
    result = CliRunner().invoke(command, [*common, "--lora-alpha", "16"])
    assert result.exit_code == 0, result.output
    with Model(tmp_path / "m.rwkv") as model:
        assert model.metadata["rwkv_cpu.lora"] == "lora.pth"
    result = CliRunner().invoke(command, [*common, "--force"])
    assert isinstance(result.exception, ArgumentError)


# ----------------------------------------------------------------------------------- tuned states


def tuned(n_layer: int = 2, n_head: int = 4, head_size: int = 16) -> Arrays:
    rng = np.random.default_rng(5)
    return {
        f"blocks.{layer}.att.time_state": rng.standard_normal((n_head, head_size, head_size)).astype("f4")
        for layer in range(n_layer)
    }


@pytest.fixture
def model_file(base: Path, tmp_path: Path) -> Path:
    quantize(base, tmp_path / "m.rwkv", format="f32", tokenizer="none")
    return tmp_path / "m.rwkv"


def test_a_tuned_state_is_read_from_every_container(model_file: Path, tmp_path: Path) -> None:
    states = tuned()
    web = as_web_rwkv(states)
    files = [
        write_checkpoint(tmp_path / "s.pth", states),
        write_checkpoint(tmp_path / "prefixed.pth", {f"model.{name}": array for name, array in states.items()}),
        write_safetensors(tmp_path / "s.st", web),
        write_safetensors(tmp_path / "s.safetensors", states),
        write_safetensors(tmp_path / "whole.safetensors", as_web_rwkv(TENSORS) | web),
        write_safetensors(tmp_path / "whole2.st", TENSORS | states),
    ]
    with Model(model_file) as model:
        for file in files:
            assert is_tuned_state(file)
            state = model.load_state(file)
            assert state.n_tokens == 0
            parts = state.parts()
            for layer, expected in enumerate(states.values()):
                assert np.array_equal(parts["wkv"][layer], expected.swapaxes(1, 2))  # [head, key, value]
            assert not parts["att_shift"].any()
            assert not parts["ffn_shift"].any()


def test_own_state_files_are_read_as_ever(model_file: Path, tmp_path: Path) -> None:
    with Model(model_file) as model:
        _, state = model.forward([1, 2, 3])
        state.save(tmp_path / "own.state")
        assert not is_tuned_state(tmp_path / "own.state")
        assert model.load_state(tmp_path / "own.state").data.tobytes() == state.data.tobytes()
        with pytest.raises(RwkvError, match="cannot be read"):
            model.load_state(tmp_path / "none.state")


@pytest.mark.parametrize(
    ("states", "error", "said"),
    [
        (tuned(1), StateError, "1 layers, the model has 2"),
        (tuned(3), StateError, "3 layers, the model has 2"),
        (tuned(2, 2), StateError, "shape"),
        (tuned(2, 4, 8), StateError, "shape"),
        ({name: np.full_like(array, np.nan) for name, array in tuned().items()}, StateError, "NaN"),
        ({name: array.astype("i8") for name, array in tuned().items()}, FormatError, "i64"),
        (factors(), FormatError, "lora_A"),
        (tuned() | {"model.blocks.1.att.time_state": SQUARE}, FormatError, "twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_states_that_do_not_fit_are_refused(
    model_file: Path, tmp_path: Path, states: Arrays, error: type[RwkvError], said: str
) -> None:
    path = write_checkpoint(tmp_path / "s.pth", states)
    with Model(model_file) as model, pytest.raises(error, match=said) as caught:
        model.load_state(path)
    assert str(path) in str(caught.value)


@pytest.fixture(scope="module")
def demo_state(demo_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up tuned state for the demonstration model."""
    with Model(demo_path) as model:
        config = model.config
    states = {name: array * 20 for name, array in tuned(config.n_layer, config.n_head, config.head_size).items()}
    return write_checkpoint(tmp_path_factory.mktemp("state") / "tuned.pth", states)


def test_a_chat_begins_with_its_state_again_after_reset_undo_and_load(
    demo_path: Path, demo_state: Path, tmp_path: Path
) -> None:
    with Model(demo_path) as model:
        start = model.load_state(demo_state)
        before = start.data.tobytes()

        def answer(chat: Chat) -> str:
            return "".join(chat.send("Hello"))

        plain = Chat(model, max_tokens=24, temperature=0)
        chat = Chat(model, state=start, max_tokens=24, temperature=0)
        first = answer(chat)
        assert first != answer(plain)
        chat.undo()
        assert answer(chat) == first
        assert "".join(chat.retry()) == first
        chat.reset()
        assert answer(chat) == first
        assert "".join(chat.fork().edit(0, "Hello")) == first
        chat.save(tmp_path / "talk.json")
        loaded = Chat.load(tmp_path / "talk.json", model, state=start)
        assert "".join(loaded.retry()) == first
        assert "".join(Chat.load(tmp_path / "talk.json", model).retry()) != first
        assert start.data.tobytes() == before


def test_generate_and_chat_commands_take_a_state(demo_path: Path, demo_state: Path) -> None:
    from rwkv_cpu.cli import chat, generate

    for module, words, text in (
        (generate, ["-p", "Hello", "--temperature", "0", "-n", "16"], None),
        (chat, ["--temperature", "0", "-n", "16"], "Hello\n"),
    ):
        outputs = []
        for options in ([], ["--state", str(demo_state)]):
            result = CliRunner().invoke(module.command, [str(demo_path), *words, *options], input=text)
            assert result.exit_code == 0, result.output
            outputs.append(result.stdout)
        assert outputs[0] != outputs[1]
