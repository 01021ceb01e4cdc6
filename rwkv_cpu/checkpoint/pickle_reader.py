# SPDX-License-Identifier: Apache-2.0
"""An interpreter for the pickles inside PyTorch checkpoints that can build tensors' descriptions and nothing else.

A pickle is a program. pickle.Unpickler runs it and leaves only the last step, find_class, to us; by then it has
allocated whatever sizes the file announces. So the program is run here, by a loop that knows the opcodes
torch.save writes, calls nothing, and has every size, count and depth bounded before memory is taken.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from rwkv_cpu.checkpoint.recognise import DOWNLOAD_AGAIN, shown
from rwkv_cpu.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_PICKLE_BYTES", "Storage", "TensorView", "read_pickle"]

MAX_PICKLE_BYTES: Final = 32 << 20  # a released 7B checkpoint: 0.1 MB
_MAX_OPCODES = 500_000  # about 35 for each tensor
_MAX_MEMO = 250_000
_MAX_MARKS = 64
_MAX_STACK = 200_000
_MAX_LONG_BYTES = 32
_MAX_GLOBAL_BYTES = 256
_MAX_DIMS = 8
_MAX_INT_KEY = 1 << 60
_MAX_PAIRS = 200_000

_STORAGE_DTYPES: Final = {
    "DoubleStorage": "f64",
    "FloatStorage": "f32",
    "HalfStorage": "f16",
    "BFloat16Storage": "bf16",
    "LongStorage": "i64",
    "IntStorage": "i32",
    "ShortStorage": "i16",
    "CharStorage": "i8",
    "ByteStorage": "u8",
    "BoolStorage": "bool",
}
ONLY_WEIGHTS = "Nothing in the file was run. A checkpoint must hold tensors only: torch.save(model.state_dict(), path)."


class Bytes(Protocol):
    """What a pickle is read from: bytes or a mapping (a slice of either is bytes)."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of *numel* elements named *key*; *first* is where a view of an older storage begins, in elements."""

    dtype: str
    key: str
    numel: int
    first: int = 0
    view_numel: int = -1

    @property
    def usable(self) -> int:
        """Elements that a tensor may address."""
        return self.numel if self.view_numel < 0 else self.view_numel


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor over a storage: offset and strides in elements. Not checked against the storage yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Global:
    """One of the few allowed names, as a value on the stack."""

    name: str
    dtype: str = ""


_GLOBALS: Final[dict[tuple[str, str], _Global]] = {
    ("collections", "OrderedDict"): _Global("OrderedDict"),
    ("torch", "Size"): _Global("Size"),
    ("torch._utils", "_rebuild_tensor_v2"): _Global("tensor"),
    ("torch._utils", "_rebuild_parameter"): _Global("parameter"),
    **{("torch", name): _Global("storage", dtype) for name, dtype in _STORAGE_DTYPES.items()},
}
_MARK: Final = object()


def read_pickle(data: Bytes, start: int, end: int, where: str) -> tuple[Any, int]:
    """Run the pickle at data[start:end].

    Returns: the object (None, bool, int, float, str, bytes, tuple, list, dict, TensorView, Storage) and the offset
    behind its last byte. Dicts have str and int keys only.
    Raises: FormatError naming *where*: damaged, too large, or asking for anything but tensors.
    """
    return _Interpreter(data, start, min(end, start + MAX_PICKLE_BYTES), where).run()


class _Interpreter:
    def __init__(self, data: Bytes, start: int, end: int, where: str) -> None:
        self._data = data
        self._start = self._at = start
        self._end = end
        self._where = where
        self._stack: list[Any] = []
        self._marks = 0
        self.memo: dict[int, Any] = {}
        self._pairs = 0

    def run(self) -> tuple[Any, int]:
        for _ in range(_MAX_OPCODES):
            if len(self._stack) > _MAX_STACK:
                raise self._bad("the pickle nests too deeply")
            opcode = self._take(1)
            if opcode == b".":
                value = self._pop()
                if self._stack:
                    raise self._bad("the pickle leaves values behind")
                return value, self._at
            action = _ACTIONS.get(opcode)
            if action is None:
                raise self._bad(f"the pickle holds the unexpected opcode 0x{opcode.hex()}")
            action(self)
        raise self._bad(f"the pickle has more than {_MAX_OPCODES} steps")

    # ------------------------------------------------------------------------------------- helpers

    def _bad(self, what: str, hint: str = "") -> FormatError:
        return FormatError(f"{self._where}: {what} (byte {self._at - self._start} of the pickle)", hint=hint)

    def _take(self, count: int) -> bytes:
        if count > self._end - self._at:
            raise self._bad("the pickle is cut short or too large", DOWNLOAD_AGAIN)
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Text up to the next newline."""
        part = self._data[self._at : min(self._end, self._at + _MAX_GLOBAL_BYTES)]
        length = part.find(b"\n")
        if length < 0:
            raise self._bad("the pickle is damaged")
        self._at += length + 1
        return part[:length].decode("utf-8", "replace")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise self._bad("the pickle is damaged (nothing on its stack)")
        return self._stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                values = self._stack[at + 1 :]
                del self._stack[at:]
                self._marks -= 1
                return values
        raise self._bad("the pickle is damaged (no mark on its stack)")

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            raise self._bad("the pickle is damaged (unexpected type)")
        return self._stack[-1]

    # ------------------------------------------------------------------------------ simple values

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def proto(self) -> None:
        if self.number("<B") > 5:
            raise self._bad("the pickle has an unknown protocol")

    def frame(self) -> None:
        self._take(8)  # a hint for buffering only

    def integer(self, form: str) -> None:
        self.push(self.number(form))

    def long(self, form: str) -> None:
        count = self.number(form)
        if not 0 <= count <= _MAX_LONG_BYTES:
            raise self._bad(f"the pickle announces a number of {count} bytes")
        self.push(int.from_bytes(self._take(count), "little", signed=True))

    def text(self, form: str) -> None:
        raw = self._take(self.number(form))
        try:
            self.push(raw.decode("utf-8"))
        except UnicodeDecodeError:
            raise self._bad("the pickle holds text that is not UTF-8") from None

    def latin(self, form: str) -> None:  # str of Python 2
        self.push(self._take(max(0, self.number(form))).decode("latin-1"))

    def octets(self, form: str) -> None:
        self.push(self._take(self.number(form)))

    # -------------------------------------------------------------------------- stack and containers

    def mark(self) -> None:
        self._marks += 1
        if self._marks > _MAX_MARKS:
            raise self._bad("the pickle nests too deeply")
        self.push(_MARK)

    def pop(self) -> None:
        if self._stack and self._stack[-1] is _MARK:
            self._stack.pop()
            self._marks -= 1
        else:
            self._pop()

    def pop_mark(self) -> None:
        self.pop_to_mark()

    def duplicate(self) -> None:
        value = self._pop()
        self._stack += [value, value]

    def tuple_of(self, count: int) -> None:
        self.push(tuple(reversed([self._pop() for _ in range(count)])))

    def append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def appends(self) -> None:
        values = self.pop_to_mark()
        self._top(list).extend(values)

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self.set_items([key, value])

    def set_items(self, flat: list[Any]) -> None:
        """Put key, value, key, value … into the dict on the stack."""
        target = self._top(dict)
        if len(flat) % 2:
            raise self._bad("the pickle is damaged (a key without a value)")
        for i in range(0, len(flat), 2):
            # Tuples would be hashed recursively, in C, without a limit; huge integers can share one hash value.
            key = flat[i]
            if type(key) is not str and not (type(key) is int and -_MAX_INT_KEY < key < _MAX_INT_KEY):
                raise self._bad("the pickle holds a dict with keys that are not names")
            target[key] = flat[i + 1]

    def new_dict(self) -> None:
        values = self.pop_to_mark()
        self.push({})
        self.set_items(values)

    # ----------------------------------------------------------------------------------------- memo

    def get(self, form: str) -> None:
        index = self.number(form)
        if index not in self.memo:
            raise self._bad("the pickle is damaged (an unset memo)")
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        if len(self.memo) >= _MAX_MEMO:
            raise self._bad("the pickle remembers too much")
        if not self._stack or self._stack[-1] is _MARK:
            raise self._bad("the pickle is damaged (nothing on its stack)")
        self.memo[index] = self._stack[-1]

    # ------------------------------------------------------------------------------ names and calls

    def find(self, module: str, name: str) -> None:
        found = _GLOBALS.get((module, name))
        if found is None:
            raise self._bad(f"the pickle asks for {shown(module)}.{shown(name)}, which is not allowed", ONLY_WEIGHTS)
        self.push(found)

    def find_on_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise self._bad("the pickle is damaged (a name that is not text)")
        self.find(module, name)

    def persistent(self) -> None:
        """A storage: ('storage', type, key, location, numel), in the old layout with a view or None behind."""
        match self._pop():
            case ("storage", _Global("storage", dtype), str() | int() as key, _, int() as numel, *rest) if (
                len(rest) < 2
            ):
                first, length = 0, -1
                if rest and rest[0] is not None:
                    match rest[0]:
                        case (_, int() as first, int() as length) if first >= 0 and 0 <= length <= numel - first:
                            pass
                        case _:
                            raise self._bad("the pickle describes a view outside its storage")
                if numel < 0:
                    raise self._bad("the pickle describes a storage of negative size")
                self.push(Storage(dtype, str(key), numel, first, length))
            case _:
                raise self._bad("the pickle refers to something that is no storage", ONLY_WEIGHTS)

    def call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(function) is not _Global or type(arguments) is not tuple:
            raise self._bad("the pickle calls something that is no function")
        match function.name, arguments:
            case "OrderedDict", ():
                self.push({})
            case "OrderedDict", (list() as pairs,):  # as Python 2 wrote it
                self.push({})
                self._pairs += len(pairs)  # one long list, remembered, could be used again and again
                if self._pairs > _MAX_PAIRS:
                    raise self._bad("the pickle repeats itself too often")
                if any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
                    raise self._bad("the pickle is damaged (an OrderedDict without pairs)")
                self.set_items([value for pair in pairs for value in pair])
            case "Size", (tuple() | list() as sizes,):
                self.push(self._whole(sizes))
            case "parameter", (TensorView() as tensor, *rest) if len(rest) <= 2:
                self.push(tensor)
            case "tensor", (Storage() as storage, offset, shape, stride, *rest) if len(rest) <= 3:
                metadata = rest[2] if len(rest) == 3 else None
                if metadata:
                    raise self._bad("a tensor is conjugated or negated", ONLY_WEIGHTS)
                self.push(TensorView(storage, self._whole([offset])[0], self._whole(shape), self._whole(stride)))
                if len(self._stack[-1].shape) != len(self._stack[-1].stride):
                    raise self._bad("a tensor has more dimensions than strides, or fewer")
            case _:
                raise self._bad(f"the pickle calls {function.name} in an unknown way")

    def _whole(self, values: Any) -> tuple[int, ...]:
        """Sizes and strides: a few whole numbers that are not negative."""
        if type(values) not in (tuple, list) or len(values) > _MAX_DIMS:
            raise self._bad("a tensor's shape is no short list of numbers")
        if any(type(value) is not int or not 0 <= value < 1 << 63 for value in values):
            raise self._bad("a tensor's shape, stride or offset is not a whole number in range")
        return tuple(values)

    def build(self) -> None:
        """Attributes of an OrderedDict (state_dict has _metadata): nothing that weights need."""
        self._pop()
        self._top(dict)


_ACTIONS: Final[dict[bytes, Callable[[_Interpreter], None]]] = {
    b"\x80": _Interpreter.proto,
    b"\x95": _Interpreter.frame,
    b"N": lambda i: i.push(None),
    b"\x88": lambda i: i.push(True),
    b"\x89": lambda i: i.push(False),
    b"J": lambda i: i.integer("<i"),
    b"K": lambda i: i.integer("<B"),
    b"M": lambda i: i.integer("<H"),
    b"G": lambda i: i.integer(">d"),
    b"\x8a": lambda i: i.long("<B"),
    b"\x8b": lambda i: i.long("<i"),
    b"X": lambda i: i.text("<I"),
    b"\x8c": lambda i: i.text("<B"),
    b"\x8d": lambda i: i.text("<Q"),
    b"U": lambda i: i.latin("<B"),
    b"T": lambda i: i.latin("<i"),
    b"B": lambda i: i.octets("<I"),
    b"C": lambda i: i.octets("<B"),
    b"\x8e": lambda i: i.octets("<Q"),
    b"(": _Interpreter.mark,
    b"0": _Interpreter.pop,
    b"1": _Interpreter.pop_mark,
    b"2": _Interpreter.duplicate,
    b")": lambda i: i.push(()),
    b"\x85": lambda i: i.tuple_of(1),
    b"\x86": lambda i: i.tuple_of(2),
    b"\x87": lambda i: i.tuple_of(3),
    b"t": lambda i: i.push(tuple(i.pop_to_mark())),
    b"]": lambda i: i.push([]),
    b"l": lambda i: i.push(i.pop_to_mark()),
    b"a": _Interpreter.append,
    b"e": _Interpreter.appends,
    b"}": lambda i: i.push({}),
    b"d": _Interpreter.new_dict,
    b"s": _Interpreter.set_item,
    b"u": lambda i: i.set_items(i.pop_to_mark()),
    b"h": lambda i: i.get("<B"),
    b"j": lambda i: i.get("<I"),
    b"q": lambda i: i.put(i.number("<B")),
    b"r": lambda i: i.put(i.number("<I")),
    b"\x94": lambda i: i.put(len(i.memo)),
    b"c": lambda i: i.find(i.line(), i.line()),
    b"\x93": _Interpreter.find_on_stack,
    b"Q": _Interpreter.persistent,
    b"R": _Interpreter.call,
    b"b": _Interpreter.build,
}
