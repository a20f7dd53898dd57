"""What is asked of an integer network: is there an input in a box whose outputs satisfy one of
several cases?

Everything is an integer, so a strict inequality is a plain one with the bound lowered by one, and
no tolerance exists anywhere. A case is an AND of constraints ``sum_i c_i o_i <= b`` over the output
integers ``o``; the query is an OR of cases. Legend: ``N`` input elements, ``M`` outputs, ``B``
samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor, lcm

import numpy as np
import numpy.typing as npt

from bitcrown.quant.network.entry import EvenlySpaced
from bitcrown.quant.network.graph import WIDTH_LIMIT, Input, IntegerNetwork, Ints, QuantError
from bitcrown.spec.problem import Case, Constraint, Problem
from bitcrown.spec.robustness import wrong_labels

_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LinearConstraint:
    """``sum(coefficient * output[index] for index, coefficient in terms) <= bound``; indices
    distinct, sorted."""

    terms: tuple[tuple[int, int], ...]
    bound: int


ConstraintCase = tuple[LinearConstraint, ...]


@dataclass(frozen=True, eq=False)
class IntegerQuery:
    """``low``/``high``: [N], the box of the input node, both ends included; ``cases``: the
    violation as an OR of ANDs.

    ``exact_cases`` are the cases on which a witness is judged; they are the same unless the
    output's real values are not an affine function of its integers (then ``cases`` are implied by
    them, and sound for proofs only). ``real_box``: the box of the file's own input values, where
    the query came from one.
    """

    network: IntegerNetwork
    low: Ints
    high: Ints
    cases: tuple[ConstraintCase, ...]
    exact_cases: tuple[tuple[Constraint, ...], ...] | None = None
    notes: tuple[str, ...] = field(default=())
    real_box: tuple[tuple[Fraction, ...], tuple[Fraction, ...]] | None = None
    inner: tuple[Ints, Ints] | None = None
    """A box inside this one, of integers that inputs strictly inside the property's box become:
    where attacks look, while proofs are about the whole."""

    def __post_init__(self) -> None:
        node = self.network.nodes[0]
        assert isinstance(node, Input)
        for name, array in (("low", self.low), ("high", self.high)):
            if array.shape != node.low.shape:
                raise QuantError(
                    f"the {name} end of the input box has {array.shape} entries, the network "
                    f"takes {node.low.shape}; "
                    "give one integer per input element"
                )

    def is_empty(self) -> bool:
        """Whether no input lies in the box, or no case is left."""
        return not self.cases or bool((self.low > self.high).any())

    def reachable(self) -> IntegerQuery:
        """The same question about the inner box, where there is one that is not empty."""
        if self.inner is None:
            return self
        low, high = np.maximum(self.inner[0], self.low), np.minimum(self.inner[1], self.high)
        return self if (low > high).any() else replace(self, low=low, high=high, inner=None)

    def points(self) -> int:
        """Number of inputs in the box."""
        total = 1
        for a, b in zip(self.low.tolist(), self.high.tolist(), strict=True):
            total *= max(b - a + 1, 0)
        return total

    def violated(self, outputs: Ints) -> _Flags:
        """Whether each row of ``outputs`` [B, M] is a counterexample, exactly; [B]."""
        return self.surely_violated(outputs, outputs)

    def surely_violated(self, low: Ints, high: Ints) -> _Flags:
        """Whether one case holds for all outputs between ``low`` and ``high`` [B, M]; [B]."""
        if self.exact_cases is not None:
            pairs = zip(low.tolist(), high.tolist(), strict=True)
            return np.array(
                [any(self._holds(case, *pair) for case in self.exact_cases) for pair in pairs],
                dtype=bool,
            )
        return self._any_case(low, high)

    def possibly_violated(self, low: Ints, high: Ints) -> _Flags:
        """Whether some output between ``low`` and ``high`` [B, M] may satisfy a case; [B]."""
        return self._any_case(high, low)

    def _any_case(self, low: Ints, high: Ints) -> _Flags:
        """Positive coefficients meet ``high``, negative ones ``low``."""
        found = np.zeros(len(low), dtype=bool)
        for case in self.cases:
            holds = np.ones(len(low), dtype=bool)
            for constraint in case:
                total = sum(c * (high if c > 0 else low)[:, i] for i, c in constraint.terms)
                holds &= np.asarray(total <= constraint.bound)
            found |= holds
        return found

    def _holds(self, case: tuple[Constraint, ...], low: list[int], high: list[int]) -> bool:
        """Whether the case holds for the real values of all outputs in between (values do not
        decrease)."""
        exit_ = self.network.exit
        for constraint in case:
            total = Fraction(0)
            for (index,), factor in constraint.terms:
                end = high[index] if factor > 0 else low[index]
                total += factor * exit_.values[index][end - int(exit_.low[index])]
            if total > constraint.bound or (constraint.strict and total == constraint.bound):
                return False
        return True


def robustness_query(network: IntegerNetwork, x: Ints, label: int, eps: int) -> IntegerQuery:
    """All inputs within ``eps`` of ``x`` [N] (and inside the declared range) whose first-index
    argmax is not label."""
    node = network.nodes[0]
    assert isinstance(node, Input)
    x = np.asarray(x, dtype=np.int64).reshape(-1)
    outputs = int(np.prod(network.nodes[network.output].shape))
    if x.shape != node.low.shape:
        raise QuantError(
            f"the sample has {x.size} elements, the network takes {node.low.size}; check the "
            "image size"
        )
    _check_label(label, outputs)
    if eps < 0:
        raise QuantError(
            f"the radius {eps} is negative; give a whole number of input steps, 0 or more"
        )
    cases = []
    for wrong in wrong_labels(label, outputs, first_wins=True):
        terms = {output: factor for (output,), factor in wrong.terms}
        constraint = integral(terms, wrong.bound, wrong.strict)
        assert isinstance(constraint, LinearConstraint)
        cases.append((constraint,))
    low, high = np.maximum(x - eps, node.low), np.minimum(x + eps, node.high)
    return IntegerQuery(network, low, high, tuple(cases))


def real_robustness_query(
    network: IntegerNetwork, lower: tuple[Fraction, ...], upper: tuple[Fraction, ...], label: int
) -> IntegerQuery:
    """All inputs of the file's closed box [N] whose real outputs have their first maximum elsewhere
    than at label."""
    outputs, n_inputs = len(network.exit.values), len(lower)
    _check_label(label, outputs)
    wrong = wrong_labels(label, outputs, first_wins=True, first_output=n_inputs)
    cases = [Case(lower, upper, (constraint,)) for constraint in wrong]
    return _query_of_box(n_inputs, (), network, cases)


def _check_label(label: int, outputs: int) -> None:
    if not 0 <= label < outputs:
        raise QuantError(f"label {label} is not one of the {outputs} outputs; labels count from 0")


def integral(terms: dict[int, Fraction], bound: Fraction, strict: bool) -> LinearConstraint | bool:
    """An integer constraint with the same integer solutions; ``True``/``False`` if it mentions no
    output.

    All coefficients are multiplied by their common denominator and divided by their common factor;
    the left side is then an integer, so the bound is rounded down, or lowered to the next integer
    below if strict.
    """
    kept = {i: c for i, c in sorted(terms.items()) if c}
    if not kept:
        return bound > 0 if strict else bound >= 0
    scale = lcm(*(c.denominator for c in kept.values()))
    whole = {i: int(c * scale) for i, c in kept.items()}
    common = (
        int(np.gcd.reduce([abs(c) for c in whole.values()]))
        if max(map(abs, whole.values())) < 2**62
        else 1
    )
    limit = bound * scale / common
    top = ceil(limit) - 1 if strict else floor(limit)
    constraint = LinearConstraint(tuple((i, c // common) for i, c in whole.items()), top)
    if sum(abs(c) for _, c in constraint.terms) >= 2**40:
        raise QuantError(
            "an output constraint needs integers above 40 bits; write it with fewer digits"
        )
    return LinearConstraint(constraint.terms, max(min(top, WIDTH_LIMIT), -WIDTH_LIMIT))


def split_by_box(problem: Problem, network: IntegerNetwork) -> list[IntegerQuery]:
    """One query for every different input box among the cases, in order of appearance."""
    groups: dict[tuple[Sequence[Fraction], Sequence[Fraction]], list[Case]] = {}
    for case in problem.cases:
        groups.setdefault((case.lower, case.upper), []).append(case)
    queries = []
    for cases in groups.values():
        queries.append(_query_of_box(problem.n_inputs, problem.notes, network, cases))
    return queries


def _query_of_box(
    n_inputs: int, notes: tuple[str, ...], network: IntegerNetwork, cases: list[Case]
) -> IntegerQuery:
    """``cases`` share one box."""
    box = tuple(cases[0].lower), tuple(cases[0].upper)
    low, high = network.entry.box(*box)
    steps = [_affine_exit(values) for values in network.exit.values]
    proof: list[ConstraintCase] = []
    exact: list[tuple[Constraint, ...]] = []
    for case in cases:
        relaxed = _integer_case(case, n_inputs, network, steps)
        if relaxed is not None:
            proof.append(relaxed)
            exact.append(tuple(_shifted(c, n_inputs) for c in case.constraints))
    same = all(step is not None for step in steps)
    return IntegerQuery(
        network, low, high, tuple(proof), None if same else tuple(exact), notes, box
    )


def _affine_exit(values: Sequence[Fraction]) -> tuple[Fraction, Fraction] | None:
    """(step, first) if ``values[k] == first + step * k`` for all k."""
    if isinstance(values, EvenlySpaced):
        return values.step, values.first
    step = values[1] - values[0] if len(values) > 1 else Fraction(0)
    return (step, values[0]) if all(b - a == step for a, b in pairwise(values)) else None


def _shifted(constraint: Constraint, n_inputs: int) -> Constraint:
    terms = tuple(((monomial[0] - n_inputs,), factor) for monomial, factor in constraint.terms)
    return Constraint(terms, constraint.bound, constraint.strict)


def _integer_case(
    case: Case,
    n_inputs: int,
    network: IntegerNetwork,
    steps: list[tuple[Fraction, Fraction] | None],
) -> ConstraintCase | None:
    """The case over output integers (implied by it where an output is not affine); ``None`` if it
    cannot hold."""
    found: list[LinearConstraint] = []
    for constraint in case.constraints:
        if not constraint.is_linear() or any(m[0] < n_inputs for m, _ in constraint.terms):
            raise QuantError(
                "constraints on outputs of an integer network must be linear and free of inputs"
            )
        result = _integer_constraint(constraint, n_inputs, network, steps)
        if result is False:
            return None
        if isinstance(result, LinearConstraint):
            found.append(result)
    return tuple(found)


def _integer_constraint(
    constraint: Constraint,
    n_inputs: int,
    network: IntegerNetwork,
    steps: list[tuple[Fraction, Fraction] | None],
) -> LinearConstraint | bool:
    """A value that is not affine in its integer is replaced by the largest affine function of one
    slope below it."""
    terms: dict[int, Fraction] = {}
    bound = constraint.bound
    for (variable,), factor in constraint.terms:
        index = variable - n_inputs
        values, low = network.exit.values[index], int(network.exit.low[index])
        step = steps[index]
        if step is not None:
            slope, first = factor * step[0], factor * step[1]
        else:
            # slope k + first <= factor values[k] for every k, so the constraint still holds
            # wherever the exact one does.
            slope = factor * (values[-1] - values[0]) / (len(values) - 1)
            first = min(factor * value - slope * k for k, value in enumerate(values))
        # The output integer is low + k: slope k + first = slope output + (first - slope low).
        terms[index] = terms.get(index, Fraction(0)) + slope
        bound -= first - slope * low
    return integral(terms, bound, constraint.strict)
