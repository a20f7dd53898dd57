"""Only ``bounds.claims`` turns bounds into claims: no other file guards a denominator, or compares
a bound, by itself.

Three things made proofs of nothing: a NaN read as a number (``nan_to_num``), a denominator that is
not the one meant (``clamp(min=tiny)``), and a bound compared with a threshold by whoever held it.
The first two are forbidden wherever floats are bounded, the third where the search decides: there,
an ordering comparison may have neither a literal zero on either side nor a name that stands for
bounds. (``quant`` decides in integers; the floats there are guesses.)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "bitcrown"
CLAIMS = SOURCE / "bounds" / "claims.py"
FLOATS = [
    *(SOURCE / "search").rglob("*.py"),
    *(
        path
        for path in (SOURCE / "bounds").rglob("*.py")
        if path != CLAIMS and path.parent.name != "relaxations"
    ),
]
DECIDING = list((SOURCE / "search").rglob("*.py"))
BOUNDS = {
    "value",
    "values",
    "bound",
    "bounds",
    "least",
    "most",
    "margin",
    "margins",
    "excess",
    "low",
    "up",
    "lower",
}
BOUNDS |= {
    "upper",
    "x_lower",
    "x_upper",
    "k_low",
    "k_up",
    "new_low",
    "new_up",
    "row_value",
    "case_value",
}
ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
ORDER_CALLS = {"gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal"}
FLOORS = {"clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "clip_", "maximum", "fmax", "max"}
QUOTIENTS = {"div", "div_", "divide", "true_divide", "reciprocal"}


def called(node: ast.AST) -> str:
    """The name of the function or method that ``node`` calls, if it calls one."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def has_floor(node: ast.AST) -> bool:
    """Whether ``node`` contains a call that keeps numbers above a constant."""
    for part in ast.walk(node):
        if called(part) in FLOORS:
            assert isinstance(part, ast.Call)
            given = [
                *part.args,
                *(word.value for word in part.keywords if word.arg in ("min", "a_min", "other")),
            ]
            if any(is_tiny(value) for value in given):
                return True
    return False


def is_tiny(node: ast.AST) -> bool:
    """A number between 0 and 1, ``TINY``, ``info.tiny``, ``finfo(...).eps``, and what contains
    such."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, float) and 0 < part.value < 1:
            return True
    names = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return bool(
        {name.lower() for name in names} & {"tiny", "eps", "epsilon", "smallest", "smallest_normal"}
    )


def denominators(scope: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(scope):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            yield node.right
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div):
            yield node.value
        elif called(node) in QUOTIENTS:
            assert isinstance(node, ast.Call)
            yield from node.args
            if called(node) == "reciprocal" and isinstance(node.func, ast.Attribute):
                yield node.func.value


def guarded_denominators(tree: ast.Module) -> Iterator[int]:
    """Lines that divide by something kept above a constant, there or where the name was given in
    the same function."""
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)] or [tree]
    for scope in scopes:
        floored = {
            target.id
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign) and has_floor(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for below in denominators(scope):
            if has_floor(below) or (isinstance(below, ast.Name) and below.id in floored):
                yield below.lineno


def stands_for_bounds(node: ast.AST) -> bool:
    """Whether ``node`` is named like a bound, however it is indexed, negated or reduced, or a
    literal zero."""
    if isinstance(node, ast.Constant):
        return (
            isinstance(node.value, int | float)
            and not isinstance(node.value, bool)
            and node.value == 0
        )
    if isinstance(node, ast.Name | ast.Attribute):
        return (node.id if isinstance(node, ast.Name) else node.attr) in BOUNDS
    if isinstance(node, ast.Subscript):
        return stands_for_bounds(node.value)
    if isinstance(node, ast.UnaryOp):
        return stands_for_bounds(node.operand)
    if isinstance(node, ast.BinOp):
        return any(
            stands_for_bounds(side)
            for side in (node.left, node.right)
            if not isinstance(side, ast.Constant)
        )
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr not in ("numel", "dim")
    ):
        return stands_for_bounds(node.func.value)
    return False


def bare_comparisons(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(isinstance(op, ORDER) for op in node.ops):
            if any(stands_for_bounds(side) for side in (node.left, *node.comparators)):
                yield node.lineno
        elif called(node) in ORDER_CALLS and isinstance(node, ast.Call):
            sides = [
                *node.args,
                *([node.func.value] if isinstance(node.func, ast.Attribute) else []),
            ]
            if any(stands_for_bounds(side) for side in sides):
                yield node.lineno


def uses_of_nan_to_num(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        if name in ("nan_to_num", "nan_to_num_"):
            assert isinstance(node, ast.expr)
            yield node.lineno


def named(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", [*FLOATS, *(SOURCE / "quant").rglob("*.py")], ids=named)
def test_nothing_is_read_into_nan(path: Path) -> None:
    assert not list(uses_of_nan_to_num(ast.parse(path.read_text()))), (
        "claims.known says what is no number"
    )


@pytest.mark.parametrize("path", FLOATS, ids=named)
def test_no_denominator_is_guarded(path: Path) -> None:
    found = list(guarded_denominators(ast.parse(path.read_text())))
    assert not found, "claims.reciprocals, chord_slope and ratio divide"


@pytest.mark.parametrize("path", DECIDING, ids=named)
def test_the_search_compares_no_bound_by_itself(path: Path) -> None:
    assert not list(bare_comparisons(ast.parse(path.read_text()))), (
        "claims.excluded, is_unstable, crossed ... decide"
    )


FAULTS = [
    "region = cut(x, inverses(a), zero, value.nan_to_num(0.0, 0.0, -torch.inf))",
    "torch.nan_to_num_(error, 0.0)",
    "inverse = 1 / a.abs().clamp(min=1e-200)",
    "slope = above / (above - below).clamp(min=TINY)",
    "def f(a):\n    safe = torch.maximum(a, torch.tensor(0) + info.tiny)\n    return b / safe",
    "y = torch.reciprocal(a.clamp_min(1e-30))",
    "y /= np.maximum(width, 1e-12)",
    "boxes.open &= ~(values > 0).any(dim=2)",
    "left = (self.case_value <= 0).nonzero()",
    "proved = best > 0",
    "proved[k] = self.prove(domains) > 0.0",
    "excluded = value.amax(dim=1) - error > slack",
    "feasible &= ~(low > up).any(dim=1)",
    "unstable = region.low[:, index] < threshold",
    "proved = torch.gt(values, 0)",
    "proved = values.amax(1).gt(limit)",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_rules_find_the_faults_that_were_there(fault: str) -> None:
    tree = ast.parse(fault)
    found = [*uses_of_nan_to_num(tree), *guarded_denominators(tree), *bare_comparisons(tree)]
    assert found


INNOCENT = [
    "can_split = neuron != -1",
    "if size == self.batch and rate > 0.9 * best: pass",
    "while stack and size < self.batch: pass",
    "share = part / whole",
    "step = max(1, memory // width)",
    "moved = x.clamp(min=0) * slope / count",
    "proved = claims.excluded(values).any(dim=1)",
]


@pytest.mark.parametrize("line", INNOCENT)
def test_the_rules_leave_other_code_alone(line: str) -> None:
    tree = ast.parse(line)
    assert not [*uses_of_nan_to_num(tree), *guarded_denominators(tree), *bare_comparisons(tree)]
