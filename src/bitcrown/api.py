"""The library: what a notebook, the command line and the competition's worker call.

problem = bitcrown.load("net.onnx", "property.vnnlib")
verdict = bitcrown.verify(problem)
lower, upper = bitcrown.bounds(problem)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.budget import Budget
from bitcrown.errors import PropertyError, UnsupportedError
from bitcrown.settings import Settings
from bitcrown.spec.network_field import parse_network
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.problem import Problem
from bitcrown.spec.reader import read_query
from bitcrown.verdict import Verdict

if TYPE_CHECKING:
    import numpy as np

DEFAULT_SECONDS = 300.0


def network_paths(onnx: str | Path | Mapping[str, str | Path], names: tuple[str, ...]) -> dict[str, Path]:
    """Files of the declared networks.

    ``onnx`` is one path (then it serves every declared network that needs a file), a mapping from declared name to
    path, or the text of VNN-COMP 2026's list of pairs ``[('f', 'a.onnx'), ('g', 'b.onnx')]``.
    Raises ``PropertyError`` if a declared network has no file.
    """
    if isinstance(onnx, str) and onnx.lstrip().startswith("["):
        return {name: Path(path) for name, path in parse_network(onnx)}
    if isinstance(onnx, Mapping):
        return {name: Path(path) for name, path in onnx.items()}
    return {name: Path(onnx) for name in names}


def load(onnx: str | Path | Mapping[str, str | Path], vnnlib: str | Path) -> Problem:
    """Read a property and remember its networks. Raises ``PropertyError``, ``ModelError`` or ``UnsupportedError``."""
    query = read_query(Path(vnnlib))
    names = tuple(network.name for network in query.networks)
    paths = network_paths(onnx, names)
    for network in query.networks:
        if network.name not in paths:
            if not network.equal_to or network.equal_to not in paths:
                raise PropertyError(
                    f"the property declares network {network.name}, but no file was given for it "
                    f"(given: {', '.join(paths) or 'none'})"
                )
            paths[network.name] = paths[network.equal_to]
    return problem_from_query(query, {name: paths[name] for name in names})


def verify(
    problem: Problem,
    settings: Settings | None = None,
    seconds: float = DEFAULT_SECONDS,
    budget: Budget | None = None,
    report: Callable[[str, dict[str, Any]], None] | None = None,
    want_certificate: bool = False,
) -> Verdict:
    """Decide ``problem`` within ``seconds``, or within ``budget`` where given.

    Returns ``sat`` with a witness replayed on the original files, ``unsat`` after a finished proof, ``unknown`` with a
    reason, or ``timeout``. ``report(phase, facts)`` is called as the search goes on. With ``want_certificate``, an
    ``unsat`` about an integer network over one input box carries the proof that ``check-certificate`` checks.
    Raises ``ModelError`` and ``PropertyError`` for input that cannot be used.
    """
    from bitcrown.search.strategy import decide

    settings = settings or Settings()
    budget = budget or Budget.of_seconds(seconds, settings.memory_bytes())
    return decide(problem, settings, budget, report, want_certificate)


def bounds(problem: Problem, tensor: str | None = None, case: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sound lower and upper bounds of ``tensor`` (an output if None) over the input box of one case.

    Arrays have the tensor's ONNX shape; float64, rounded outward. ``tensor`` is a name as ``bitcrown inspect`` prints
    it. Raises ``UnsupportedError`` if the network has an operation without a rule, ``PropertyError`` for an unknown
    tensor name or case number.
    """
    from bitcrown.search.layers import tensor_bounds

    if not 0 <= case < len(problem.cases):
        raise PropertyError(f"case {case} does not exist: the property has {len(problem.cases)} cases")
    return tensor_bounds(problem, tensor, case)


def decide(
    onnx: str,
    vnnlib: str,
    seconds: float,
    settings: Settings,
    report: Callable[..., None],
    want_certificate: bool = False,
) -> tuple[Verdict, Problem]:
    """What the competition's worker runs: load and verify with one deadline over both."""
    started = time.monotonic()
    problem = load(onnx, vnnlib)
    left = seconds - (time.monotonic() - started)
    budget = Budget.of_seconds(left, settings.memory_bytes())
    return verify(problem, settings, budget=budget, report=report, want_certificate=want_certificate), problem


__all__ = ["UnsupportedError", "bounds", "decide", "load", "verify"]
