"""Torch networks in place of files: a property says of which shape their inputs are.

A problem is about files, so a torch network becomes one, in a temporary folder that lives as long
as the problem. It is written at the middle of the property's first box, and compared with the
module there and at two corners. One module under two names is one file, as one path would be.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bitcrown.errors import ModelError
from bitcrown.spec.element_types import ELEMENT_TYPES
from bitcrown.spec.loading import problem_of, query_of
from bitcrown.spec.polynomial import number_variables
from bitcrown.spec.problem import Problem
from bitcrown.spec.property import Property
from bitcrown.spec.query import Query, TensorDecl


class ExportedFiles(dict[str, Path]):
    """Paths of networks by declared name; the folder with the files goes when this does."""


def is_torch(model: object) -> bool:
    """Whether it is a torch module or an exported program. Does not import torch: where that has
    not been done, there are none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module | torch.export.ExportedProgram)


def load(networks: Any, asked: str | Path | Property) -> Problem:
    """What is asked, about networks: ``verify``, ``bound`` and ``outlook`` take the result.

    ``networks``: the path of an ONNX file, a torch module or an exported program; where the
    property declares several, a mapping from their names to these, or VNN-COMP 2026's list of pairs
    as text. ``asked``: the path of a VNN-LIB file, or a ``Property``. Torch networks are exported
    at the shapes that the property declares. Raises ``PropertyError``, ``ModelError`` or
    ``UnsupportedError``.
    """
    query = query_of(asked)
    several = list(networks.values()) if isinstance(networks, Mapping) else [networks]
    if any(is_torch(one) for one in several):
        return load_modules(networks, query)
    return problem_of(query, networks)


def load_modules(networks: Any, query: Query) -> Problem:
    """A problem on torch networks (and files): one for all names, or a mapping from names.

    Raises ``PropertyError``, ``UnsupportedError``, and ``ModelError`` where torch cannot write a
    module, or writes something that computes other values.
    """
    names = [network.name for network in query.networks]
    given = networks if isinstance(networks, Mapping) else dict.fromkeys(names, networks)
    folder = Path(tempfile.mkdtemp(prefix="bitcrown-load-"))
    files: dict[int, Path] = {}
    paths = ExportedFiles()
    weakref.finalize(paths, shutil.rmtree, folder, ignore_errors=True)
    for name, model in given.items():
        if is_torch(model):
            paths[name] = files.setdefault(id(model), folder / f"{len(files)}" / f"{name}.onnx")
        else:
            paths[name] = model
    problem = problem_of(query, paths)
    paths.clear()
    paths.update(problem.networks)
    written: set[Path] = set()
    for network in query.networks:
        path = paths[network.name]
        model = given.get(network.name)
        if not is_torch(model) or path in written:
            continue
        if any(tensor.is_initialized for tensor in network.inputs):
            raise ModelError(f"network {network.name} has a stored input, as only files have")
        from bitcrown.evaluation.exporting import exported

        path.parent.mkdir()
        exported(model, _points(problem, network.inputs), path)
        written.add(path)
    return replace(problem, networks=paths)


def _points(problem: Problem, tensors: tuple[TensorDecl, ...]) -> list[list[np.ndarray]]:
    """Middle, lower and upper corner of the first box, as arrays of the declared shapes."""
    offsets = number_variables(problem.query).offsets
    ends = [np.zeros(problem.n_inputs)] * 2
    if problem.cases:
        first = problem.cases[0]
        ends = [np.array([float(v) for v in side]) for side in (first.lower, first.upper)]
    flats = [ends[0] / 2 + ends[1] / 2, *ends]
    return [
        [_array(flat[offsets[tensor.name] :], tensor, problem.query) for tensor in tensors]
        for flat in flats
    ]


def _array(flat: np.ndarray, tensor: TensorDecl, query: Query) -> np.ndarray:
    kind = ELEMENT_TYPES[tensor.dtype]
    # VNN-LIB 1.0 knows no shapes: one row of a batch is what a flat input mostly is.
    shape = (1, *tensor.shape) if query.version[0] == 1 else tensor.shape
    values = flat[: int(np.prod(tensor.shape, dtype=np.int64))].reshape(shape)
    if not kind.is_whole:
        return values.astype(np.float32)
    name = kind.name if kind.name not in ("int4", "uint4") else "int8"
    whole: np.ndarray = np.rint(values).astype(np.dtype(name))
    return whole
