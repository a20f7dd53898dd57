"""VNN-LIB 1.0: ``declare-const X_k Real``, ``declare-const Y_k Real``, ``assert``. One network,
flat variables."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bitcrown.errors import PropertyError
from bitcrown.spec.formula import FormulaReader
from bitcrown.spec.query import And, Formula, NetworkDecl, Query, TensorDecl, Var
from bitcrown.spec.sexpr import Form, Source, shown

_NETWORK_NAME = "N"
_NAME = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})")
# Solver commands of the SMT-LIB heritage that say nothing about the property.
_IGNORED = frozenset({"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"})


def parse_vnnlib1(source: Source, forms: Iterable[Form]) -> Query:
    """Read the forms of a VNN-LIB 1.0 file.

    Raises:
        PropertyError: an unknown command, a name other than X_k or Y_k, a variable declared twice
            or not at all, gaps in the numbering, no input, no output or no assertion.
        UnsupportedError: a connective or function outside VNN-LIB.
    """
    declared: dict[str, Var] = {}
    formulas: list[Formula] = []
    reader = FormulaReader(source, declared.get, division=True)
    for form in forms:
        head = form.head()
        if head == "assert":
            if len(form) != 2:
                raise source.error(
                    form.offset, f"assert has {len(form) - 1} formulas", "write exactly one"
                )
            formulas.append(reader.read(form[1], form))
        elif head == "declare-const" or head == "declare-fun":
            _declare(source, form, declared)
        elif head not in _IGNORED:
            what = f"{shown(form)} is no VNN-LIB 1.0 command"
            raise source.error(form.offset, what, "use declare-const and assert")
    if not formulas:
        raise PropertyError(
            f"{source.name}: there is no assert, so nothing is asked; add the property."
        )
    inputs, outputs = _count(source, declared, "X"), _count(source, declared, "Y")
    network = NetworkDecl(
        _NETWORK_NAME, (TensorDecl("X", "real", (inputs,)),), (TensorDecl("Y", "real", (outputs,)),)
    )
    return Query((1, 0), (network,), And(tuple(formulas)))


def _declare(source: Source, form: Form, declared: dict[str, Var]) -> None:
    is_function = form[0] == "declare-fun"
    if len(form) != 3 + is_function or (is_function and form[2] != Form()) or form[-1] != "Real":
        raise source.error(
            form.offset,
            f"{shown(form)} declares no real variable",
            "write (declare-const X_0 Real)",
        )
    name = form[1]
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        what = f"the name {shown(name)!r} is neither X_k nor Y_k"
        raise source.error(
            form.offset, what, "number the inputs X_0, X_1 ... and the outputs Y_0, Y_1 ..."
        )
    if match[0] in declared:
        raise source.error(form.offset, f"{match[0]} is declared twice", "remove one declaration")
    declared[match[0]] = Var(match[1], int(match[2]))


def _count(source: Source, declared: dict[str, Var], tensor: str) -> int:
    indices = {var.index for var in declared.values() if var.tensor == tensor}
    kind = "input" if tensor == "X" else "output"
    if not indices:
        raise PropertyError(
            f"{source.name}: no {kind} is declared; add (declare-const {tensor}_0 Real)."
        )
    if len(indices) != max(indices) + 1:
        missing = next(k for k in range(len(indices)) if k not in indices)
        raise PropertyError(
            f"{source.name}: {tensor}_{missing} is not declared although {tensor}_{max(indices)} "
            "is; "
            f"declare every {kind} from {tensor}_0 on."
        )
    return len(indices)
