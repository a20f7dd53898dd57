"""A ``Query`` back to text: what is printed parses to the same property. Every number is printed
exactly.

The generators of ``benchmarks`` write their files themselves: those have to be equal byte for byte
to published ones, which use comments and the shortest text of a float.
"""

from __future__ import annotations

from math import prod

from bitcrown.spec.decimals import decimal_text
from bitcrown.spec.polynomial import Numbering, element_name, number_variables
from bitcrown.spec.query import (
    And,
    Compare,
    Const,
    Formula,
    ManyBounds,
    NetworkDecl,
    Product,
    Query,
    Sum,
    Term,
    Var,
)

_INTEGER_TYPES = ("int", "uint")


def print_query(query: Query) -> str:
    """Write a query in the VNN-LIB version it says.

    Raises:
        ValueError: something the language cannot write: a number that is no finite decimal (1/3),
            an empty ``and``, ``or``, sum, product or assertion, or a 1.0 query with more than one
            flat input and output.
    """
    if not query.assertion.args:
        raise ValueError("a property needs at least one assertion")
    numbering = number_variables(query)
    lines = _declarations1(query) if query.version[0] == 1 else _declarations2(query)
    for formula in query.assertion.args:
        lines.append(f"(assert {_formula(formula, query, numbering)})")
    return "\n".join(lines) + "\n"


def _declarations1(query: Query) -> list[str]:
    first = query.networks[0] if len(query.networks) == 1 else None
    if (
        first is None
        or len(first.inputs) != 1
        or len(first.outputs) != 1
        or first.hidden
        or first.name != "N"
    ):
        raise ValueError("VNN-LIB 1.0 has one network N with one input and one output")
    lines: list[str] = []
    for tensor, name in ((first.inputs[0], "X"), (first.outputs[0], "Y")):
        if (
            len(tensor.shape) != 1
            or tensor.shape[0] < 1
            or tensor.name != name
            or tensor.dtype != "real"
        ):
            raise ValueError(f"VNN-LIB 1.0 has real tensors X and Y of rank 1, not {tensor}")
        lines += [f"(declare-const {name}_{index} Real)" for index in range(tensor.shape[0])]
    return lines


def _declarations2(query: Query) -> list[str]:
    lines = [f"(vnnlib-version <{query.version[0]}.{query.version[1]}>)"]
    for network in query.networks:
        lines.append(f"(declare-network {network.name}")
        lines += _network_body(network)
        lines[-1] += ")"
    return lines


def _network_body(network: NetworkDecl) -> list[str]:
    if not network.inputs or not network.outputs or (network.equal_to and network.isomorphic_to):
        raise ValueError(f"network {network.name} lacks inputs or outputs, or has two equivalences")
    lines = [f"    (equal-to {network.equal_to})"] if network.equal_to else []
    lines += [f"    (isomorphic-to {network.isomorphic_to})"] if network.isomorphic_to else []
    for word, tensors in (
        ("input", network.inputs),
        ("hidden", network.hidden),
        ("output", network.outputs),
    ):
        for tensor in tensors:
            name = f' "{tensor.onnx_name}"' if word == "hidden" else ""
            name += " initialized" * tensor.is_initialized
            if (
                '"' in tensor.onnx_name
                or "\n" in tensor.onnx_name
                or bool(tensor.onnx_name) > (word == "hidden")
            ):
                raise ValueError(
                    f"the ONNX name {tensor.onnx_name!r} of {tensor.name} cannot be written"
                )
            lines.append(
                f"    (declare-{word} {tensor.name} {tensor.dtype} "
                f"{_bracketed(tensor.shape)}{name})"
            )
    return lines


def _bracketed(numbers: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, numbers)) + "]"


def _formula(formula: Formula, query: Query, numbering: Numbering) -> str:
    pieces: list[str] = []
    # What is still to be written, last first; text stands for itself.
    todo: list[Formula | str] = [formula]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            pieces.append(item)
        elif isinstance(item, Compare):
            pieces.append(_compare(item, query, numbering))
        elif isinstance(item, ManyBounds):
            todo.append(And(tuple(item.atoms())))
        else:
            if not item.args:
                raise ValueError("an empty and/or cannot be written")
            pieces.append(" (and" if isinstance(item, And) else " (or")
            todo.append(")")
            todo.extend(reversed(item.args))
    return "".join(pieces).removeprefix(" ")


def _compare(atom: Compare, query: Query, numbering: Numbering) -> str:
    if atom.op not in ("<=", "<", "==", "!="):
        raise ValueError(f"unknown comparison {atom.op!r}")
    op = "=" if atom.op == "==" and query.version[0] == 1 else atom.op
    whole = _is_integer(atom, numbering)
    left, right = (_term(side, query, numbering, whole) for side in (atom.left, atom.right))
    if isinstance(atom.left, Const) and op in ("<=", "<"):  # a lower bound, as files write it
        return f" ({op.replace('<', '>')}{right}{left})"
    return f" ({op}{left}{right})"


def _is_integer(atom: Compare, numbering: Numbering) -> bool:
    """Whether the first variable of a comparison is an integer: VNN-LIB 2.0 types its literals."""
    todo: list[Term] = [atom.right, atom.left]
    while todo:
        term = todo.pop()
        if isinstance(term, Var):
            tensor = numbering.tensors.get(term.tensor)
            return tensor is not None and tensor.dtype.startswith(_INTEGER_TYPES)
        if isinstance(term, Sum | Product):
            todo.extend(reversed(term.args))
    return False


def _term(term: Term, query: Query, numbering: Numbering, whole: bool) -> str:
    pieces: list[str] = []
    todo: list[Term | str] = [term]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            pieces.append(item)
        elif isinstance(item, Const):
            text = decimal_text(item.value)
            pieces.append(" " + (text if "." in text or whole else text + ".0"))
        elif isinstance(item, Var):
            pieces.append(" " + _variable(item, query, numbering))
        else:
            if not item.args:
                raise ValueError("an empty sum or product cannot be written")
            pieces.append(" (+" if isinstance(item, Sum) else " (*")
            todo.append(")")
            todo.extend(reversed(item.args))
    return "".join(pieces)


def _variable(var: Var, query: Query, numbering: Numbering) -> str:
    tensor = numbering.tensors.get(var.tensor)
    if tensor is None:
        raise ValueError(f"{var.tensor} is not declared")
    if not 0 <= var.index < prod(tensor.shape):
        raise ValueError(
            f"index {var.index} is out of range for {tensor.name} of shape {list(tensor.shape)}"
        )
    if query.version[0] == 1:
        return f"{tensor.name}_{var.index}"
    return element_name(tensor, var.index)
