# SPDX-License-Identifier: Apache-2.0
"""Damage to files: blind (bits, numbers, blocks) and informed (JSON, lengths, lines, a zip's members)."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    Mutator: TypeAlias = Callable[[random.Random, bytes], bytes]

MAX_BYTES = 4 << 20
_EDGES = [0, 1, 2, 3, 7, 8, 31, 32, 33, 64, 255, 256, 4096, 65535, 65536, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**32]
_EDGES += [2**40, 2**53, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 64, 2**64 - 8, 2**64 - 1]
_VALUES: list[Any] = [
    None,
    True,
    False,
    "",
    "x",
    "F32",
    "BF16",
    "\ud800".encode("utf-16", "surrogatepass").hex(),
    [],
    {},
]
_VALUES += [-1, 1.5, 1e308, [0, 0], [1, 2, 3], [[[[]]]], {"type": "x"}, "a" * 5000, "\0", "../x", [0] * 1000]


def place(rng: random.Random, size: int) -> int:
    """An offset; the first and last few thousand bytes are where formats keep what matters."""
    if size < 2:
        return 0
    where = rng.random()
    if where < 0.6:
        return rng.randrange(min(size, 4096))
    if where < 0.75:
        return size - 1 - rng.randrange(min(size, 2048))
    return rng.randrange(size)


def _block(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = place(rng, len(data))
    return start, min(len(data), start + rng.choice([1, 2, 4, 8, 16, 64, 256, 4096]))


def flip(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if out:
            out[place(rng, len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def set_byte(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    if out:
        out[place(rng, len(out))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(out)


def set_number(rng: random.Random, data: bytes) -> bytes:
    """A little-endian number becomes an edge case, or a little more, less or larger than it was."""
    width = rng.choice([2, 4, 4, 8, 8])
    if len(data) < width:
        return data
    at = min(place(rng, len(data)), len(data) - width)
    at -= at % rng.choice([1, 4, 8]) if at >= 8 else 0
    return data[:at] + _near(rng, data[at : at + width]) + data[at + width :]


def _near(rng: random.Random, raw: bytes) -> bytes:
    old = int.from_bytes(raw, "little")
    new = rng.choice([rng.choice(_EDGES), old + 1, old - 1, old * 2, old + 2**32, -old, rng.randrange(1 << 16)])
    return (new % (1 << 8 * len(raw))).to_bytes(len(raw), "little")


def set_length(rng: random.Random, data: bytes) -> bytes:
    """The length before some text (u32 or u64, then that many printable bytes) becomes another."""
    found = []
    for match in re.finditer(rb"[\x20-\x7e]{3,100}", data[:200_000]):
        for width in (4, 8):
            at = match.start() - width
            if at >= 0 and 3 <= int.from_bytes(data[at : at + width], "little") <= len(match[0]):
                found.append((at, width))
    if not found:
        return set_number(rng, data)
    at, width = rng.choice(found)
    return data[:at] + _near(rng, data[at : at + width]) + data[at + width :]


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: place(rng, len(data))] if rng.random() < 0.5 else data[: -rng.choice([1, 2, 8, 64, 1000])]


def extend(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice([b"\0", b"\xff", b"PK\x05\x06", data[:64]]) * rng.choice([1, 7, 64, 1000])


def delete(rng: random.Random, data: bytes) -> bytes:
    start, end = _block(rng, data)
    return data[:start] + data[end:]


def duplicate(rng: random.Random, data: bytes) -> bytes:
    start, end = _block(rng, data)
    return data[:end] + data[start:end] * rng.choice([1, 1, 2, 100]) + data[end:]


def copy_over(rng: random.Random, data: bytes) -> bytes:
    start, end = _block(rng, data)
    at = place(rng, len(data))
    return data[:at] + data[start:end] + data[at + end - start :]


def swap(rng: random.Random, data: bytes) -> bytes:
    first, second = sorted([_block(rng, data), _block(rng, data)])
    if first[1] > second[0]:
        return data
    middle = data[first[1] : second[0]]
    return data[: first[0]] + data[slice(*second)] + middle + data[slice(*first)] + data[second[1] :]


BLIND: Sequence[Mutator] = (
    flip, set_byte, set_number, set_number, set_number, set_length, set_length,
    truncate, extend, delete, duplicate, copy_over, swap,
)  # fmt: skip


# ------------------------------------------------------------------------------------------ informed


def change_tree(rng: random.Random, tree: Any) -> Any:
    """One change somewhere in parsed JSON."""
    if isinstance(tree, (dict, list)) and tree and rng.random() < 0.9:
        keys: list[Any] = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = rng.choice(keys)
        what = rng.random()
        if what < 0.75:
            tree[key] = change_tree(rng, tree[key])
        elif what < 0.85:
            del tree[key]
        elif isinstance(tree, dict):
            tree[rng.choice([*keys, f"{key}x", "", "__metadata__", "a" * 200, str(key).upper()])] = tree[key]
        else:
            tree.insert(rng.randrange(len(tree)), tree[key])
        return tree
    if isinstance(tree, bool) or not isinstance(tree, int) or rng.random() < 0.2:
        return rng.choice([*_VALUES, *_EDGES])
    return rng.choice([rng.choice(_EDGES), tree + 1, tree - 1, -tree, tree * 2 % 2**70, 0.5 + tree % 2**40])


def json_text(rng: random.Random, data: bytes) -> bytes:
    """A change in a JSON file."""
    try:
        tree = change_tree(rng, json.loads(data))
    except (ValueError, RecursionError):
        return flip(rng, data)
    return json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def json_header(rng: random.Random, data: bytes) -> bytes:
    """A change in the JSON header of a safetensors file; its length stays right, and mostly its alignment too."""
    if len(data) < 8:
        return data
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data) - 8:
        return set_number(rng, data)
    text = json_text(rng, data[8 : 8 + length])
    if rng.random() < 0.9:
        text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def state_body(rng: random.Random, data: bytes) -> bytes:
    """Numbers of a state file change, and its checksum with them."""
    length = int.from_bytes(data[:8], "little")
    match = re.search(rb'"rwkv_cpu.crc32": "([0-9a-f]{8})"', data[: 8 + min(length, len(data))])
    if match is None:
        return flip(rng, data)
    body = rng.choice([flip, set_number, truncate, swap])(rng, data[8 + length :])
    return data[: match.start(1)] + f"{zlib.crc32(body):08x}".encode() + data[match.end(1) : 8 + length] + body


def text_lines(rng: random.Random, data: bytes) -> bytes:
    """Lines move, double, vanish; numbers and quotes in them change."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(7):
        case 0:
            del lines[at]
        case 1:
            lines.insert(rng.randrange(len(lines)), lines[at])
        case 2:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            numbers = list(re.finditer(rb"\d+", lines[at]))
            if numbers:
                number = rng.choice(numbers)
                new = str(rng.choice([*_EDGES, int(number[0]) + 1, int(number[0]) - 1, -1])).encode()
                lines[at] = lines[at][: number.start()] + new + lines[at][number.end() :]
        case 4:
            lines[at] = lines[at].replace(b"'", rng.choice([b'"', b"", b"''", b"b'"]), 1)
        case 5:
            escape = rng.choice(
                [b"\\", b"\\x", b"\\x4", b"\\u12", b"\\ud800", b"\\U0010ffff", b"\\N{DIGIT ONE}", b"\0"]
            )
            cut = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:cut] + escape + lines[at][cut:]
        case _:
            lines[at] = lines[at] * rng.choice([2, 50, 3000]) if len(lines[at]) < 1000 else b""
    return b"\n".join(lines)


def zip_member(inner: Mutator) -> Mutator:
    """Damage inside a zip file's member, with the zip itself in order; rarely a change of names or compression."""

    def mutate_member(rng: random.Random, data: bytes) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as source:
                members = {name: source.read(name) for name in source.namelist()}
        except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, OSError, zlib.error):
            return flip(rng, data)
        if not members:
            return flip(rng, data)
        pickles = [name for name in members if name.endswith(".pkl")]
        chosen = rng.choice(pickles if pickles and rng.random() < 0.8 else list(members))
        members[chosen] = inner(rng, members[chosen])
        if rng.random() < 0.05:
            members[rng.choice(["x/data.pkl", "../data.pkl", chosen + "x", "byteorder"])] = members.pop(chosen)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED) as target:
            for name, content in members.items():
                target.writestr(name, content)
        return out.getvalue()

    return mutate_member


def pickle_opcodes(rng: random.Random, data: bytes) -> bytes:
    """One opcode becomes another, or moves: what torch.save writes, in an order that it does not write."""
    if not data:
        return data
    opcodes = b"(.0125BCGIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x93\x94\x95"
    at = rng.randrange(len(data))
    if rng.random() < 0.5:
        return data[:at] + bytes([rng.choice(opcodes)]) + data[at + rng.randrange(2) :]
    return data[:at] + bytes(rng.choice(opcodes) for _ in range(rng.choice([1, 3, 200]))) + data[at:]


def one_of(*choices: Mutator) -> Mutator:
    """One of several, each time anew."""
    return lambda rng, data: rng.choice(choices)(rng, data)


def mutated(rng: random.Random, data: bytes, informed: Sequence[Mutator], corpus: Sequence[bytes]) -> bytes:
    """*data* with a few damages, mostly informed ones where there are any; at times spliced with another file."""
    if rng.random() < 0.05:
        other = rng.choice(corpus)
        data = data[: place(rng, len(data))] + other[place(rng, len(other)) :]
    for _ in range(rng.choice([1, 1, 1, 2, 2, 4, 8])):
        chosen = rng.choice(informed) if informed and rng.random() < 0.65 else rng.choice(BLIND)
        data = chosen(rng, data)
    return data[:MAX_BYTES]
