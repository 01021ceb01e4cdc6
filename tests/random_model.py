# SPDX-License-Identifier: Apache-2.0
"""Model files of any version, size and format, with random weights, made in memory."""

from __future__ import annotations

import numpy as np

from rwkv_cpu import engine
from rwkv_cpu.engine import lib

VERSIONS = [
    lib.RWKVC_RWKV4,
    lib.RWKVC_RWKV5_0,
    lib.RWKVC_RWKV5_1,
    lib.RWKVC_RWKV5_2,
    lib.RWKVC_RWKV6,
    lib.RWKVC_RWKV7,
    lib.RWKVC_RWKV7A,
]
RANKS = (1, 3, 8, 15, 17, 32, 33, 100)


def usual_config(version: int, *, n_layer: int = 2, n_embd: int = 256, n_vocab: int = 512) -> engine.Config:
    """The proportions of released models: heads of 64, ranks of the low-rank pairs as at small widths."""
    config = engine.Config()
    config.raw.version, config.raw.n_layer = version, n_layer
    config.raw.ln_eps, config.raw.gn_eps = 1e-5, 64e-5
    sizes = {"VOCAB": n_vocab, "EMBD": n_embd, "ATT": n_embd, "FFN": n_embd * 4}
    if version != lib.RWKVC_RWKV4:
        sizes |= {"HEAD": 64, "HEADS": n_embd // 64}
    if version == lib.RWKVC_RWKV6:
        sizes |= {"RANK_W": 64, "RANK_M": 32, "RANK_M5": 160, "FIVE": 5}
    if version >= lib.RWKVC_RWKV7:
        sizes |= {"RANK_W": 32, "RANK_A": 32, "RANK_V": 16, "RANK_G": 64}
    if version == lib.RWKVC_RWKV7A:
        sizes |= {"RANK_S": 16, "RANK_SS": 256}
    for name, size in sizes.items():
        config.raw.size[getattr(lib, f"RWKVC_SIZE_{name}")] = size
    return config


def random_config(rng: np.random.Generator, version: int) -> engine.Config:
    """Sizes that no released model has, so that padding and tails are met."""

    def pick(*choices: int) -> int:
        return int(rng.choice(choices))

    sizes = {"VOCAB": pick(1, 2, 15, 17, 65, 100), "FFN": pick(1, 15, 17, 33, 64, 95, 129, 300)}
    if version == lib.RWKVC_RWKV4:
        sizes["ATT"] = pick(16, 48, 80)
    else:
        head = pick(1, 3, 8, 16, 24, 40, 64, 80, 512)
        heads = next(n for n in range(pick(1, 2, 3), 50) if n * head % 16 == 0)
        sizes |= {"HEAD": head, "HEADS": heads, "ATT": head * heads}
    sizes["EMBD"] = pick(16, 48, 80, sizes["ATT"])
    config = engine.Config()
    config.raw.version, config.raw.n_layer = version, pick(1, 2)
    config.raw.ln_eps, config.raw.gn_eps = 1e-5, 64e-5
    if version == lib.RWKVC_RWKV6:
        rank = pick(*RANKS)
        sizes |= {"RANK_W": pick(*RANKS), "RANK_M": rank, "RANK_M5": 5 * rank, "FIVE": 5}
    if version >= lib.RWKVC_RWKV7:
        sizes |= {f"RANK_{letter}": pick(*RANKS) for letter in "WAVG"}
    if version == lib.RWKVC_RWKV7A:
        rank = pick(1, 3, 8, 17)
        sizes |= {"RANK_S": rank, "RANK_SS": rank * rank}
    for name, size in sizes.items():
        config.raw.size[getattr(lib, f"RWKVC_SIZE_{name}")] = size
    return config


def random_values(rng: np.random.Generator, info: engine.TensorInfo, version: int) -> np.ndarray:
    """f32 in the shape that packing expects; decays in their range, everything of a size that stays finite."""
    x = rng.standard_normal(info.shape).astype(np.float32)
    if info.name.endswith("time_decay") and version < lib.RWKVC_RWKV6:
        return x  # transformed when packed
    if info.kind == engine.KIND_VECTOR:
        return x * np.float32(0.1) + np.float32(info.name.endswith(("ln_x.weight", "ln1.weight", "ln2.weight")))
    return x * np.float32(1.2 / np.sqrt(info.cols)) if info.kind != engine.KIND_EMBEDDING else x


def build(rng: np.random.Generator, config: engine.Config, preset: str) -> np.ndarray:
    """The bytes of a .rwkv file, 64-byte aligned and not a byte longer than it is."""
    code = engine.format_by_name(preset)
    infos = [info.with_format(engine.format_for(code, info.kind)) for info in engine.plan(config)]
    total = engine.layout(config, infos)
    memory = np.zeros(64 + total + 63, np.uint8)
    file = memory[-memory.ctypes.data % 64 :][: 64 + total]
    file[:8] = np.frombuffer(np.uint64(56).tobytes(), np.uint8)
    for info in infos:
        values = random_values(rng, info, config.raw.version)
        target = file[64 + info.offset :][: info.size_bytes]
        engine.pack(info, values, "f32", 0, engine.packed_panels(info), target)
    table = engine.write_table(config, infos)
    file[64 : 64 + len(table)] = np.frombuffer(table, np.uint8)
    return file
