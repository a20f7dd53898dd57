"""Laws of the property readers.

(j) a property that was printed and read again is the same property; the normal form says the same
as the tree at every point; no text, however broken, raises anything but our own errors.
"""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitcrown.errors import PropertyError, UnsupportedError
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.printer import print_query
from bitcrown.spec.problem import Case, Constraint, Problem
from bitcrown.spec.query import (
    And,
    Compare,
    Const,
    Formula,
    NetworkDecl,
    Or,
    Product,
    Query,
    Sum,
    TensorDecl,
    Term,
    Var,
)
from bitcrown.spec.reader import parse_query
from bitcrown.spec.words import property_in_words

NO_DEADLINE = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)

# A coarse grid, so that points on boundaries, ties and contradictions come up all the time.
GRID = [Fraction(n, 10) for n in (-20, -10, -5, -3, 0, 3, 5, 10, 20)]
decimals = st.builds(
    lambda digits, places: Fraction(digits, 10**places),
    st.integers(-(10**20), 10**20),
    st.integers(0, 25),
)


def terms(
    variables: st.SearchStrategy[Term], constants: st.SearchStrategy[Fraction]
) -> st.SearchStrategy[Term]:
    leaves = st.one_of(variables, st.builds(Const, constants))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(lambda args: Sum(tuple(args)), st.lists(inner, min_size=1, max_size=3)),
            st.builds(lambda args: Product(tuple(args)), st.lists(inner, min_size=1, max_size=2)),
        ),
        max_leaves=4,
    )


def formulas(term: st.SearchStrategy[Term]) -> st.SearchStrategy[Formula]:
    atoms = st.builds(Compare, st.sampled_from(["<=", "<", "==", "!="]), term, term)
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.builds(lambda args: And(tuple(args)), st.lists(inner, min_size=1, max_size=3)),
            st.builds(lambda args: Or(tuple(args)), st.lists(inner, min_size=1, max_size=3)),
        ),
        max_leaves=6,
    )


@st.composite
def networks(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[NetworkDecl, ...]]:
    if draw(st.booleans()):
        sizes = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
        flat = NetworkDecl(
            "N", (TensorDecl("X", "real", (sizes[0],)),), (TensorDecl("Y", "real", (sizes[1],)),)
        )
        return (1, 0), (flat,)
    shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
    # One type for all: what is compared has to have one.
    dtypes = st.just(draw(st.sampled_from(["real", "float32", "float64"])))
    decls = []
    for name in ("f", "g")[: draw(st.integers(1, 2))]:
        inputs = tuple(
            TensorDecl(
                f"X{k}_{name}", draw(dtypes), draw(shapes), is_initialized=draw(st.booleans())
            )
            for k in range(draw(st.integers(1, 2)))
        )
        hidden = (
            (TensorDecl(f"H_{name}", draw(dtypes), draw(shapes), "relu 1"),)
            if draw(st.booleans())
            else ()
        )
        outputs = (TensorDecl(f"Y_{name}", draw(dtypes), draw(shapes)),)
        decls.append(NetworkDecl(name, inputs, outputs, hidden))
    if len(decls) == 2 and draw(st.booleans()):
        first = decls[0]
        inputs = tuple(replace(t, name=f"{t.name}_copy") for t in first.inputs)
        outputs = tuple(TensorDecl(f"{t.name}_copy", t.dtype, t.shape) for t in first.outputs)
        relation = draw(st.sampled_from(["equal_to", "isomorphic_to"]))
        decls[1] = NetworkDecl("g", inputs, outputs, **{relation: "f"})
    return (2, draw(st.integers(0, 3))), tuple(decls)


@st.composite
def queries(draw: st.DrawFn) -> Query:
    version, decls = draw(networks())
    tensors = [t for n in decls for t in n.inputs + n.outputs + n.hidden]
    elements: list[Term] = []
    for tensor in tensors:
        size = 1
        for extent in tensor.shape:
            size *= extent
        elements += [Var(tensor.name, index) for index in range(size)]
    tree = formulas(terms(st.sampled_from(elements), decimals))
    return Query(version, decls, And(tuple(draw(st.lists(tree, min_size=1, max_size=4)))))


@NO_DEADLINE
@given(queries())
def test_printing_and_reading_again_gives_the_same_query(query: Query) -> None:
    assert parse_query(print_query(query)) == query


def value_of(term: Term, point: dict[Var, Fraction]) -> Fraction:
    if isinstance(term, Const):
        return term.value
    if isinstance(term, Var):
        return point[term]
    values = [value_of(arg, point) for arg in term.args]
    result = Fraction(int(isinstance(term, Product)))
    for value in values:
        result = result + value if isinstance(term, Sum) else result * value
    return result


def holds(formula: Formula, point: dict[Var, Fraction]) -> bool:
    if isinstance(formula, And):
        return all(holds(arg, point) for arg in formula.args)
    if isinstance(formula, Or):
        return any(holds(arg, point) for arg in formula.args)
    left, right = value_of(formula.left, point), value_of(formula.right, point)
    return {"<=": left <= right, "<": left < right, "==": left == right, "!=": left != right}[
        formula.op
    ]


def meets(constraint: Constraint, values: list[Fraction]) -> bool:
    total = Fraction(0)
    for monomial, coefficient in constraint.terms:
        for number in monomial:
            coefficient = coefficient * values[number]
        total += coefficient
    return total < constraint.bound if constraint.strict else total <= constraint.bound


def violates(case: Case, values: list[Fraction]) -> bool:
    in_box = all(
        low <= v <= high for low, v, high in zip(case.lower, values, case.upper, strict=False)
    )
    return in_box and all(meets(constraint, values) for constraint in case.constraints)


XS: list[Term] = [Var("X", 0), Var("X", 1), Var("X", 2)]
YS: list[Term] = [Var("Y", 0), Var("Y", 1)]
FLAT = NetworkDecl("N", (TensorDecl("X", "real", (3,)),), (TensorDecl("Y", "real", (2,)),))
grid = st.sampled_from(GRID)
BOUNDED = tuple(
    Compare("<=", *sides)
    for x in XS
    for sides in ((x, Const(Fraction(1))), (Const(Fraction(-1)), x))
)
linear_inputs = st.builds(
    lambda op, a, x, b, c: Compare(op, Product((Const(a), x)), Sum((b, Const(c)))),
    st.sampled_from(["<=", "<", "=="]),
    grid,
    st.sampled_from(XS),
    st.sampled_from([*XS, Const(Fraction(0))]),
    grid,
)


def normalised(formula: tuple[Formula, ...]) -> Problem:
    return problem_from_query(
        Query((1, 0), (FLAT,), And(BOUNDED + formula)), {"N": Path("net.onnx")}
    )


# Simple atoms in ors, conjoined: the shape in which a lost alternative or a lost or shows at most
# points.
atoms = st.builds(
    lambda op, var, value, turned: Compare(
        op, *((Const(value), var) if turned else (var, Const(value)))
    ),
    st.sampled_from(["<=", "<", "=="]),
    st.sampled_from(XS + YS),
    grid,
    st.booleans(),
)
choices = st.builds(
    lambda args: Or(tuple(args)),
    st.lists(
        st.one_of(
            atoms,
            st.builds(lambda first, a, b: And((first, Or((a, b)))), atoms, atoms, atoms),
            st.builds(lambda a, b: And((a, b)), atoms, linear_inputs),
        ),
        min_size=2,
        max_size=3,
    ),
)
trees = st.one_of(
    st.lists(
        st.one_of(formulas(terms(st.sampled_from(XS + YS), grid)), linear_inputs),
        min_size=1,
        max_size=3,
    ),
    st.lists(choices, min_size=1, max_size=3),
)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    trees,
    st.lists(st.tuples(grid, grid, grid, grid, grid), min_size=8, max_size=20),
)
def test_the_cases_hold_exactly_where_the_tree_holds(
    tree: list[Formula], points: list[tuple[Fraction, ...]]
) -> None:
    problem = normalised(tuple(tree))
    corners = [case.lower + (Fraction(0), Fraction(0)) for case in problem.cases[:5]]
    corners += [case.upper + (Fraction(0), Fraction(0)) for case in problem.cases[:5]]
    for values in [*points, *corners]:
        point = dict(zip([*XS, *YS], values, strict=True))
        wanted = holds(And(BOUNDED + tuple(tree)), point)
        assert any(violates(case, list(values)) for case in problem.cases) == wanted


@NO_DEADLINE
@given(trees)
def test_no_case_is_empty_and_shared_boxes_share_objects(tree: list[Formula]) -> None:
    problem = normalised(tuple(tree))
    seen: dict[tuple[Fraction, ...], int] = {}
    for case in problem.cases:
        assert len(case.lower) == len(case.upper) == 3
        assert all(low <= high for low, high in zip(case.lower, case.upper, strict=True))
        assert seen.setdefault(case.lower, id(case.lower)) == id(case.lower)
        assert len({c.terms for c in case.constraints}) == len(case.constraints)
    assert bool(problem.cases) or problem.notes
    assert "sat" in property_in_words(problem)


SEEDS = (
    "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n; note\n"
    "(assert (and (<= X_0 1.5) (>= X_0 -1e-3) (= X_1 .5)))\n"
    "(assert (or (and (<= (* 2 Y_0) X_0) (< Y_0 3)) (>= (- Y_0 (+ X_0 1)) (/ 1 4))))\n",
    "(vnnlib-version <2.0>)\n(declare-network f (declare-input X real [1,2]) (declare-hidden H "
    'real [] "h")\n'
    "  (declare-output Y float32 [1,1]))\n(declare-network g (equal-to f) (declare-input U real "
    "[1,2])\n"
    "  (declare-output V float32 [1,1]))\n(assert (and (<= X[0,0] 1.0) (>= X[0,0] 0.0) (== X[0,1] "
    "0.5)))\n"
    "(assert (== X[0,0] U[0,0]))\n"
    "(assert (== U[0,1] X[0,1]))\n(assert (or (Y[0] < V[0,0]) (!= Y[0,0] (* V[0] X[0,0]))))\n",
)
PIECES = (
    *'()[]<>;,.+-*/=!"\n 0123456789eEXYUV_',
    *(
        "assert",
        "and",
        "or",
        "<=",
        ">=",
        "==",
        "!=",
        "X_0",
        "Y_0",
        "X[0,0]",
        "Y[0]",
        "1e400",
        "1e-400",
        "-0",
        "(and)",
    ),
    *(
        "declare-const",
        "declare-input",
        "declare-network",
        "real",
        "[1,1]",
        "<2.0>",
        "(" * 30,
        "\x00",
        "é",
        "\ufeff",
        "1" * 50,
    ),
)


def mutated(rng: random.Random) -> str:
    text = rng.choice(SEEDS)
    for _ in range(rng.choice((1, 1, 2, 4, 20))):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice((0, 0, 1, 1, 2, 5, 30)))
        middle = rng.choice(
            (rng.choice(PIECES), text[end : end + 20], rng.choice(SEEDS)[start : start + 15], "")
        )
        text = text[:start] + middle + text[end:]
    return text


def test_ten_thousand_broken_texts_raise_only_our_errors() -> None:
    rng = random.Random(20260)
    accepted = rejected = 0
    for trial in range(10_000):
        if trial % 10 == 0:
            text = " ".join(rng.choice(PIECES) for _ in range(rng.randrange(60)))
        else:
            text = mutated(rng)
        try:
            query = parse_query(text)
            problem_from_query(
                query, {network.name: Path("net.onnx") for network in query.networks}
            )
            accepted += 1
        except (PropertyError, UnsupportedError) as problem:
            assert len(str(problem)) < 400
            rejected += 1
    assert accepted > 200 and rejected > 5000
