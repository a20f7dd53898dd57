"""A second device without one: tensors that live elsewhere and have real numbers.

``Elsewhere`` wraps a tensor of the CPU and says that it lies on another device (torch's ``meta``,
which no code of ours treats specially). Inside ``FakeDevice`` every operation of torch passes
through one function, which

* computes on the CPU what the device would have, so whole searches run and can be compared;
* raises where tensors of two devices meet, as CUDA does (single numbers of the CPU may take part);
* counts *launches* (operations that compute something, once each; views and allocations are none),
  *waits* (numbers, sizes or whole tensors that the host asks for) and *uploads* (tensors sent
  there), with the place in our source that caused each.

What it cannot see: kernels that one operation launches in several parts (a convolution of cuDNN,
``nonzero``), and streams. So counts are lower limits of what a profiler of CUDA shows.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")
_ASK = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
}
_FREE = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::detach",
    "aten::lift_fresh",
    "aten::_unsafe_view",
    "aten::set_",
    "aten::resize_",
}
_BETWEEN = {"aten::_to_copy", "aten::copy_"}
"""These take tensors from one device to another."""


class Elsewhere(torch.Tensor):
    """``elem`` on the CPU, seen as a tensor of ``DEVICE``."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> Elsewhere:
        # (torch has no public way to make a tensor that is dispatched to Python.)
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=DEVICE,
        )

    def __init__(self, elem: Tensor) -> None:
        self.elem = elem

    # What torch makes of numbers or for Python it does below the dispatcher.

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(DEVICE)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on the fake device outside of FakeDevice")


@dataclass
class Counts:
    """What was asked of the device, by place in our source."""

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)

    def totals(self) -> tuple[int, int, int]:
        return self.launches.total(), self.waits.total(), self.uploads.total()


class _Makers(TorchFunctionMode):
    """Tensors of numbers, for ``DEVICE``: torch's own there would hold no numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_there(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


class _Generator(torch.Generator):
    """Of the CPU, wherever it is asked to be."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls)


class FakeDevice(TorchDispatchMode):
    """See the module. ``counts`` is of everything inside, ``counting()`` of a part."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self.around = ExitStack()

    def __enter__(self) -> FakeDevice:
        self.around.enter_context(_Makers())
        # (A class, so no function that a mode could see.)
        self.around.enter_context(patch("torch.Generator", _Generator))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.around.close()

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """Counts of a part."""
        before, self.counts = self.counts, Counts()
        try:
            yield self.counts
        finally:
            part = self.counts
            self.counts = before
            for name in ("launches", "waits", "uploads"):
                getattr(before, name).update(getattr(part, name))

    def watched(self, function: Callable[..., Any], into: list[tuple[Any, Counts]]) -> Any:
        """``function``, with ``(its first argument after self, counts)`` of each call added to
        ``into``."""

        def run(owner: Any, given: Any, *others: Any, **named: Any) -> Any:
            with self.counting() as counts:
                result = function(owner, given, *others, **named)
            into.append((given, counts))
            return result

        return run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name
        tensors = _tensors((args, kwargs))
        there = [part for part in tensors if isinstance(part, Elsewhere)]
        here = [part for part in tensors if not isinstance(part, Elsewhere) and part.dim()]
        asked = kwargs.get("device")
        goes_there = _is_there(asked)
        leaves = bool(there) and asked is not None and not goes_there
        if there and here and name not in _BETWEEN and not _indexes(name, args):
            raise RuntimeError(f"{name}: tensors of two devices, at {_place()}")
        if name == "aten::copy_":
            leaves = not isinstance(args[0], Elsewhere) and bool(there)
        if goes_there:
            kwargs["device"] = "cpu"
        if there or goes_there:
            self._count(name, func, args, there, here, leaves)
        result = func(*tree_map(_bare, args), **tree_map(_bare, kwargs))
        if leaves or not (there or goes_there):
            return result
        if func._schema.is_mutable and name.endswith("_"):
            return args[0]
        return tree_map(lambda part: Elsewhere(part) if isinstance(part, Tensor) else part, result)

    def _count(
        self, name: str, func: Any, args: Any, there: list[Tensor], here: list[Tensor], leaves: bool
    ) -> None:
        place = _place()
        by_mask = _indexes(name, args) and any(
            part is not None and part.dtype in (torch.bool, torch.uint8) and part.dim()
            for part in args[1]
        )
        if leaves or name in _ASK or by_mask:
            self.counts.waits[place] += 1
        elif name in _BETWEEN and (here or not there):
            self.counts.uploads[place] += 1
        if name not in _FREE and not _is_view(func) and name != "aten::_local_scalar_dense":
            self.counts.launches[place] += 1


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _bare(part: Any) -> Any:
    return part.elem if isinstance(part, Elsewhere) else part


def _tensors(given: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda part: found.append(part) if isinstance(part, Tensor) else None, given)
    return found


def _indexes(name: str, args: Any) -> bool:
    """Places may be numbers on the host: ``x[index]`` sends them."""
    return name.startswith(("aten::index.", "aten::index_put", "aten::_index_put")) or (
        name == "aten::index"
    )


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(
        part.alias_info is not None and not part.alias_info.is_write for part in returns
    )


def _place() -> str:
    """The innermost line of ours under way."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/bitcrown/" in file:
            return f"{file.rpartition('/bitcrown/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "a test"
