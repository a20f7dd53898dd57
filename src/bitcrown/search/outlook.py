"""What a decision will do with a problem, said before it: the engine, what is enclosed and how
loosely, and everything that stands in the way, not only the first thing.

For a nonlinear element with operand(s) in ``[l, u]``, between the lines ``a_l x + b_l`` and ``a_u x
+ b_u``, looseness is how far the lines are apart at most,

    (b_u - b_l) + sum_i max((a_u - a_l)_i l_i, (a_u - a_l)_i u_i),

a number in the units of the element's value: what a bound may lose there. It is measured on the
whole box of the first case, by one plain pass of bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bitcrown.bounds import claims
from bitcrown.bounds.intermediate import Enclosure, LayerBounder
from bitcrown.bounds.relaxations.registry import nonlinear_row, terms_of
from bitcrown.budget import Budget
from bitcrown.check.replay import RuntimeReplay
from bitcrown.errors import BitcrownError
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.graph import Graph
from bitcrown.model.joining import join
from bitcrown.model.onnx_reader import read_graph
from bitcrown.model.products import bytes_of_bounds, fitted
from bitcrown.search.cells import count_of_cells
from bitcrown.search.coupling import FEW_INPUTS
from bitcrown.search.neuron_decision import BOUNDS_SHARE
from bitcrown.search.objective import Objective, has_row, objective_of
from bitcrown.search.quantized import read_in_integers
from bitcrown.search.strategy import Run, opened_files
from bitcrown.settings import Settings
from bitcrown.spec.case_table import arrays_of
from bitcrown.spec.problem import Problem

_SECONDS = 30.0
"""For the bounds that measure looseness; what is not bounded by then has its interval."""
_SIGNED = ("Relu", "LeakyRelu", "PRelu", "Abs", "Sign")


@dataclass(frozen=True)
class Outlook:
    """``sentences`` on what will be done; ``obstacles``: each reason for ``unknown`` by itself."""

    sentences: tuple[str, ...]
    obstacles: tuple[str, ...]


def outlook_of(problem: Problem, settings: Settings | None = None) -> Outlook:
    """What ``verify`` will do with ``problem``. Nothing is raised that a file or property causes:
    it is among the obstacles."""
    settings = settings or Settings()
    first = _before_floats(problem, settings) if problem.cases else ""
    if first:
        return Outlook((first,), ())
    obstacles: list[str] = []
    room = settings.memory_bytes() // BOUNDS_SHARE
    graphs: dict[str, Graph] = {}
    objective = None
    files = {name: NetworkFile(path) for name, path in problem.networks.items()}
    try:
        replay = RuntimeReplay(problem.query, problem.networks)
        files = opened_files(problem, replay)
        objective = objective_of(problem, replay.dtypes())
    except BitcrownError as error:
        obstacles.append(str(error))
    for name, file in files.items():
        try:
            graphs[name] = read_graph(file, settings.semantics)
            graphs[name] = fitted(graphs[name], room)
            crosscheck(graphs[name], file, settings.seed)
        except BitcrownError as error:
            obstacles.append(str(error))
    sentences: list[str] = []
    if not problem.cases:
        return Outlook(("nothing is left to decide: unsat",), tuple(dict.fromkeys(obstacles)))
    if objective is not None:
        sentences.append(_engine(objective))
        forms = arrays_of(problem.cases, problem.n_inputs).used_forms()
        if not all(map(has_row, forms.values())):
            sentences.append(
                "products whose coefficients no float64 row holds are left out of proofs, and"
                " checked on counterexamples"
            )
    if objective is not None and not obstacles:
        try:
            graph = fitted(join(graphs), room)
            if bytes_of_bounds(graph) > room:
                sentences.append("bounds of all layers exceed the memory: intervals and attacks")
            else:
                sentences += _looseness(Network(graph, torch.float64), objective, settings)
        except BitcrownError as error:
            obstacles.append(str(error))
    return Outlook(tuple(sentences), tuple(dict.fromkeys(obstacles)))


def _before_floats(problem: Problem, settings: Settings) -> str:
    """What the engines say that have their turn before the float engine; empty where none will
    decide. (What is wrong with the files, the float engine finds as well.)"""
    budget = Budget.of_seconds(_SECONDS, settings.memory_bytes())
    try:
        run = Run(problem, settings, budget, None)
        integers = read_in_integers(run)
        if integers is not None:
            network, queries = integers
            pinned = "to the bit" if network.is_exact() else "up to the order of float32 sums"
            boxes = "1 box" if len(queries) == 1 else f"{len(queries)} boxes"
            return f"integers from end to end, known {pinned}: decided in integers, {boxes}"
        count = count_of_cells(run)
    except BitcrownError:
        return ""
    if count is None:
        return ""
    cells = "1 cell of it is" if count == 1 else f"all {count} cells of them are"
    return f"what varies is read in steps only: {cells} run through onnxruntime, as time allows"


def _engine(objective: Objective) -> str:
    varied = int((objective.upper != objective.lower).any(axis=0).sum())
    inputs, boxes = objective.lower.shape[1], len(objective.lower)
    what = f"{varied} of {inputs} inputs vary, in {boxes} box{'' if boxes == 1 else 'es'}"
    if boxes > 1:
        return f"{what}: boxes of inputs are split"
    if varied <= FEW_INPUTS:
        return f"{what}: boxes of inputs are split, and signs of neurons where that lasts"
    return f"{what}: signs of neurons are split"


def _looseness(network: Network, objective: Objective, settings: Settings) -> list[str]:
    """A sentence for each nonlinear operator."""
    lower, upper = (network.tensor(ends[:1]) for ends in (objective.lower, objective.upper))
    limit = Budget.of_seconds(_SECONDS, settings.memory_bytes())
    with torch.no_grad():
        enclosure = LayerBounder(network, limit.memory // 8, budget=limit).run(lower, upper)
    counts: dict[str, list[float]] = {}
    for name in enclosure.relaxations:
        node = network.graph.nodes[name]
        gap = _gap(network, enclosure, name)
        total = counts.setdefault(node.op, [0.0, 0.0, 0.0])
        total[0] += node.size
        total[1] += float(torch.count_nonzero(gap))
        total[2] = max(total[2], float(gap.max()))
    found = []
    for op, (size, loose, worst) in counts.items():
        is_split = op in _SIGNED and nonlinear_row(op).is_piecewise_linear
        how = "a split makes each exact" if is_split else "only smaller boxes make them tighter"
        said = "none is loose" if not loose else f"lines up to {worst:.3g} apart; {how}"
        found.append(f"{op}: {int(loose)} of {int(size)} elements are loose on this box, {said}")
    return found


def _gap(network: Network, enclosure: Enclosure, name: str) -> torch.Tensor:
    """Largest distance between the two lines of each element, ``[*]``; NaN counts as infinite."""
    node, lines = network.graph.nodes[name], enclosure.relaxations[name]
    total = lines.upper_intercept - lines.lower_intercept
    for place, operand in enumerate(node.inputs):
        slope = lines.upper_slopes[place] - lines.lower_slopes[place]
        low, up = enclosure.bounds[operand]
        for part, end in ((slope.clamp(min=0), up), (slope.clamp(max=0), low)):
            total = total + terms_of(node, place, part, end)
    # (What is exact has lines that are apart by their rounding.)
    scale = torch.maximum(lines.upper_intercept.abs(), lines.lower_intercept.abs())
    return claims.known(torch.relu(total - 1e-9 * (1.0 + scale)), torch.inf)[0]
