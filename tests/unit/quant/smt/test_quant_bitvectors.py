"""What the encodings promise beyond being right: sizes, what intervals settle, free neurons,
refusals."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from bitcrown.budget import Budget
from bitcrown.errors import BudgetExpired
from bitcrown.quant.network.affine_rows import AffineRows
from bitcrown.quant.network.graph import (
    Dense,
    Gather,
    Input,
    IntegerNetwork,
    Ints,
    MaxPool,
    QuantError,
    Stairs,
)
from bitcrown.quant.smt.formula import Style, encode
from bitcrown.quant.smt.integer_bits import Steps, reachable_steps
from bitcrown.quant.smt.property_rows import DenseCase
from bitcrown.quant.smt.solvers import decide_by_bitvectors
from bitcrown.verdict import Status
from tests.unit.quant.smt.tiny_networks import (
    all_points,
    as_network,
    formula_at,
    random_network,
    violated,
)


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


def two_outputs(weight: Ints, late: Ints, early: Ints | None = None) -> IntegerNetwork:
    """Two inputs 0 .. 15, one dense layer, one staircase for both outputs."""
    early = late if early is None else early
    return as_network(
        [
            Input((2,), ints(0, 0), ints(15, 15)),
            Dense((2,), 0, weight, ints(0, 0)),
            Stairs((2,), 1, ints(0), early[None], late[None]),
        ]
    )


def check_at_every_point(
    network: IntegerNetwork,
    low: Ints,
    high: Ints,
    cases: tuple[DenseCase, ...],
    style: Style = Style.IMPROVED,
) -> None:
    points = all_points(low, high)
    held = formula_at(encode(network, low, high, cases, style), points)
    assert (held == violated(network.evaluate(points), cases)).all(), cases


SLOW_STAIRS = np.arange(1, 8, dtype=np.int64) * 16 - 8
"""A rounding shift by four bits, clipped to 0 .. 7."""


@pytest.mark.parametrize("seed", range(24))
def test_rows_over_leaves_are_the_values_of_every_node(seed: int) -> None:
    network = random_network(seed)
    rows = AffineRows(network)
    entry = network.nodes[0]
    assert isinstance(entry, Input)
    points = np.random.default_rng(seed).integers(entry.low, entry.high + 1, (20, len(entry.low)))
    values = network.values(points)
    for node, value in enumerate(values):
        for element in range(value.shape[1]):
            row = rows.row(node, element)
            total = sum(
                (factor * values[n][:, e] for (n, e), factor in row.parts),
                np.full(20, row.constant),
            )
            assert (total == value[:, element]).all()


def test_rounding_shift_is_recognised() -> None:
    steps = reachable_steps(-2, SLOW_STAIRS, 0, 60)
    assert steps == Steps(-2, (8, 24, 40, 56), (1, 1, 1, 1))
    assert steps.shift() == 4
    assert steps.levels() == [-2, -1, 0, 1, 2]
    assert reachable_steps(0, ints(3, 3, 7), 3, 6) == Steps(2, (), ())
    assert Steps(0, (8, 24, 56), (1, 1, 1)).shift() is None
    assert Steps(0, (8, 24), (1, 2)).shift() is None
    assert Steps(0, (0, 3), (1, 1)).shift() is None


def test_improved_formula_has_just_enough_bits() -> None:
    network = two_outputs(np.array([[3, 5], [2, -4]], dtype=np.int64), SLOW_STAIRS)
    formula = encode(network, ints(3, 7), ints(8, 7), ((((1, 1), 3),),))
    assert [(c.index, c.origin, formula.terms[c.term].width) for c in formula.coordinates] == [
        (0, 3, 3)
    ]
    # -22 .. -12 passes no threshold; 3 x + 35 = 44 .. 59 passes three, and 56 or not is all there
    # is to decide: the variable is limited to 0 .. 5, and three times it is compared with 55 - 44
    assert sum(term.operator.startswith("bv") for term in formula.terms) == 3
    assert max(term.width for term in formula.terms) <= 5


def test_accumulators_refute_what_outputs_leave_open() -> None:
    """o_0 >= o_1 + 1 with a_1 - a_0 = x_1 >= 1: the outputs' ranges overlap, the accumulators'
    difference does not."""
    network = two_outputs(np.array([[8, 0], [8, 1]], dtype=np.int64), SLOW_STAIRS)
    box = ints(0, 1), ints(15, 15)
    case = ((((-1, 1), -1),),)
    assert [t.operator for t in encode(network, *box, case).terms] == ["constant"]
    assert len(encode(network, *box, case, Style.PUBLISHED).terms) > 10
    assert not violated(network.evaluate(all_points(*box)), case).any()


@pytest.mark.parametrize("seed", range(60))
def test_difference_of_two_outputs_is_judged_as_enumeration_does(seed: int) -> None:
    """Pairs of one staircase are where the accumulators' difference may decide; saturation and ties
    included."""
    random = np.random.default_rng(seed)
    late = np.sort(random.integers(-40, 90, int(random.integers(1, 7))))
    weight = random.integers(-4, 9, (1, 2)) + random.integers(-1, 2, (2, 2))
    network = two_outputs(weight, late)
    low = random.integers(0, 12, 2)
    high = low + random.integers(0, 4, 2)
    for scale, slack in product((1, 3), range(-3, 4)):
        check_at_every_point(network, low, high, ((((-scale, scale), scale * slack + scale - 1),),))


@pytest.mark.parametrize("shift", range(7))
def test_difference_at_the_edge_of_a_step(shift: int) -> None:
    """a_1 = a_0 + shift on stairs 4 apart: a shift of 3 can stay on one step, 4 cannot; one more or
    less decides."""
    network = two_outputs(
        np.array([[1, 0], [1, 1]], dtype=np.int64), np.arange(1, 7, dtype=np.int64) * 4
    )
    for slack in range(-1, 3):
        check_at_every_point(network, ints(2, shift), ints(12, shift), ((((-1, 1), slack),),))


@pytest.mark.parametrize("style", list(Style))
@pytest.mark.parametrize("least", range(-9, 4))
def test_clips_just_outside_the_stairs(style: Style, least: int) -> None:
    """Stairs 4 apart from 2 to 10, entered from every distance below; the other output says what a
    missed clip adds."""
    network = two_outputs(np.array([[1, -1], [1, 0]], dtype=np.int64), ints(2, 6, 10))
    for top, slack, sign in product(range(4, 16), range(-3, 4), (1, -1)):
        case = ((((sign, -sign), slack),),)
        check_at_every_point(network, ints(4, 4 - least), ints(top, 4 - least), case, style)


@pytest.mark.parametrize("style", list(Style))
def test_a_fixed_element_holds_a_maximum_up(style: Style) -> None:
    """m = max(x_0 - 4, x_1) with x_1 = 5: m - x_0 reaches 3 at x_0 = 2, where the only element that
    moves is -2."""
    nodes = [
        Input((2,), ints(0, 0), ints(15, 15)),
        Dense((1, 1, 2), 0, np.array([[1, 0], [0, 1]], dtype=np.int64), ints(-4, 0)),
        MaxPool((1, 1, 1), 1, (1, 2), (1, 2), (1, 2)),
        Gather((2,), (2, 0), ints(0, 1)),
        Dense((1,), 3, np.array([[1, -1]], dtype=np.int64), ints(0)),
    ]
    network = as_network(nodes)
    for least in range(-4, 7):
        check_at_every_point(network, ints(2, 5), ints(12, 5), ((((-1,), -least),),), style)


@pytest.mark.parametrize("style", list(Style))
@pytest.mark.parametrize("seed", range(6))
def test_free_neurons_cover_every_rounding(style: Style, seed: int) -> None:
    """unsat exactly if no value between the two staircases violates; a model is a candidate and
    never sat."""
    random = np.random.default_rng(seed)
    late = np.sort(random.integers(-30, 60, 5))
    early = late - np.sort(random.integers(0, 6, 5))[::-1]
    weight = random.integers(-4, 5, (2, 2))
    network = two_outputs(weight, late, np.sort(early))
    assert not network.is_exact()
    exact = {
        name: two_outputs(weight, row) for name, row in (("least", late), ("most", np.sort(early)))
    }
    points = all_points(ints(2, 3), ints(6, 9))
    least, most = (exact[name].evaluate(points) for name in ("least", "most"))
    reached = {
        pair for lo, hi in zip(least, most, strict=True) for pair in product(*map(between, lo, hi))
    }
    outputs = np.array(sorted(reached))
    for bound in range(-8, 3):
        case = ((((-1, 1), bound),),)
        answer = decide_by_bitvectors(
            network, ints(2, 3), ints(6, 9), case, Budget.of_cpu_seconds(60.0), style
        )
        if violated(outputs, case).any():
            assert answer.status is Status.UNKNOWN
            assert answer.witness is None
            assert answer.candidate is not None
            where = (points == answer.candidate).all(axis=1)
            choices = np.array(list(product(*map(between, least[where][0], most[where][0]))))
            assert violated(choices, case).any()
        else:
            assert answer.status is Status.UNSAT


def between(low: int, high: int) -> range:
    return range(int(low), int(high) + 1)


@pytest.mark.parametrize("style", list(Style))
def test_trivial_properties(style: Style) -> None:
    network = two_outputs(np.array([[3, 5], [2, -4]], dtype=np.int64), SLOW_STAIRS)
    box = ints(0, 0), ints(15, 15)
    budget = Budget.of_cpu_seconds(60.0)
    assert decide_by_bitvectors(network, *box, (), budget, style).status is Status.UNSAT
    everything = decide_by_bitvectors(network, *box, ((),), budget, style)
    assert everything.status is Status.SAT
    point = decide_by_bitvectors(network, ints(4, 9), ints(4, 9), ((((1, 0), 4),),), budget, style)
    assert point.status is Status.SAT
    assert point.witness is not None
    assert point.witness.tolist() == [4, 9]


def test_arguments_that_do_not_fit_are_refused() -> None:
    network = two_outputs(np.array([[3, 5], [2, -4]], dtype=np.int64), SLOW_STAIRS)
    case = ((((1, 0), 4),),)
    with pytest.raises(QuantError, match="element 1: 3 .. 2 of 0 .. 15"):
        encode(network, ints(0, 3), ints(5, 2), case)
    with pytest.raises(QuantError, match="leaves the input format at element 0"):
        encode(network, ints(-1, 3), ints(5, 4), case)
    with pytest.raises(QuantError, match="the network takes"):
        encode(network, ints(0), ints(5), case)
    with pytest.raises(QuantError, match="3 coefficients; the network has 2 outputs"):
        encode(network, ints(0, 0), ints(5, 5), ((((1, 0, 0), 4),),))
    with pytest.raises(QuantError, match="choose one of baseline, published, improved"):
        encode(network, ints(0, 0), ints(5, 5), case, "shiny")
    with pytest.raises(QuantError, match="node 0"):
        encode(replace(network, nodes=network.nodes[1:]), ints(0, 0), ints(5, 5), case)


def test_an_expired_budget_ends_the_encoding() -> None:
    network = two_outputs(np.array([[3, 5], [2, -4]], dtype=np.int64), SLOW_STAIRS)
    with pytest.raises(BudgetExpired):
        encode(
            network, ints(0, 0), ints(15, 15), ((((1, -1), 0),),), budget=Budget.of_seconds(-1.0)
        )
