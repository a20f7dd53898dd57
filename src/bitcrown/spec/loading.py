"""Names of files, or a ``Property``, to a ``Problem``: networks are only remembered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bitcrown.errors import ModelError, PropertyError
from bitcrown.spec.network_field import parse_network
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.problem import Problem
from bitcrown.spec.property import Property
from bitcrown.spec.query import Query
from bitcrown.spec.reader import read_query


def _network_paths(
    onnx: str | Path | Mapping[str, str | Path], names: tuple[str, ...]
) -> dict[str, Path]:
    """Files of the declared networks.

    ``onnx`` is one path (then it serves every declared network that needs a file), a mapping from
    declared name to path, or the text of VNN-COMP 2026's list of pairs
    ``[('f', 'a.onnx'), ('g', 'b.onnx')]``. Raises ``PropertyError`` if a declared network has no
    file.
    """
    if isinstance(onnx, str) and onnx.lstrip().startswith("["):
        return {name: Path(path) for name, path in parse_network(onnx)}
    if isinstance(onnx, Mapping):
        for path in onnx.values():
            _require_path(path)
        return {name: Path(path) for name, path in onnx.items()}
    _require_path(onnx)
    return {name: Path(onnx) for name in names}


def _require_path(network: object) -> None:
    if not isinstance(network, str | Path):
        raise ModelError(
            "a network is the path of its ONNX file, a torch module or an exported program, but a "
            f"{type(network).__name__} was given; write what else you have as ONNX, for example "
            "with torch.onnx.export(module, (x,), 'net.onnx')"
        )


def load_files(
    onnx: str | Path | Mapping[str, str | Path], asked: str | Path | Property
) -> Problem:
    """Read a property and remember its networks. Raises ``PropertyError``, ``ModelError`` or
    ``UnsupportedError``."""
    return problem_of(query_of(asked), onnx)


def query_of(asked: object) -> Query:
    """The query of a file or of a ``Property``. Raises ``PropertyError`` or
    ``UnsupportedError``."""
    if isinstance(asked, Property):
        return asked.query()
    if not isinstance(asked, str | Path):
        raise PropertyError(
            "a property is the path of its VNN-LIB file or a bitcrown.Property, but a "
            f"{type(asked).__name__} was given"
        )
    return read_query(Path(asked))


def problem_of(query: Query, onnx: str | Path | Mapping[str, str | Path]) -> Problem:
    """The query on networks in files. Raises as ``load_files`` does."""
    return problem_from_query(query, files_by_name(query, onnx))


def files_by_name(query: Query, onnx: str | Path | Mapping[str, str | Path]) -> dict[str, Path]:
    """The file of every network that the query declares. Raises ``PropertyError`` and
    ``ModelError``."""
    names = tuple(network.name for network in query.networks)
    paths = _network_paths(onnx, names)
    for network in query.networks:
        if network.name not in paths:
            if not network.equal_to or network.equal_to not in paths:
                raise PropertyError(
                    f"the property declares network {network.name}, but no file was given for it "
                    f"(given: {', '.join(paths) or 'none'})"
                )
            paths[network.name] = paths[network.equal_to]
    return {name: paths[name] for name in names}
