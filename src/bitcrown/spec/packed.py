"""A query or a problem as a JSON value and arrays of numbers, and back: nothing is ever called.

A formula is written as a stack machine reads it: every node after its parts, as a code, a number
and a second one. The codes are in ``_CODES``; ``number`` is how many parts there are, or an index
into what the node refers to: elements (of tensor ``second``), constants, or arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np

from bitcrown.spec.case_table import CaseArrays, CaseTable, Terms, arrays_of
from bitcrown.spec.exact_vector import ExactVector
from bitcrown.spec.problem import Problem
from bitcrown.spec.query import (
    And,
    Compare,
    Const,
    Formula,
    ManyBounds,
    ManyCases,
    NetworkDecl,
    Or,
    Product,
    Query,
    Sum,
    TensorDecl,
    Term,
    Var,
)

NamedArrays = dict[str, np.ndarray]
_Node = Formula | Term
_KINDS: tuple[type, ...] = (Var, Const, Sum, Product, And, Or, ManyBounds, ManyCases)
_OPERATORS = ("<=", "<", "==", "!=")
_VAR, _CONST, _SUM, _PRODUCT, _AND, _OR, _BOUNDS, _CASES = range(len(_KINDS))
_CODES = {kind: code for code, kind in enumerate(_KINDS)} | {
    op: len(_KINDS) + k for k, op in enumerate(_OPERATORS)
}
_PARTS = {_SUM: Sum, _PRODUCT: Product, _AND: And, _OR: Or}


def arrays_of_property(item: Query | Problem) -> tuple[Any, NamedArrays]:
    """What JSON can write of a query or a problem, and arrays of numbers by name."""
    arrays: NamedArrays = {}
    query = item.query if isinstance(item, Problem) else item
    header: dict[str, Any] = {
        "version": list(query.version),
        "networks": [asdict(network) for network in query.networks],
        "formula": _packed_formula(query.assertion, arrays),
    }
    if isinstance(item, Problem):
        table = arrays_of(item.cases, item.n_inputs)
        header["problem"] = [item.n_inputs, item.n_outputs, list(item.notes), item.covers_all]
        header["forms"] = [
            [[list(monomial), _text(value)] for monomial, value in terms] for terms in table.forms
        ]
        header["ends"] = _packed_vector("ends", table.ends, arrays)
        header["bounds"] = _packed_vector("bounds", table.bounds, arrays)
        for name in ("low", "up", "first", "form", "is_strict"):
            arrays[name] = getattr(table, name)
    return header, arrays


def property_from_arrays(header: Any, arrays: Mapping[str, np.ndarray]) -> Query | Problem:
    """The inverse; a problem comes without its networks. What ``arrays_of_property`` has not made
    may raise anything that a lookup raises."""
    major, minor = map(int, header["version"])
    networks = tuple(_network(found) for found in header["networks"])
    assertion = _formula(header["formula"], arrays)
    query = Query((major, minor), networks, assertion)
    if "problem" not in header:
        return query
    n_inputs, n_outputs, notes, covers_all = header["problem"]
    forms: tuple[Terms, ...] = tuple(
        tuple((tuple(map(int, monomial)), _number(value)) for monomial, value in terms)
        for terms in header["forms"]
    )
    table = CaseArrays(
        int(n_inputs),
        _vector("ends", header["ends"], arrays),
        arrays["low"],
        arrays["up"],
        arrays["first"],
        forms,
        arrays["form"],
        _vector("bounds", header["bounds"], arrays),
        arrays["is_strict"],
    )
    cases = CaseTable(table)
    return Problem(query, {}, table.n, int(n_outputs), cases, tuple(notes), covers_all is True)


def _network(found: Mapping[str, Any]) -> NetworkDecl:
    tensors = {
        row: tuple(TensorDecl(**{**t, "shape": tuple(t["shape"])}) for t in found[row])
        for row in ("inputs", "outputs", "hidden")
    }
    return NetworkDecl(**{**found, **tensors})


def _packed_vector(name: str, vector: ExactVector, arrays: NamedArrays) -> list[list[Any]]:
    arrays[f"{name}.mantissa"], arrays[f"{name}.exponent"] = vector.mantissa, vector.exponent
    return [[place, _text(value)] for place, value in vector.others.items()]


def _text(value: Fraction) -> str:
    """In hexadecimal digits: Python writes no more than 4,300 decimal ones."""
    return f"{value.numerator:x}/{value.denominator:x}"


def _number(text: str) -> Fraction:
    return Fraction(*(int(part, 16) for part in text.split("/")))


def _vector(
    name: str, others: Sequence[Sequence[Any]], arrays: Mapping[str, np.ndarray]
) -> ExactVector:
    exact = {int(place): _number(value) for place, value in others}
    return ExactVector(arrays[f"{name}.mantissa"], arrays[f"{name}.exponent"], exact)


def _packed_formula(formula: Formula, arrays: NamedArrays) -> dict[str, Any]:
    """NamedArrays ``codes``, ``numbers``, ``seconds`` and what they refer to."""
    tensors: dict[str, int] = {}
    constants: dict[Fraction, int] = {}
    rows: list[tuple[int, int, int]] = []
    blocks: list[list[Any]] = []
    # Every node before its parts, the last part first; turned round, that is the order wanted.
    todo: list[_Node] = [formula]
    while todo:
        node = todo.pop()
        if isinstance(node, Var):
            second = tensors.setdefault(node.tensor, len(tensors))
            rows.append((_VAR, node.index, second))
        elif isinstance(node, Const):
            rows.append((_CONST, constants.setdefault(node.value, len(constants)), 0))
        elif isinstance(node, Compare):
            rows.append((_CODES[node.op], 2, 0))
            todo += (node.left, node.right)
        elif isinstance(node, ManyBounds | ManyCases):
            rows.append((_CODES[type(node)], len(blocks), 0))
            blocks.append(_packed_block(node, f"block{len(blocks)}", arrays))
        else:
            rows.append((_CODES[type(node)], len(node.args), 0))
            todo += node.args
    table = np.array(rows[::-1], dtype=np.int64)
    arrays["codes"] = table[:, 0].astype(np.int8)
    arrays["numbers"], arrays["seconds"] = table[:, 1].copy(), table[:, 2].astype(np.int32)
    numbers = _packed_vector("constants", ExactVector.of(list(constants)), arrays)
    return {"tensors": list(tensors), "constants": numbers, "blocks": blocks}


def _packed_block(node: ManyBounds | ManyCases, name: str, arrays: NamedArrays) -> list[Any]:
    """Its tensors and long numbers; the rest is arrays."""
    for row in _ROWS_OF_CASES if isinstance(node, ManyCases) else ("indices", "is_upper"):
        arrays[f"{name}.{row}"] = getattr(node, row)
    tensors = [node.tensor] if isinstance(node, ManyBounds) else list(node.tensors)
    return [tensors, _packed_vector(name, node.values, arrays)]


_ROWS_OF_CASES = ("first", "left_tensor", "left_index", "right_tensor", "right_index")


def _formula(found: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> And:
    constants = [Const(value) for value in _vector("constants", found["constants"], arrays)]
    stack: list[Any] = []
    rows = (arrays[name].tolist() for name in ("codes", "numbers", "seconds"))
    for code, number, second in zip(*rows, strict=True):
        if code == _VAR:
            stack.append(Var(found["tensors"][second], number))
        elif code == _CONST:
            stack.append(constants[number])
        elif code in (_BOUNDS, _CASES):
            tensors, others = found["blocks"][number]
            name = f"block{number}"
            values = _vector(name, others, arrays)
            if code == _BOUNDS:
                indices, is_upper = arrays[f"{name}.indices"], arrays[f"{name}.is_upper"]
                stack.append(ManyBounds(tensors[0], indices, is_upper, values))
            else:
                of_cases = {row: arrays[f"{name}.{row}"] for row in _ROWS_OF_CASES}
                stack.append(ManyCases(tensors=tuple(tensors), values=values, **of_cases))
        else:
            parts = stack[len(stack) - number :]
            del stack[len(stack) - number :]
            if code >= len(_KINDS):
                stack.append(Compare(_OPERATORS[code - len(_KINDS)], *parts))
            else:
                stack.append(_PARTS[code](tuple(parts)))
    (whole,) = stack
    if not isinstance(whole, And):
        raise ValueError("an assertion is a conjunction")
    return whole
