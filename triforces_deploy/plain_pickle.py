"""The few pickle opcodes that ``torch.save`` writes for JSON-like data and tensors, interpreted without importing anything.

Python's own unpickler runs whatever a file names. This one knows four names, runs none of them, and checks every tensor
against the bytes that are there before it exists.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

STORAGES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ByteStorage": torch.uint8,
}
TENSOR = "torch._utils _rebuild_tensor_v2"
EMPTY = "collections OrderedDict"
MAX_DIMENSIONS = 8

_MARK = object()


class PlainPickleError(Exception):
    """The pickle holds something that none of our files has."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A global that the pickle mentions; never imported."""

    path: str
    """'module attribute'."""


@dataclasses.dataclass
class Instance:
    """What would be an object of the class; never made."""

    cls: Name
    state: Any = None


Storage = Callable[[str, torch.dtype, int], Tensor]
"""Key, type and number of elements → the flat tensor of a storage."""


def loads(data: bytes, storage: Storage, classes: frozenset[str]) -> object:
    """The object that a pickle describes: text, numbers, lists, tuples, dicts with text keys, tensors, instances.

    Args:
        data: the pickle.
        storage: gives the numbers that a tensor lies in.
        classes: which classes ('module name') may be mentioned; of them, only :class:`Instance` is made.

    Raises:
        PlainPickleError: anything else is in it.
        ValueError, KeyError, IndexError, TypeError, UnicodeDecodeError: it is no pickle.
    """
    machine = _Machine(storage, classes)
    for opcode, argument, _position in pickletools.genops(data):
        if opcode.name == "STOP":
            (result,) = machine.stack
            return result
        try:
            step = _STEPS[opcode.name]
        except KeyError:
            raise PlainPickleError(f"opcode {opcode.name}") from None
        step(machine, argument)
    raise PlainPickleError("no end")


class _Machine:
    def __init__(self, storage: Storage, classes: frozenset[str]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storage, self.classes = storage, classes

    def push(self, value: object) -> None:
        self.stack.append(value)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def pop_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def take(self, count: int) -> None:
        items = tuple(self.stack.pop() for _ in range(count))
        self.push(items[::-1])

    def name(self, path: str) -> None:
        if path not in {*STORAGES, TENSOR, EMPTY, *self.classes}:
            raise PlainPickleError(f"names {path.replace(' ', '.')}")
        self.push(Name(path))

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise PlainPickleError("appends to what is no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(target) is not dict or type(key) is not str or key in target:
                raise PlainPickleError("a mapping with keys that are no text, or twice the same")
            target[key] = value

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if function == Name(EMPTY) and arguments == ():
            self.push({})
        elif function == Name(TENSOR):
            self.push(_tensor(*arguments))
        else:
            raise PlainPickleError("calls something")

    def new(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if type(cls) is not Name or cls.path not in self.classes or arguments != ():
            raise PlainPickleError("makes an object of another class")
        self.push(Instance(cls))

    def build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is not Instance:
            raise PlainPickleError("gives a state to what is no instance")
        self.stack[-1].state = state

    def persistent(self) -> None:
        tag, kind, key, _location, count = self.stack.pop()
        if tag != "storage" or type(kind) is not Name or type(key) is not str or type(count) is not int or count < 0:
            raise PlainPickleError("a storage without type, key or size")
        self.push(self.storage(key, STORAGES[kind.path], count))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: object) -> Tensor:
    """A view of a storage that stays inside it and repeats nothing."""
    whole = (offset, *size, *stride)
    if not isinstance(storage, Tensor) or len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise PlainPickleError("a tensor without storage or shape")
    if any(type(n) is not int or not 0 <= n < 2**48 for n in whole):
        raise PlainPickleError("a tensor of impossible size")
    count = math.prod(size)
    end = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else -1
    if count > storage.numel() or end >= storage.numel():
        raise PlainPickleError("a tensor larger than its numbers")
    return storage.as_strided(size, stride, offset)


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda _m, _a: None,
    "MARK": lambda m, _a: m.push(_MARK),
    "NONE": lambda m, _a: m.push(None),
    "NEWTRUE": lambda m, _a: m.push(True),
    "NEWFALSE": lambda m, _a: m.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), lambda m, a: m.push(a)),
    "EMPTY_DICT": lambda m, _a: m.push({}),
    "EMPTY_LIST": lambda m, _a: m.push([]),
    "EMPTY_TUPLE": lambda m, _a: m.push(()),
    "TUPLE": lambda m, _a: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _a: m.take(1),
    "TUPLE2": lambda m, _a: m.take(2),
    "TUPLE3": lambda m, _a: m.take(3),
    "BINPUT": lambda m, a: m.put(a),
    "LONG_BINPUT": lambda m, a: m.put(a),
    "BINGET": lambda m, a: m.push(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.push(m.memo[a]),
    "APPEND": lambda m, _a: m.append([m.stack.pop()]),
    "APPENDS": lambda m, _a: m.append(m.pop_mark()),
    "SETITEM": lambda m, _a: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, _a: m.set_items(m.pop_mark()),
    "GLOBAL": lambda m, a: m.name(a),
    "REDUCE": lambda m, _a: m.reduce(),
    "NEWOBJ": lambda m, _a: m.new(),
    "BUILD": lambda m, _a: m.build(),
    "BINPERSID": lambda m, _a: m.persistent(),
}
