"""CIFAR-10 and CIFAR-100 as their authors publish them (Krizhevsky, 2009): binary records, or
pickled dictionaries.

A binary record is one label byte (CIFAR-100: coarse label, then fine label) and 3072 bytes, channel
by channel. The Python version is a pickle; a pickle is a program, and running a stranger's program
is how files become attacks. So the stream is interpreted here by an inert machine: it knows
containers, numbers and strings, writes every "call this" down as a plain record without calling
anything, and the array is then read from the bytes such a record holds.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitcrown.errors import DataError

_Levels = tuple[np.ndarray, np.ndarray]
_SHAPE = (3, 32, 32)
_PIXELS = 3072
_MAX_BYTES = 1 << 30
_BINARY_PARTS = (
    ("test_batch.bin", tuple(f"data_batch_{k}.bin" for k in range(1, 6)), 1),
    ("test.bin", ("train.bin",), 2),
)
_PYTHON_PARTS = (
    ("test_batch", tuple(f"data_batch_{k}" for k in range(1, 6))),
    ("test", ("train",)),
)


def read_cifar(path: Path, first: int | None, train: bool) -> _Levels | None:
    """Levels ``[B, 3, 32, 32]`` uint8 and labels ``[B]``, or None where it is no CIFAR."""
    parts: list[_Levels] = []
    for test, batches, label_bytes in _BINARY_PARTS:
        for file in _files(path, test, batches, train):
            parts.append(_binary(file, label_bytes))
    if not parts:
        for test, batches in _PYTHON_PARTS:
            for file in _files(path, test, batches, train):
                if _is_pickle(file):
                    parts.append(_python(file))
    if not parts:
        return None
    levels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return levels[:first], labels[:first]


def _files(path: Path, test: str, batches: tuple[str, ...], train: bool) -> list[Path]:
    if path.is_file():
        return [path] if path.name in (test, *batches) else []
    names = batches if train else (test,)
    found = [path / name for name in names if (path / name).is_file()]
    if found and len(found) != len(names):
        raise DataError(
            f"{path} lacks {', '.join(name for name in names if not (path / name).is_file())}, "
            "without which the set is not whole"
        )
    return found


def _binary(file: Path, label_bytes: int) -> _Levels:
    size = file.stat().st_size
    record = label_bytes + _PIXELS
    if size % record or not size or size > _MAX_BYTES:
        raise DataError(
            f"{file} has {size} bytes, which is no whole number of CIFAR records of {record} bytes"
        )
    rows = np.fromfile(file, dtype=np.uint8).reshape(-1, record)
    return rows[:, label_bytes:].reshape(-1, *_SHAPE), rows[:, label_bytes - 1]


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(1) == b"\x80"


@dataclass
class _Call:
    """A call that the pickle asks for and nobody makes, and the state set afterwards."""

    what: Any
    arguments: Any
    state: Any = None


def _python(file: Path) -> _Levels:
    if file.stat().st_size > _MAX_BYTES:
        raise DataError(f"{file} is larger than any CIFAR batch")
    try:
        batch = inert_pickle(file.read_bytes())
        fields = {str(key): value for key, value in batch.items()}
        labels = fields.get("fine_labels", fields.get("labels"))
        rows = fields["data"]
        shape, raw = tuple(rows.state[1]), rows.state[4]
        if (
            len(shape) != 2
            or shape[1] != _PIXELS
            or labels is None
            or not all(0 <= int(k) < 256 for k in labels)
        ):
            raise DataError(f"{file} holds no CIFAR batch")
        levels = np.frombuffer(_raw_bytes(raw), dtype=np.uint8)
        if rows.state[3]:
            levels = levels.reshape(shape[::-1]).T
        return levels.reshape(-1, *_SHAPE), np.array([int(k) for k in labels], dtype=np.int64)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is no CIFAR batch in the Python version: {error}") from error


def _raw_bytes(raw: Any) -> bytes:
    """Bytes as Python 2 writes them (text), as 3 does, or as 3 does for 2 (``encode``)."""
    if isinstance(raw, _Call) and str(raw.what) == "_codecs encode":
        raw = raw.arguments[0]
    return raw.encode("latin-1") if isinstance(raw, str) else bytes(raw)


_MARK = object()


def inert_pickle(data: bytes) -> Any:
    """What ``data`` describes: containers, numbers, text, and a ``_Call`` for each call.

    Raises ``ValueError`` for an instruction that a batch of arrays and lists does not need.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(str(argument))] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(str(argument))])
        elif name == "GLOBAL":
            stack.append(str(argument))
        elif name in _BUILDERS:
            _BUILDERS[name](stack)
        elif opcode.arg is not None and name not in ("INST", "PERSID", "EXT1", "EXT2", "EXT4"):
            stack.append(argument)
        else:
            raise ValueError(f"unexpected instruction {name}")
    raise ValueError("the data end early")


def _since_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _set_items(stack: list[Any]) -> None:
    items = _since_mark(stack)
    stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _set_item(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    stack[-1][key] = value


def _extend(stack: list[Any]) -> None:
    items = _since_mark(stack)
    stack[-1].extend(items)


def _append(stack: list[Any]) -> None:
    item = stack.pop()
    stack[-1].append(item)


def _call(stack: list[Any]) -> None:
    arguments, what = stack.pop(), stack.pop()
    stack.append(_Call(what, arguments))


def _build(stack: list[Any]) -> None:
    state = stack.pop()
    stack[-1].state = state


def _tuple_of(count: int) -> Any:
    def build(stack: list[Any]) -> None:
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        stack.append(tuple(items))

    return build


_BUILDERS = {
    "MARK": lambda stack: stack.append(_MARK),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "NONE": lambda stack: stack.append(None),
    "NEWTRUE": lambda stack: stack.append(True),
    "NEWFALSE": lambda stack: stack.append(False),
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "DICT": lambda stack: stack.append(dict(zip(*[iter(_since_mark(stack))] * 2, strict=True))),
    "LIST": lambda stack: stack.append(_since_mark(stack)),
    "SETITEMS": _set_items,
    "SETITEM": _set_item,
    "APPENDS": _extend,
    "APPEND": _append,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": _build,
    "STACK_GLOBAL": lambda stack: stack.append(
        ".".join(map(str, reversed([stack.pop(), stack.pop()])))
    ),
}
