"""What a property asks, in plain words."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from bitcrown.spec.decimals import short_text
from bitcrown.spec.polynomial import number_variables
from bitcrown.spec.problem import Case, Constraint, Problem

_MAX_CASES_SHOWN = 3
_MAX_CONSTRAINTS_SHOWN = 8
_MAX_INPUTS_SHOWN = 8
_MAX_TERMS_SHOWN = 12


def constraint_text(constraint: Constraint, name: Callable[[int], str]) -> str:
    """A constraint as mathematics, variables named by ``name``: ``Y_0 <= Y_3 + 0.5``."""
    left: list[str] = []
    right: list[str] = []
    for monomial, coefficient in constraint.terms[:_MAX_TERMS_SHOWN]:
        factors = "*".join(name(number) for number in monomial)
        size = abs(coefficient)
        (left if coefficient > 0 else right).append(
            factors if size == 1 else f"{short_text(size)}*{factors}"
        )
    if len(constraint.terms) > _MAX_TERMS_SHOWN:
        left.append("...")
    bound, sign = constraint.bound, "<" if constraint.strict else "<="
    if not left:  # -y <= -3 reads better as y >= 3
        return f"{' + '.join(right)} {sign.replace('<', '>')} {short_text(-bound)}"
    end = " + ".join(right)
    if not right:
        end = short_text(bound)
    elif bound:
        end += f" {'+' if bound > 0 else '-'} {short_text(abs(bound))}"
    return f"{' + '.join(left)} {sign} {end}"


def property_in_words(problem: Problem) -> str:
    """What a counterexample is, what ``unsat`` means, and the boxes and first cases written out."""
    numbering = number_variables(problem.query)

    def name(number: int) -> str:
        return numbering.name(number, problem.query.version)

    networks = ", ".join(f"{network} ({path.name})" for network, path in problem.networks.items())
    lines = [
        f"Network{'s' if len(problem.networks) > 1 else ''}: {networks}; "
        f"{_count(problem.n_inputs, 'input')}, {_count(problem.n_outputs, 'output')}."
    ]
    if problem.cases:
        several = len(problem.cases) > 1
        which = f"at least one of the {len(problem.cases)} cases" if several else "the one case"
        lines.append(
            "A counterexample (sat) is an input inside the box for which all constraints of "
            f"{which} hold."
        )
        lines.append("unsat means that no such input exists: the property holds for the whole box.")
        lines += _boxes(problem, name)
        for place, case in enumerate(problem.cases[:_MAX_CASES_SHOWN]):
            lines.append(f"Case {place + 1}: {_case(case, name)}.")
        if len(problem.cases) > _MAX_CASES_SHOWN:
            lines.append(f"... and {len(problem.cases) - _MAX_CASES_SHOWN} more cases.")
    else:
        lines.append(
            "There is nothing to find: the property is unsat whatever the network computes."
        )
    lines += [f"Note: {note}." for note in problem.notes]
    return "\n".join(lines)


def _boxes(problem: Problem, name: Callable[[int], str]) -> list[str]:
    # By identity: equal boxes share their tuples, and comparing them entry by entry would be slow.
    boxes = {(id(case.lower), id(case.upper)): case for case in problem.cases}
    first = next(iter(boxes.values()))
    widths = [high - low for low, high in zip(first.lower, first.upper, strict=True)]
    fixed = sum(width == 0 for width in widths)
    text = f"Box: {_count(len(widths), 'input')}, {fixed} of them fixed to one value"
    if len(boxes) > 1:
        text = (
            f"The cases use {len(boxes)} different boxes. The first one: "
            f"{text.removeprefix('Box: ')}"
        )
    moving = [width for width in widths if width]
    if moving:
        text += f"; widths from {short_text(min(moving))} to {short_text(max(moving))}"
    lines = [text + "."]
    if len(widths) <= _MAX_INPUTS_SHOWN:
        lines += [
            f"  {_interval(name(i), first.lower[i], first.upper[i])}" for i in range(len(widths))
        ]
    else:
        low, high = min(first.lower), max(first.upper)
        lines.append(f"  all inputs lie between {short_text(low)} and {short_text(high)}")
    return lines


def _interval(name: str, low: Fraction, high: Fraction) -> str:
    return (
        f"{name} = {short_text(low)}"
        if low == high
        else f"{short_text(low)} <= {name} <= {short_text(high)}"
    )


def _case(case: Case, name: Callable[[int], str]) -> str:
    if not case.constraints:
        return "any input of the box will do, whatever the outputs are"
    shown = [
        constraint_text(constraint, name)
        for constraint in case.constraints[:_MAX_CONSTRAINTS_SHOWN]
    ]
    more = len(case.constraints) - len(shown)
    return " and ".join(shown) + (f" and {more} more constraints" if more else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
