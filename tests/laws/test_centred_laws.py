"""Laws of passes in single precision (``bounds/centred``): every step holds in exact rational
arithmetic, with the rounding that it counts and not without; windows see what the whole network
does; nothing is claimed where numbers end."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from bitcrown.bounds import intermediate
from bitcrown.bounds.centred import rows as centred_rows
from bitcrown.bounds.centred.measures import Reference, is_exact_type
from bitcrown.bounds.centred.passes import CentredRows, centred_bounds
from bitcrown.bounds.centred.windows import period_of, windows_behind
from bitcrown.bounds.claims import is_unstable
from bitcrown.bounds.crown import Backward, minimum, output_seeds, relaxations_of
from bitcrown.bounds.intermediate import Enclosure, LayerBounder, undecided_places
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.wanted import wanted_elements
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from tests.random_networks import conv_graph, dense_graph
from tests.unit.bounds.test_receptive_field import image_graph

torch.set_num_threads(1)


def pooled_graph(seed: int) -> Graph:
    """A wide image, convolutions in a row whose windows overhang, an average, two depths that meet
    again, a Pad."""
    random = np.random.default_rng(seed)

    def conv(
        name: str, source: str, shape: tuple[int, ...], inputs: int, kernel: int, pad: int
    ) -> Node:
        weight = random.normal(size=(shape[1], inputs, kernel, kernel)) / kernel
        attrs = {"strides": [1, 1], "pads": [pad, pad], "dilations": [1, 1], "group": 1}
        params = {"weight": weight, "bias": random.normal(size=shape[1]) * 0.3}
        return Node(name, "Conv", (source,), shape, attrs, params)

    wide, half, sides = (1, 3, 12, 10), (1, 3, 6, 5), ([0, 0, 0, 1], [0, 0, 1, 0])
    nodes = [
        Node("x", "Input", (), (1, 2, 12, 10)),
        conv("c0", "x", wide, 2, 3, 1),
        conv("c1", "c0", wide, 3, 3, 1),
        Node("r1", "Relu", ("c1",), wide),
        conv("c2", "r1", wide, 3, 3, 1),
        Node("sum", "Add", ("c1", "c2"), wide),
        Node("r2", "Relu", ("sum",), wide),
        Node("mean", "AveragePool", ("r2",), half, {"kernel": [2, 2], "strides": [2, 2]}),
        conv("c3", "mean", half, 3, 3, 1),
        Node("r3", "Relu", ("c3",), half),
        Node("wider", "Pad", ("r3",), (1, 3, 7, 6), {"pads": sides, "value": 0.0}),
        conv("c4", "wider", (1, 2, 5, 4), 3, 3, 0),
        Node("r4", "Relu", ("c4",), (1, 2, 5, 4)),
    ]  # fmt: skip
    return Graph({node.name: node for node in nodes}, ("x",), ("r4",), ("float32",))


def upsampled_graph(seed: int) -> Graph:
    """Some channels of an image, halved and brought back by a transposed convolution (of two
    kinds), padded, and put beside what was not halved."""
    random = np.random.default_rng(seed)

    def conv(name: str, source: str, shape: tuple[int, ...], inputs: int, kernel: int) -> Node:
        weight = random.normal(size=(shape[1], inputs, kernel, kernel)) / kernel
        pads = [kernel // 2, kernel // 2]
        attrs = {"strides": [1, 1], "pads": pads, "dilations": [1, 1], "group": 1}
        params = {"weight": weight, "bias": random.normal(size=shape[1]) * 0.3}
        return Node(name, "Conv", (source,), shape, attrs, params)

    wide, half, up = (1, 3, 13, 15), (1, 3, 6, 7), (1, 2, 12, 14)
    kernel, pad = (2, 0) if seed % 2 else (3, 1)
    turned = {"strides": [2, 2], "pads": [pad, pad], "dilations": [1, 1], "group": 1}
    turned["output_padding"] = [pad, pad]
    weight = {"weight": random.normal(size=(3, 2, kernel, kernel)), "bias": random.normal(size=2)}
    parts = ((0, 1, 1), (1, 3, 1), (0, 13, 1), (0, 15, 1))
    padding = {"pads": ([0, 0, 0, 0], [0, 0, 1, 1]), "value": 0.3}
    nodes = [
        Node("x", "Input", (), (1, 4, 13, 15)),
        Node("part", "Slice", ("x",), (1, 2, 13, 15), {"slices": parts}),
        conv("c0", "part", wide, 2, 3),
        Node("r0", "Relu", ("c0",), wide),
        Node("mean", "AveragePool", ("r0",), half, {"kernel": [2, 2], "strides": [2, 2]}),
        conv("c1", "mean", half, 3, 3),
        Node("r1", "Relu", ("c1",), half),
        Node("up", "ConvTranspose", ("r1",), up, turned, weight),
        Node("wider", "Pad", ("up",), (1, 2, 13, 15), padding),
        Node("both", "Concat", ("r0", "wider"), (1, 5, 13, 15), {"axis": 1}),
        conv("c2", "both", wide, 5, 3),
        Node("r2", "Relu", ("c2",), wide),
        conv("c3", "r2", (1, 2, 13, 15), 3, 1),
        Node("r3", "Relu", ("c3",), (1, 2, 13, 15)),
    ]  # fmt: skip
    return Graph({node.name: node for node in nodes}, ("x",), ("r3",), ("float32",))


GRAPHS = {
    "upsampled": upsampled_graph,
    "conv": conv_graph,
    "image": image_graph,
    "pooled": pooled_graph,
    "dense": lambda seed: dense_graph(seed, [3, 8, 8, 6, 2], residual=True),
    "sigmoid": lambda seed: dense_graph(seed, [3, 6, 5, 4, 2], op="Sigmoid"),
}


class Case(NamedTuple):
    network: Network
    reference: Reference
    enclosure: Enclosure
    box: tuple[torch.Tensor, torch.Tensor]

    def sources(self) -> list[tuple[Node, str]]:
        """Nonlinear nodes and those of their operands that backward passes bound."""
        graph = self.network.graph
        return [
            (node, name)
            for node in graph.nodes.values()
            if not self.network.rows[node.name].is_affine
            for name in node.inputs
            if name not in graph.inputs
        ]


def case_of(kind: str, seed: int, width: float) -> Case:
    """A box and the bounds that double precision alone gives every layer on it."""
    network = Network(GRAPHS[kind](seed), torch.float64)
    random = np.random.default_rng(seed)
    middle = torch.from_numpy(random.normal(size=(1, network.graph.n_inputs)))
    box = middle - width, middle + width
    bounder = LayerBounder(network, 1 << 26, may_round=False)
    with torch.no_grad():
        enclosure = bounder.run(*box)
        reference = Reference.of_box(network, *box)
    assert reference is not None
    for _, source in Case(network, reference, enclosure, box).sources():
        assert reference.extend(source, enclosure.bounds, enclosure.relaxations, {})
    return Case(network, reference, enclosure, box)


class Taken(NamedTuple):
    """One step of one row: coefficients before and after as flat arrays of fractions, and by how
    much constant, error and spread grew."""

    node: Node
    before: np.ndarray
    after: list[np.ndarray]
    gained: Fraction
    error: Fraction
    spread: Fraction
    is_shared: bool


def exact(values: torch.Tensor) -> np.ndarray:
    flat = values.detach().double().flatten().tolist()
    return np.array([Fraction(value) for value in flat] + [None], dtype=object)[:-1]


def steps_of(case: Case, source: str, element: int, bands: bool, patch: Any) -> list[Taken]:
    """All steps of the first row that bounds ``element`` of ``source``."""
    found: list[Taken] = []
    plain = centred_rows.RowStep.run

    def whole(step: Any, name: str, a: torch.Tensor, place: torch.Tensor) -> np.ndarray:
        node = case.network.graph.nodes[name]
        if len(node.shape) == 4:
            window = step.windows[name]
            a = a if window is None else step.maps.spread(a, node, window, place)
            a = a.permute(2, 3, 0, 1)
        return exact(a[0])

    def recorded(step: Any, node: Node, a: torch.Tensor, state: Any) -> list[torch.Tensor]:
        before = [exact(part[:1])[0] for part in (state.constant, state.error, state.spread)]
        parts = plain(step, node, a, state)
        after = [exact(part[:1])[0] for part in (state.constant, state.error, state.spread)]
        whole_parts = [
            whole(step, name, part, state.place)
            for name, part in zip(node.inputs, parts, strict=False)
        ]
        grown = [b - a for a, b in zip(before, after, strict=True)]
        taken = whole(step, node.name, a, state.place)
        found.append(Taken(node, taken, whole_parts, *grown, state.is_shared))
        return parts

    patch.setattr(centred_rows.RowStep, "run", recorded)
    shape, period = case.network.graph.nodes[source].shape, period_of(case.network.graph, source)
    at = (element // shape[-1], element % shape[-1]) if len(shape) == 4 else (0, 0)
    phase = at[0] % shape[2] % period[0] if len(shape) == 4 else 0, at[1] % period[1]
    rows = CentredRows(case.reference, source, case.enclosure.bounds, False, None, period, phase)
    rows.run(torch.tensor([element])) if not bands else rows.run_bands(torch.tensor([element]))
    patch.undo()
    return found


def matrices(case: Case, node: Node) -> list[np.ndarray]:
    """``W_i [m, n_i]`` of an affine node, entry by entry as double precision has them."""
    shapes = [case.network.graph.nodes[name].shape for name in node.inputs]
    result = []
    for place, shape in enumerate(shapes):
        size = int(np.prod(shape))
        points = [torch.zeros(size, *other, dtype=torch.float64) for other in shapes]
        points[place] = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
        flat = case.network.forward_node(node, points) - case.network.offset(node)
        result.append(flat.expand(size, *node.shape).reshape(size, -1).T.numpy())
    return result


def loss_of_affine(case: Case, taken: Taken, bounds: Bounds) -> Fraction:
    """The most by which ``sum_i <a_i, y_i - c_i>`` exceeds ``<a, z - c>`` on the operands' range,
    exactly."""
    node, of = taken.node, case.reference.of
    offset = exact(case.network.offset(node).expand(1, *node.shape))
    shift = offset - exact(of[node.name].centre)
    loss = Fraction(0)
    for name, matrix, after in zip(node.inputs, matrices(case, node), taken.after, strict=True):
        reach = exact(reach_of(case, name, bounds))
        lost = -after
        centre = exact(of[name].centre)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            weight = Fraction(float(matrix[row, column]))
            lost[column] += taken.before[row] * weight
            shift[row] += weight * centre[column]
        loss += sum((abs(d) * r for d, r in zip(lost, reach, strict=True)), Fraction(0))
    return loss - sum((a * d for a, d in zip(taken.before, shift, strict=True)), Fraction(0))


def reach_of(case: Case, name: str, bounds: Bounds) -> torch.Tensor:
    """Not more than the radius of the exact range about the centre."""
    low, up = bounds[name]
    centre = case.reference.of[name].centre
    return torch.maximum(up - centre, centre - low) * (1 - 2.0**-50)


def loss_of_lines(case: Case, taken: Taken, bounds: Bounds, is_below: bool) -> Fraction:
    """The same for a nonlinear node between its lines; ``is_below``: the least value, else the
    largest."""
    node, relaxation = taken.node, case.enclosure.relaxations[taken.node.name]
    lower, upper = (
        [exact(part.expand(1, 1, *node.shape)) for part in (*slopes, intercept)]
        for slopes, intercept in (
            (relaxation.lower_slopes, relaxation.lower_intercept),
            (relaxation.upper_slopes, relaxation.upper_intercept),
        )
    )
    if taken.is_shared:
        lower = [upper[0], upper[1] * 0]
    centre, total = exact(case.reference.of[node.name].centre), Fraction(0)
    centres = [exact(case.reference.of[name].centre) for name in node.inputs]
    reaches = [exact(reach_of(case, name, bounds)) for name in node.inputs]
    for k, a in enumerate(taken.before):
        *slopes, shift = [part[k] for part in (lower if (a > 0) == is_below else upper)]
        value = shift - centre[k]
        for slope, at, reach, after in zip(slopes, centres, reaches, taken.after, strict=True):
            value += slope * at[k]
            total += abs(a * slope - after[k]) * reach[k]
        total -= a * value if is_below else -a * value
    return total


def excess_of(case: Case, taken: Taken) -> tuple[Fraction, Fraction]:
    """By how much a step loses more than it says (positive: a false proof), and what it says."""
    bounds = case.enclosure.bounds
    said = taken.error + taken.spread
    if case.network.rows[taken.node.name].is_affine:
        return loss_of_affine(case, taken, bounds) - said, said
    lost = [loss_of_lines(case, taken, bounds, True) + taken.gained]
    if taken.is_shared:
        lost.append(loss_of_lines(case, taken, bounds, False) - taken.gained)
    return max(lost) - said, said


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("width", [1e-3, 0.3])
@pytest.mark.parametrize("bands", [False, True])
def test_every_step_holds_in_rational_arithmetic(
    kind: str, width: float, bands: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And would not without the rounding that it counts: some step is inexact."""
    if bands and kind in ("image", "sigmoid"):
        return  # bands are those of ReLUs
    inexact = steps = 0
    for seed in range(2):
        case = case_of(kind, seed, width)
        for _, source in case.sources()[-2:]:
            size = case.network.graph.nodes[source].size
            element = int(np.random.default_rng(seed).integers(size))
            for taken in steps_of(case, source, element, bands, monkeypatch):
                excess, said = excess_of(case, taken)
                assert excess <= 0, (taken.node.name, float(excess), float(said))
                inexact += excess + said > taken.spread
                steps += 1
    assert steps and inexact


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("width", [1e-3, 0.1])
def test_bounds_are_those_of_double_precision(kind: str, width: float) -> None:
    """Of all elements, also where windows overhang; early stops leave no sign open."""
    for seed in range(3):
        case = case_of(kind, seed, width)
        bounds = case.enclosure.bounds
        backward = Backward(case.network, case.enclosure.relaxations, scales=case.enclosure.scales)
        bounder = LayerBounder(case.network, 1 << 26, may_round=False)
        for _, source in case.sources():
            every = torch.arange(case.network.graph.nodes[source].size)
            low, up = bounder.bound_elements(backward, source, every, bounds, *case.box)
            below, above, _ = centred_bounds(case.reference, source, every, bounds, False, None)
            width_of = (up - low)[0]
            room = 1e-3 * width_of + 1e-4 * width_of.mean()
            assert (below <= low[0] + room).all() and (above >= up[0] - room).all()
            assert (below >= low[0] - room).all() and (above <= up[0] + room).all()
            stopped = centred_bounds(case.reference, source, every, bounds, True, None)
            assert not (is_unstable(*stopped[:2]) & ~is_unstable(below, above)).any()


@pytest.mark.parametrize("kind", GRAPHS)
def test_whole_run_is_about_as_tight_as_in_double_precision(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intermediate, "_WIDE", 1)
    if kind == "upsampled":  # an interval behind neurons whose sign is enough may beat their rows
        monkeypatch.setattr(LayerBounder, "_serves_signs_alone", lambda self, source: False)
    for seed in range(3):
        case = case_of(kind, seed, 0.05)
        with torch.no_grad():
            found = LayerBounder(case.network, 1 << 26).run(*case.box).bounds
        for node, source in case.sources():
            exact_ends, ends = case.enclosure.bounds[source], found[source]
            wanted = undecided_places(node, source, {**found, source: exact_ends})
            low, up = (end.flatten()[wanted] for end in exact_ends)
            below, above = (end.flatten()[wanted] for end in ends)
            assert (below >= low - 1e-3 * (up - low)).all()
            assert (above <= up + 1e-3 * (up - low)).all()
            assert len(undecided_places(node, source, found)) <= len(wanted) + 1


@pytest.mark.parametrize("seed", [0, 1])
def test_windows_of_each_phase_hold_what_its_elements_read(seed: int) -> None:
    """And are windows: rows of a decoder do not look at whole images."""
    network = Network(upsampled_graph(seed), torch.float64)
    graph, shape = network.graph, network.graph.nodes["c2"].shape
    period = period_of(graph, "c2")
    assert period == (2, 2) and period_of(graph, "c1") == (1, 1)
    for place in range(shape[2] * shape[3]):
        y, x = divmod(place, shape[3])
        phase = y % period[0], x % period[1]
        windows = windows_behind(graph, "c2", period, phase)
        assert windows["r1"] is not None and windows["c0"] is not None
        point = torch.zeros(1, graph.n_inputs, dtype=torch.float64)
        for name, window in windows.items():
            if window is None or name == "c2":
                continue
            inner = torch.ones(1, *graph.nodes[name].shape, dtype=torch.float64).requires_grad_()
            value = network.activations(point, {name: inner})["c2"]
            (grad,) = torch.autograd.grad(value[0, 0, :, y, x].sum(), inner, allow_unused=True)
            read = grad[0, 0].abs().sum(0).nonzero() if grad is not None else torch.zeros(0, 2)
            for at in read.tolist():
                for axis, (position, index) in enumerate(zip((y, x), at, strict=True)):
                    first = window.stride[axis] * (position // period[axis])
                    assert first + window.low[axis] <= index < first + window.high[axis]


def outer_graph(seed: int) -> Graph:
    """``h h^T`` of a hidden layer: each of its elements is copied six times, twice."""
    random = np.random.default_rng(seed)

    def linear(name: str, source: str, outputs: int, inputs: int) -> Node:
        params = {
            "weight": random.normal(size=(outputs, inputs)),
            "bias": random.normal(size=outputs),
        }
        return Node(name, "Linear", (source,), (1, outputs), {}, params)

    tall, broad, square = (1, 6, 1), (1, 1, 6), (1, 6, 6)
    nodes = [
        Node("x", "Input", (), (1, 4)),
        linear("z", "x", 8, 4),
        Node("r", "Relu", ("z",), (1, 8)),
        linear("h", "r", 6, 8),
        Node("tall", "Reshape", ("h",), tall, {"shape": tall}),
        Node("broad", "Reshape", ("h",), broad, {"shape": broad}),
        Node("rows", "Expand", ("tall",), square, {"shape": square}),
        Node("columns", "Expand", ("broad",), square, {"shape": square}),
        Node("y", "Mul", ("rows", "columns"), square),
    ]
    return Graph({node.name: node for node in nodes}, ("x",), ("y",), ("float32",))


@pytest.mark.parametrize("wide", [1, 1000])
def test_copies_have_the_bounds_of_what_they_copy(
    wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either precision; each element is bounded once."""
    monkeypatch.setattr(intermediate, "_WIDE", wide)
    # whether zonotopes are worth their time depends on the number of rows
    monkeypatch.setattr(LayerBounder, "_zonotopes", lambda *arguments: None)
    for seed in range(4):
        network = Network(outer_graph(seed), torch.float64)
        box = torch.full((1, 4), -0.5).double(), torch.full((1, 4), 0.5).double()
        with torch.no_grad():
            found = LayerBounder(network, 1 << 26).run(*box).bounds
            with monkeypatch.context() as patch:
                patch.setattr(intermediate, "COPIES", ())
                alone = LayerBounder(network, 1 << 26).run(*box).bounds
        for name in ("rows", "columns"):
            width = (alone[name][1] - alone[name][0]).amin()
            for end, wanted in zip(found[name], alone[name], strict=True):
                assert torch.allclose(end, wanted, rtol=0, atol=1e-3 * float(width))
                lines = end[0, 0] if name == "rows" else end[0, 0].T
                assert torch.allclose(lines, lines[:, :1].expand(6, 6), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", GRAPHS)
def test_what_a_row_does_not_read_changes_nothing(kind: str) -> None:
    """Rows over some outputs have the same bounds where only what they depend on is bounded, and
    what is not wanted has no derivative."""
    for seed in range(3):
        case = case_of(kind, seed, 0.1)
        network, (lower, upper) = case.network, case.box
        outputs = torch.zeros(network.graph.n_outputs, dtype=torch.bool)
        outputs[seed % len(outputs)] = True
        wanted = wanted_elements(network, outputs)
        bounder = LayerBounder(network, 1 << 26, may_round=False)
        with torch.no_grad():
            enclosure = bounder.run(lower, upper, outputs=outputs)
        values = []
        for each in (enclosure, case.enclosure):
            backward = Backward(network, each.relaxations)
            rows = torch.diag(outputs.double())[outputs].unsqueeze(0)
            lines = backward.run(output_seeds(network, torch.cat([rows, -rows], 1)))
            values.append(minimum(lines, lower, upper))
        assert torch.allclose(*values, rtol=1e-9, atol=1e-9)
        # every element is a leaf of its own: the others do not move the outputs that are read
        inner = network.activations(lower + 0.3 * (upper - lower))
        for name, mask in wanted.items():
            moved = inner[name] + torch.where(mask, 0.0, 1.0)
            changed = network.activations(lower, {**_before(network, name, inner), name: moved})
            same = network.activations(lower, {**_before(network, name, inner)})
            ends = [
                torch.cat([each[out].flatten() for out in network.graph.outputs])[outputs]
                for each in (changed, same)
            ]
            assert torch.equal(*ends), name


def _before(
    network: Network, name: str, values: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Values of the nodes up to ``name``."""
    names = list(network.graph.nodes)
    return {each: values[each] for each in names[: names.index(name) + 1]}


@pytest.mark.parametrize("size", [1e30, 1e60, float("inf")])
def test_numbers_beyond_single_precision_claim_nothing(size: float) -> None:
    graph = pooled_graph(0)
    graph.nodes["c2"].params["weight"][0, 0] = size
    network = Network(graph, torch.float64)
    box = torch.full((1, 240), -1.0, dtype=torch.float64), torch.full((1, 240), 1.0).double()
    with torch.no_grad():
        enclosure = LayerBounder(network, 1 << 26).run(*box)
        relaxations = relaxations_of(network, enclosure.bounds)
        reference = Reference.of_box(network, *box)
        assert reference is not None
        if reference.extend("c3", enclosure.bounds, relaxations, {}):
            rows = CentredRows(reference, "c3", enclosure.bounds, False, None)
            low, up = rows.run(torch.arange(90))
            inside = torch.nan_to_num(network.activations(box[0] * 0)["c3"]).flatten()
            assert (low <= inside).all() and (inside <= up).all()
            assert size < 1e38


def test_fewer_bits_are_seen() -> None:
    assert is_exact_type(torch.device("cpu"))
    torch.set_float32_matmul_precision("medium")
    try:
        assert not is_exact_type(torch.device("cpu"))
    finally:
        torch.set_float32_matmul_precision("highest")
