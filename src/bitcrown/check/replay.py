"""The original network files in onnxruntime, as the competition's scorer runs them.

CPU provider, graph optimisations off, one thread. Nothing here is shared with ``model`` or ``bounds``: an error in the
reader cannot also hide in the replay. Legend: ``n`` flat inputs and ``m`` flat outputs over all networks.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitcrown.errors import ModelError, PropertyError
from bitcrown.spec.query import NetworkDecl, Query, TensorDecl


def session_bytes(path: Path) -> bytes:
    """Content of ``path`` or ``path.gz``, unpacked if it is gzip."""
    if not path.exists() and Path(f"{path}.gz").exists():
        path = Path(f"{path}.gz")
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError) as error:
        raise ModelError(f"the network file {path} cannot be read: {error}") from error


class _Member:
    """One declared network with its session."""

    def __init__(self, declared: NetworkDecl, path: Path, session: Any) -> None:
        self.declared, self.session = declared, session
        self.inputs = [
            (i.name, tuple(e if isinstance(e, int) and e > 0 else 1 for e in i.shape), _dtype(i.type, path))
            for i in session.get_inputs()
        ]
        _check_fit(declared, [shape for _, shape, _ in self.inputs], path)
        self.has_batch_axis = (
            len(self.inputs) == 1
            and bool(session.get_inputs()[0].shape)
            and not isinstance(session.get_inputs()[0].shape[0], int)
        )

    def run(self, flat: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        feed, parts, start = {}, [], 0
        for name, shape, dtype in self.inputs:
            size = math.prod(shape)
            part = flat[start : start + size].astype(dtype)
            feed[name] = part.reshape(shape)
            parts.append(part)
            start += size
        return parts, [np.asarray(value).reshape(-1) for value in self.session.run(None, feed)]


def _dtype(word: str, path: Path) -> type[np.generic]:
    known: dict[str, type[np.generic]] = {
        "tensor(float)": np.float32,
        "tensor(double)": np.float64,
        "tensor(float16)": np.float16,
    }
    if word not in known:
        raise ModelError(f"{path} has an input of type {word}; only float inputs can be replayed")
    return known[word]


def _count(tensors: tuple[TensorDecl, ...]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _check_fit(declared: NetworkDecl, shapes: list[tuple[int, ...]], path: Path) -> None:
    total = sum(math.prod(shape) for shape in shapes)
    if _count(declared.inputs) != total:
        words = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in declared.inputs)
        raise PropertyError(
            f"the property declares inputs {words} ({_count(declared.inputs)} numbers), but {path.name} takes "
            f"{', '.join(str(list(shape)) for shape in shapes)} ({total} numbers)"
        )


class Replay:
    """Sessions of all networks of a query. Raises ``ModelError`` for unusable files, ``PropertyError`` for misfits."""

    def __init__(self, query: Query, networks: Mapping[str, Path]) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.query = query
        self.members: list[_Member] = []
        opened: dict[Path, Any] = {}
        for declared in query.networks:
            path = networks[declared.name]
            if path not in opened:
                try:
                    data = session_bytes(path)
                    opened[path] = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
                except ModelError:
                    raise
                except Exception as error:  # noqa: BLE001 - onnxruntime's own classes live inside its extension
                    first = (str(error).splitlines() or [repr(error)])[0]
                    raise ModelError(f"onnxruntime cannot load {path}: {first}") from error
            self.members.append(_Member(declared, path, opened[path]))
        self.sizes = [_count(member.declared.inputs) for member in self.members]
        self.n_inputs = sum(self.sizes)
        self._checked_outputs = False

    def dtypes(self) -> np.ndarray:
        """Element type of each flat input, as an object array ``[n]`` of numpy types."""
        parts = [[dtype] * math.prod(shape) for member in self.members for _, shape, dtype in member.inputs]
        return np.array([dtype for part in parts for dtype in part], dtype=object)

    def run(self, x: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Inputs as really fed (rounded) and outputs, per declared tensor, for a flat ``x [n]``.

        Tensors follow the declarations: one array per declared input and output, network by network.
        """
        fed: list[np.ndarray] = []
        outputs: list[np.ndarray] = []
        start = 0
        for member, size in zip(self.members, self.sizes, strict=True):
            parts, values = member.run(x[start : start + size])
            start += size
            flat_in, flat_out = np.concatenate(parts), np.concatenate([value.reshape(-1) for value in values])
            fed += _cut(flat_in, member.declared.inputs)
            if _count(member.declared.outputs) != flat_out.size:
                raise PropertyError(
                    f"the property declares {_count(member.declared.outputs)} outputs of network "
                    f"{member.declared.name}, but the network has {flat_out.size}"
                )
            outputs += _cut(flat_out, member.declared.outputs)
        return fed, outputs

    def run_batch(self, points: np.ndarray) -> np.ndarray:
        """Outputs ``[K, m]`` for finding candidates (``points [K, n]``); never used to confirm one."""
        if len(self.members) == 1 and self.members[0].has_batch_axis and len(points) > 1:
            member = self.members[0]
            name, shape, dtype = member.inputs[0]
            try:
                values = member.session.run(None, {name: points.astype(dtype).reshape(-1, *shape[1:])})
                rows = [np.asarray(value).reshape(len(points), -1) for value in values]
                return np.concatenate(rows, axis=1).astype(np.float64)
            except Exception:  # noqa: BLE001 - a batch axis that does not work: fall back to single points
                member.has_batch_axis = False
        rows = [np.concatenate(self.run(point)[1]).astype(np.float64) for point in points]
        return np.stack(rows)


def _cut(flat: np.ndarray, tensors: tuple[TensorDecl, ...]) -> list[np.ndarray]:
    parts, start = [], 0
    for tensor in tensors:
        size = math.prod(tensor.shape)
        parts.append(flat[start : start + size])
        start += size
    return parts
