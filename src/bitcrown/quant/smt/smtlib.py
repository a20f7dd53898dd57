"""A bit-vector formula as an SMT-LIB 2 script of the logic QF_BV, for any other solver.

Every term becomes one ``define-fun`` without arguments, named after its number, so that sharing
survives and the script is as long as the formula; variables keep their names. The header says what
each variable means, so that a model printed by another solver can be read back by hand:  ``x7`` is
element 7 of the flat network input minus its smallest value in the improved encoding, and the value
itself, in two's complement, in the others.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitcrown.quant.smt.terms import BOOL, BitvectorFormula, BitvectorTerm


def smtlib_script(formula: BitvectorFormula) -> str:
    """The whole script, ending in ``(check-sat)``; ``(get-model)`` is left to the user, it is an
    error after unsat."""
    return "\n".join(_lines(formula)) + "\n"


def _lines(formula: BitvectorFormula) -> Iterator[str]:
    yield from _header(formula)
    yield "(set-option :produce-models true)"
    yield "(set-logic QF_BV)"
    names: list[str] = []
    for number, term in enumerate(formula.terms):
        if term.operator == "variable":
            names.append(str(term.data))
            yield f"(declare-const {term.data} {_sort(term.width)})"
        elif term.operator == "constant":
            names.append(_constant(term))
        else:
            names.append(f"t{number}")
            yield (
                f"(define-fun t{number} () {_sort(term.width)} "
                f"{_application(term, formula, names)})"
            )
    for assertion in formula.assertions:
        yield f"(assert {names[assertion]})"
    yield "(check-sat)"
    yield "(exit)"


def _header(formula: BitvectorFormula) -> Iterator[str]:
    exactness = (
        "exact"
        if formula.is_exact
        else "rounding not pinned down: a model is a candidate, unsat is a proof"
    )
    yield f"; property violation of an integer network, {formula.style} encoding, {exactness}"
    yield "; satisfiable exactly if some input in the box violates the property"
    yield "; input n = origin + value of its variable:"
    for coordinate in formula.coordinates:
        term = formula.terms[coordinate.term]
        kind = "signed" if coordinate.is_signed else "unsigned"
        yield (
            f";   input {coordinate.index} = {coordinate.origin} + {term.data} ({kind}, "
            f"{term.width} bits)"
        )
    known = {coordinate.index for coordinate in formula.coordinates}
    fixed = [f"{n}={value}" for n, value in enumerate(formula.fixed) if n not in known]
    if fixed:
        yield (
            "; inputs without a variable are fixed by the box or do not matter; one value of each:"
        )
        for start in range(0, len(fixed), 16):
            yield ";   " + " ".join(fixed[start : start + 16])
    if not formula.is_exact:
        yield "; variables r<node>_<element> are neurons between their two staircases"


def _sort(width: int) -> str:
    return "Bool" if width == BOOL else f"(_ BitVec {width})"


def _constant(term: BitvectorTerm) -> str:
    if term.width == BOOL:
        return "true" if term.data else "false"
    return f"#b{int(term.data):0{term.width}b}"


def _application(term: BitvectorTerm, formula: BitvectorFormula, names: list[str]) -> str:
    operands = " ".join(names[arg] for arg in term.args)
    if term.operator == "extract":
        low = int(term.data)
        return f"((_ extract {low + term.width - 1} {low}) {operands})"
    if term.operator in ("zero_extend", "sign_extend"):
        more = term.width - formula.terms[term.args[0]].width
        return f"((_ {term.operator} {more}) {operands})"
    return f"({term.operator} {operands})"
