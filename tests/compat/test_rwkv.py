# SPDX-License-Identifier: Apache-2.0
"""The rwkv package's interface. What it must give was recorded from the package itself (0.8.32, torch, cpu fp32)."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rwkv_cpu.compat.rwkv.model import RWKV, RWKV_x070
from rwkv_cpu.compat.rwkv.utils import PIPELINE, PIPELINE_ARGS
from rwkv_cpu.errors import StateError, TokenError

if TYPE_CHECKING:
    from pathlib import Path

V4 = "v4-fp32.pth"
VERSIONS = [V4, "v5.0-fp16.pth", "v5.1-fp16.pth", "v5.2-bf16.pth", "v6-fp16.pth", "v7-bf16.pth"]


@pytest.fixture
def open_golden(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """open_golden(file) → RWKV. Converted files go where nobody else looks."""
    monkeypatch.setenv("RWKV_CPU_HOME", str(tmp_path))
    opened = []

    def open_it(name: str, strategy: str = "cpu fp32") -> RWKV:
        opened.append(RWKV(model=str(shared / "goldens" / "models" / name), strategy=strategy, verbose=False))
        return opened[-1]

    yield open_it
    for model in opened:
        model.close()


def expected_of(shared: Path, name: str):
    return np.load(shared / "goldens" / "expected" / f"{name}.npz")


@pytest.mark.parametrize("name", VERSIONS)
def test_logits_and_state_lists_are_the_packages(open_golden, shared: Path, name: str):
    model, data = open_golden(name), expected_of(shared, name)
    tokens = data["p1_tokens"].tolist()
    every, state = model.forward(tokens, None, full_output=True)
    assert np.abs(every.numpy()[data["p1_positions"]] - data["p1_logits"]).max() < 0.002
    first, one_by_one = model.forward(tokens[0], None)
    for token in tokens[1:]:
        first, same = model.forward([token], one_by_one)
        assert same is one_by_one
    assert np.array_equal(first, every[-1])
    per_layer = 5 if name == V4 else 3
    assert len(state) == model.args.n_layer * per_layer
    for ours, other in zip(state, one_by_one, strict=True):
        assert np.array_equal(ours, other)
    # [value, key] in RWKV-7 and [key, value] before: the engine has [key, value] always.
    if name != V4:
        wkv = model._state_of(state).parts()["wkv"]
        assert np.array_equal(state[1], wkv[0].swapaxes(1, 2) if name.startswith("v7") else wkv[0])


@pytest.mark.parametrize("name", [V4, "v6-fp16.pth", "v7-bf16.pth"])
def test_state_lists_are_values(open_golden, name: str):
    """Copies stay what they were, changes are seen, and lists made of foreign arrays work."""
    model = open_golden(name)
    _, state = model.forward([1, 2, 3], None)
    shallow, deep = list(state), copy.deepcopy(state)
    expected, after = model.forward([4, 5], deep)
    assert after is deep
    assert np.array_equal(model.forward([4, 5], shallow)[0], expected)
    plain = [np.array(part, np.float64) for part in state]
    assert np.array_equal(model.forward([4, 5], plain)[0], expected)
    changed = copy.deepcopy(state)
    changed[1] = changed[1] * 1.5
    assert not np.array_equal(model.forward([4, 5], changed)[0], expected)
    state[1][...] *= 1.5  # in the array itself
    assert not np.array_equal(model.forward([4, 5], state)[0], expected)
    zero = model.generate_zero_state()
    assert np.array_equal(model.forward([1, 2], zero)[0], model.forward([1, 2], None)[0])
    with pytest.raises(StateError):
        model.forward([1], state[:-1])
    with pytest.raises(StateError):
        model.forward([1], [part[..., :-1] for part in state])
    with pytest.raises(TokenError):
        model.forward([], None)


def test_all_versions_in_one_process(open_golden):
    models = [open_golden(name) for name in VERSIONS]
    assert [model.version for model in models] == [4, 5, 5.1, 5.2, 6, 7]
    states = [None] * len(models)
    for _ in range(3):
        for i, model in enumerate(models):
            _, states[i] = model.forward([3], states[i])
    assert RWKV_x070 is RWKV


@pytest.mark.parametrize(
    ("strategy", "stored"),
    [
        ("cpu fp32", "f32"),
        ("cuda fp16", "f16"),
        ("cpu bf16", "f16"),
        ("cuda fp16i8 *6 -> cuda fp16 *0+ -> cpu fp32 *1", "q8"),
        ("cuda:0 fp16 *25 -> cuda:1 fp16", "f16"),
    ],
)
def test_strategies(open_golden, strategy: str, stored: str):
    model = open_golden("v7-bf16", strategy)  # .pth is appended
    assert model.model.metadata["rwkv_cpu.format"] == stored
    assert model.args.strategy_string == strategy


@pytest.mark.parametrize("strategy", ["", "cpu", "cpu fp8", "gpu fp16", "cpu fp32 cuda fp16"])
def test_what_is_no_strategy_is_refused(strategy: str):
    with pytest.raises(ValueError, match="Invalid strategy"):
        RWKV(model="demo", strategy=strategy)


class Letters:
    """A tokenizer that makes differences visible."""

    def encode(self, text: str) -> list[int]:
        return [ord(c) % 250 for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(32 + i % 90) for i in ids)


@pytest.mark.parametrize(
    ("seed", "args", "text"),
    [
        (0, {}, "$8p\\/Yj6fq^]3Y'm,*1Yf.5J\"E\\L\\vTdH<3>NECU2X-2k*lkU(4t] Pa-P\\/"),
        (1, {"temperature": 1.5, "top_p": 0.3}, "$8pdPa+_mA&>g]3Y_mA&>g1Y@F9pdUuUd.[-k*53.\\! N>g*>r$8p`o9pdUO"),
        (2, {"temperature": 0}, "$8pdPayHMt[D.d< #A=HM4+Gks^4d$ks^4d$ks^4Fu;]3rkMUf*Z3.\\y[\\ww"),
        (
            3,
            {"top_k": 5, "top_p": 0.9, "alpha_decay": 0.9},
            '$8Asd] Pa([\\>8pdPqD8w]QWJ_w#tU=n\\auA&>g1Xo,bZNc"4d$r$"4d1Z#e',
        ),
        (4, {"token_ban": [1, 2, 3], "token_stop": [77]}, None),
        (
            5,
            {"temperature": 0.7, "top_p": 0.5, "alpha_frequency": 0, "alpha_presence": 0},
            "$8pdUuW]32$+oCiY]3AsUuUdU5'ke]e9pdUO4tau;]3.Uf*Z3.\\y[\\wwwwE_",
        ),
    ],
)
def test_the_same_seed_gives_the_packages_text(open_golden, seed: int, args: dict, text: str | None):
    pipeline = PIPELINE(open_golden(V4), "rwkv_vocab_v20230424")
    pipeline.tokenizer = Letters()
    np.random.seed(seed)  # noqa: NPY002 (what the package draws from)
    seen: list[str] = []
    found = pipeline.generate("hello world 12", token_count=60, args=PIPELINE_ARGS(**args), callback=seen.append)
    assert "".join(seen) == found
    if text is not None:
        assert found == text
    else:
        assert 0 < len(found) <= 60


def test_sampling_cuts_at_top_p_before_temperature_and_keeps_ties():
    pipeline = PIPELINE.__new__(PIPELINE)
    np.random.seed(0)  # noqa: NPY002
    logits = np.log(np.array([0.4, 0.2, 0.2, 0.1, 0.1], np.float32))
    drawn = {pipeline.sample_logits(logits.copy(), temperature=50.0, top_p=0.5) for _ in range(300)}
    assert drawn == {0, 1, 2}  # both tokens of the border
    assert {pipeline.sample_logits(logits.copy(), temperature=0) for _ in range(50)} == {0}
    assert {pipeline.sample_logits(logits.copy(), top_p=1, top_k=1) for _ in range(50)} == {0}
    assert np.allclose(logits, np.log([0.4, 0.2, 0.2, 0.1, 0.1]))


def test_pipeline_with_the_world_vocabulary():
    pipeline = PIPELINE.__new__(PIPELINE)
    PIPELINE.__init__(pipeline, None, "rwkv_vocab_v20230424")  # type: ignore[arg-type]
    ids = pipeline.encode("Hello 世界 🚀")
    assert pipeline.decode(ids) == "Hello 世界 🚀"
    assert pipeline.decode([*pipeline.encode("🚀")[:1], 1]) == "\ufffd"
    assert pipeline.refine_context("\n a \n\n  b\u3000\r\n") == "\na\nb"


PUBLISHED = """
import os
os.environ["RWKV_V7_ON"] = '1'
os.environ['RWKV_JIT_ON'] = '1'
os.environ["RWKV_CUDA_ON"] = '0'
from rwkv_cpu.compat.rwkv.model import RWKV
from rwkv_cpu.compat.rwkv.utils import PIPELINE, PIPELINE_ARGS
model = RWKV(model={model!r}, strategy='cuda fp16')
pipeline = PIPELINE(model, {words!r})
args = PIPELINE_ARGS(temperature = 1.0, top_p = 0.5, top_k = 100, alpha_frequency = 0.0, alpha_presence = 0.0,
                     alpha_decay = 0.997, token_ban = [], token_stop = [], chunk_len = 256)
def my_print(s):
    print(s, end='', flush=True)
pipeline.generate("User: Hi!\\n\\nAssistant:", token_count=8, args=args, callback=my_print)
out, state = model.forward([187, 310, 63, 310, 247], None)
a = out.detach().cpu().numpy()
out, state = model.forward([187, 310], None)
out, state = model.forward([63], state)
out, state = model.forward([310, 247], state)
b = out.detach().cpu().numpy()
assert (a == b).all()
import sys
assert "torch" not in sys.modules
"""


def test_the_packages_published_example_runs(shared: Path, tmp_path: Path):
    """The lines of its README, with the demonstration model."""
    folder = shared / "demo-model"
    code = PUBLISHED.format(model=str(folder / "pip-demo-rwkv7"), words=str(folder / "pip-demo-rwkv7.model"))
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"RWKV_CPU_HOME": str(tmp_path), "PATH": ""},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_strategy_names_types_for_scripts_that_make_a_state(open_golden):
    torch = pytest.importorskip("torch", reason="such scripts bring torch with them")
    model = open_golden("v6-fp16.pth", "cuda fp16i8 *1 -> cpu fp32")
    assert len(model.strategy) == model.n_layer + 1
    made = []
    for layer in model.strategy[:-1]:
        shift = torch.zeros(model.args.n_embd, dtype=layer.atype, device=layer.device)
        made += [shift, torch.zeros(model.n_head, model.head_size, model.head_size), shift]
    assert np.array_equal(model.forward([1, 2], made)[0], model.forward([1, 2], None)[0])
