"""The original network files in onnxruntime, as the competition's scorer runs them.

CPU provider, graph optimisations off, one thread. Nothing here is shared with ``model`` or
``bounds``: an error in the reader cannot also hide in the replay. Legend: ``K`` points, ``n`` flat
inputs and ``m`` flat outputs over all networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitcrown.check.asked_tensors import with_asked_outputs
from bitcrown.check.extents import extents_words, settled_shape
from bitcrown.check.model_files import runnable_model, unpacked_model
from bitcrown.check.qonnx import standard_content
from bitcrown.errors import ModelError, PropertyError
from bitcrown.spec.query import NetworkDecl, Query, TensorDecl

_BATCH_TRIAL = 3
_BATCH_TOLERANCE = 1e-3
NUMBERS = "fiub"
"""Kinds of numpy types; a map or a sequence of onnxruntime becomes an array of objects, text one of
strings."""

_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


_NUMERIC = {*_TYPES, "tensor(bfloat16)"}


class Slot(NamedTuple):
    """One input of an ONNX file; ``shape`` has what the property declares in place of free extents,
    where that settles them, and 1 elsewhere."""

    name: str
    shape: tuple[int, ...]
    dtype: type[np.generic]


class RuntimeReplay:
    """Sessions of all networks of a query, kept open.

    Raises:
        ModelError: a file cannot be read or loaded, or fails when it is run.
        PropertyError: the declared tensors do not fit the file.
    """

    def __init__(self, query: Query, networks: Mapping[str, Path]) -> None:
        self.query = query
        self.members: list[_Member] = []
        opened: dict[tuple[Path, tuple[TensorDecl, ...]], Any] = {}
        for declared in query.networks:
            path = _path_of(declared, networks)
            key = (path, declared.hidden + declared.inputs if declared.asks_more else ())
            if key not in opened:
                opened[key] = _opened(path, declared)
            self.members.append(_Member(declared, path, opened[key], query.version[0] > 1))
        self.sizes = [_count(member.declared.given) for member in self.members]
        self.n_inputs = sum(self.sizes)
        self.n_outputs = sum(_count(member.declared.computed) for member in self.members)

    def dtypes(self) -> np.ndarray:
        """Element type of each flat input, as an object array ``[n]`` of numpy types."""
        result = np.empty(self.n_inputs, dtype=object)
        start = 0
        for slots in self.slots().values():
            for slot in slots:
                end = start + math.prod(slot.shape)
                result[start:end] = slot.dtype
                start = end
        return result

    def run(self, x: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Inputs as really fed (rounded) and computed tensors at a flat ``x [n]``: one flat array
        per declared tensor.

        Tensors follow the declarations, network by network.
        """
        fed: list[np.ndarray] = []
        outputs: list[np.ndarray] = []
        start = 0
        for member, size in zip(self.members, self.sizes, strict=True):
            parts, values = member.run(x[start : start + size])
            start += size
            fed += _fit(parts, member.declared.given)
            outputs += _fit(values, member.declared.computed)
        return fed, outputs

    def asked_outputs(self) -> dict[str, list[int]]:
        """Which outputs of its file, counted from 0, each declared network's property is about."""
        found = {}
        for member in self.members:
            names = [item.name for item in member.session.get_outputs()]
            found[member.declared.name] = [names.index(name) for name in member.outputs]
        return found

    def settled(self) -> dict[str, list[tuple[int, ...]]]:
        """Shapes of the inputs of networks whose files leave extents open that the property
        settles, by declared name."""
        return {
            member.declared.name: [slot.shape for slot in member.slots]
            for member in self.members
            if member.is_settled
        }

    def slots(self) -> dict[str, list[Slot]]:
        """The inputs of each declared network, in the order of the flat ones."""
        return {member.declared.name: member.slots for member in self.members}

    def takes_batches(self) -> bool:
        """Whether ``run_batch`` runs many points in one call, as far as is known so far."""
        return all(member.takes_batches for member in self.members)

    def run_batch(self, points: np.ndarray) -> np.ndarray:
        """Outputs ``[K, m]`` (float64) at ``points [K, n]``: good for finding candidates, never for
        confirming one."""
        columns, start = [], 0
        for member, size in zip(self.members, self.sizes, strict=True):
            columns.append(member.run_batch(points[:, start : start + size]))
            start += size
        return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


class _Member:
    """One declared network with its session."""

    def __init__(self, declared: NetworkDecl, path: Path, session: Any, has_shapes: bool) -> None:
        self.declared, self.path, self.session = declared, path, session
        inputs = session.get_inputs()
        shapes = [_shape(item.shape) for item in inputs]
        if len(inputs) == len(declared.given):
            shapes = [
                settled_shape(item.shape, tensor.shape, has_shapes)
                for item, tensor in zip(inputs, declared.given, strict=True)
            ]
        self.is_settled = shapes != [_shape(item.shape) for item in inputs]
        self.slots = [
            Slot(item.name, shape, _dtype(item.type, path))
            for item, shape in zip(inputs, shapes, strict=True)
        ]
        ends = _asked(session.get_outputs(), declared)
        strange = [item.name for item in ends if item.type not in _NUMERIC]
        if strange:
            raise ModelError(
                f"{path.name} computes {', '.join(map(repr, strange))}, no tensors of numbers; "
                f"choose one output with --output, such as --output {strange[0]}, or save the "
                "network without them"
            )
        self.outputs = [item.name for item in ends]
        """What the property is about, by its name in the file."""
        free = extents_words([item.shape for item in inputs])
        _check_fit("input", declared.given, shapes, path, has_shapes, free)
        # (No extents: a scalar, or a shape that onnxruntime does not know. ``run`` counts numbers.)
        if all(item.shape and all(isinstance(n, int) for n in item.shape) for item in ends):
            _check_fit(
                "output", declared.computed, [_shape(item.shape) for item in ends], path, has_shapes
            )
        first = inputs[0].shape if len(self.slots) == 1 else []
        self.takes_batches = bool(first) and not isinstance(first[0], int)
        self.is_tried = False

    def run(self, flat: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        feed, parts, start = {}, [], 0
        for name, shape, dtype in self.slots:
            end = start + math.prod(shape)
            part = _cast(flat[start:end], dtype)
            feed[name] = part.reshape(shape)
            parts.append(part)
            start = end
        values = [
            np.asarray(value).reshape(-1)
            for value in run_session(self.session, feed, self.path.name, self.outputs)
        ]
        if not all(value.dtype.kind in NUMBERS for value in values):
            raise ModelError(
                f"{self.path.name} computes outputs that are no tensors of numbers; save it "
                "without them"
            )
        found, wanted = sum(value.size for value in values), _count(self.declared.computed)
        if found != wanted:
            raise PropertyError(
                f"the property declares {_shapes_text(self.declared.computed)} as outputs "
                f"({wanted} numbers), but "
                f"{self.path.name} computes {found} numbers{self._other_outputs()}; declare what "
                "the network computes"
            )
        return parts, values

    def _other_outputs(self) -> str:
        several = len(self.outputs) > 1
        return f" ({', '.join(self.outputs)}: --output chooses one)" if several else ""

    def run_batch(self, points: np.ndarray) -> np.ndarray:
        if self.takes_batches and len(points) > 1:
            if not self.is_tried:
                self.is_tried = True
                self.takes_batches = self._batch_equals_rows(points[:_BATCH_TRIAL])
            if self.takes_batches:
                found = self._batch(points)
                if found is not None:
                    return found
                self.takes_batches = False
        return np.stack([np.concatenate(self.run(point)[1]).astype(np.float64) for point in points])

    def _batch(self, points: np.ndarray) -> np.ndarray | None:
        """All points in one call, or None if the file does not really take batches."""
        name, shape, dtype = self.slots[0]
        try:
            feed = {name: _cast(points, dtype).reshape(-1, *shape[1:])}
            values = run_session(self.session, feed, self.path.name, self.outputs)
        except ModelError:
            return None
        rows = [np.asarray(value) for value in values]
        if any(not row.shape or row.shape[0] != len(points) for row in rows):
            return None
        return np.concatenate([row.reshape(len(points), -1) for row in rows], axis=1).astype(
            np.float64
        )

    def _batch_equals_rows(self, points: np.ndarray) -> bool:
        # A Reshape or Flatten with a fixed extent can mix rows without any error.
        found = self._batch(points)
        rows = np.stack([np.concatenate(self.run(point)[1]).astype(np.float64) for point in points])
        return (
            found is not None
            and found.shape == rows.shape
            and bool(
                np.allclose(
                    found, rows, rtol=_BATCH_TOLERANCE, atol=_BATCH_TOLERANCE, equal_nan=True
                )
            )
        )


def _path_of(declared: NetworkDecl, networks: Mapping[str, Path]) -> Path:
    for name in (declared.name, declared.equal_to):
        if name in networks:
            return networks[name]
    raise PropertyError(
        f"the property declares network {declared.name}, but no file was given for it "
        f"(given: {', '.join(networks) or 'none'})"
    )


def _opened(path: Path, declared: NetworkDecl) -> Any:
    """A session of the file with the tensors that ``declared`` asks for; of QONNX, which
    onnxruntime refuses, as ``qonnx`` writes it out."""
    content = None
    if declared.asks_more:
        content = with_asked_outputs(path, declared, unpacked_model(path))
    try:
        return open_session(runnable_model(path) if content is None else content, path)
    except ModelError:
        standard = standard_content(content or unpacked_model(path), path)
        if standard is None:
            raise
    return open_session(standard, path)


def open_session(model: str | bytes, name: object) -> Any:
    """onnxruntime as the definition of a file (its path or content): CPU, one thread, graph
    optimisations off. Raises ``ModelError``, which calls it ``name``."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes live inside its extension
        raise ModelError(f"onnxruntime cannot load {name}: {_first_line(error)}") from error


def run_session(
    session: Any,
    feed: Mapping[str, np.ndarray],
    name: object,
    outputs: Sequence[str] | None = None,
) -> list[Any]:
    """The ``outputs``, all where None. Raises ``ModelError``."""
    try:
        result: list[Any] = session.run(None if outputs is None else list(outputs), dict(feed))
    except Exception as error:  # onnxruntime's own classes live inside its extension
        raise ModelError(f"onnxruntime cannot run {name}: {_first_line(error)}") from error
    return result


def _cast(values: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), repr(error))


def _shape(extents: Sequence[object]) -> tuple[int, ...]:
    return tuple(extent if isinstance(extent, int) and extent > 0 else 1 for extent in extents)


def _dtype(word: str, path: Path) -> type[np.generic]:
    if word not in _TYPES:
        raise ModelError(
            f"{path} has an input of type {word}, which cannot be replayed; numbers are needed"
        )
    return _TYPES[word]


def _count(tensors: tuple[TensorDecl, ...]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _shapes_text(tensors: tuple[TensorDecl, ...]) -> str:
    return ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in tensors)


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Extents of 1 do not change which number stands where."""
    return tuple(extent for extent in shape if extent != 1)


def _asked(ends: list[Any], declared: NetworkDecl) -> list[Any]:
    """The outputs of a file that a property is about: the first ones, if it declares exactly as
    many numbers as those have together, all of them otherwise."""
    if declared.asks_more:  # what it asks for stands behind them
        return ends
    total, wanted = 0, _count(declared.outputs)
    for k, item in enumerate(ends, start=1):
        total += math.prod(_shape(item.shape)) if item.type in _TYPES else 0
        if total == wanted:
            return ends[:k]
    return ends


def _check_fit(
    kind: str,
    tensors: tuple[TensorDecl, ...],
    shapes: list[tuple[int, ...]],
    path: Path,
    has_shapes: bool,
    free: tuple[str, str] = ("", ""),
) -> None:
    """Raise ``PropertyError`` unless the declared tensors are those of the file (VNN-LIB 1.0: as
    many numbers); ``free``: extents that the file leaves open (see ``extents_words``)."""
    wanted, found = _count(tensors), sum(math.prod(shape) for shape in shapes)
    fits = wanted == found
    if fits and has_shapes:
        pairs = list(
            zip([_core(tensor.shape) for tensor in tensors], map(_core, shapes), strict=False)
        )
        # A flat declaration leaves no doubt about the order either.
        fits = len(tensors) == len(shapes) and all(
            math.prod(one) == math.prod(other) and (one == other or min(len(one), len(other)) < 2)
            for one, other in pairs
        )
    if not fits:
        raise PropertyError(
            f"the property declares {_shapes_text(tensors)} as {kind}s ({wanted} numbers), but "
            f"{path.name} has "
            f"{', '.join(str(list(shape)) for shape in shapes)} ({found} numbers); "
            + (
                f"the file leaves {free[0]} open: give --input-shape {free[1]} with numbers in "
                "their place, or save the network with fixed extents"
                if free[0]
                else "use the network that it is about"
            )
        )


def _fit(values: list[np.ndarray], tensors: tuple[TensorDecl, ...]) -> list[np.ndarray]:
    """``values`` as one flat array per declared tensor; each keeps its own type where the two lists
    correspond."""
    sizes = [math.prod(tensor.shape) for tensor in tensors]
    if [value.size for value in values] == sizes:
        return values
    flat = np.concatenate(values)
    return [np.asarray(part) for part in np.split(flat, np.cumsum(sizes)[:-1])]
