"""One row per nonlinear operator: its range over an interval, and linear functions that enclose it
there.

Legend: ``B`` boxes, ``S`` specifications (rows being bounded), ``*`` the node's shape. Operators
here are elementwise (but for a scale common to all elements, of ``DynamicQuantize``), with operands
of equal shape (the reader inserts ``Expand`` nodes); or one element is a function of a whole line
of its operand along the last axis (``LogSumExp``), and slopes have the operand's shape: terms
``slope x`` are then added up along that axis (``gathered_terms``). ``MatMul`` alone reads rows of
two matrices (``terms_of``, ``passed_back``).

Every rule must be sound in the floating-point type it is computed in: a slope may be anything, and
the intercept is then chosen from the slope *as rounded* and moved outward by a bound on its own
rounding error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bitcrown.model.graph import Node

if TYPE_CHECKING:
    from torch import Tensor

    from bitcrown.bounds.quadratic import Coupling

Operands = Sequence["Tensor"]
"""One end of the interval of each operand."""
Pair = tuple["Tensor", "Tensor"]
Interval = Callable[[Node, Operands, Operands], Pair]
Relax = Callable[[Node, Operands, Operands, "Tensor | None"], "Relaxation"]
Within = Callable[[Node, Operands, Operands, "Tensor | None", Pair], "Relaxation"]
DefaultAlpha = Callable[[Node, Operands, Operands], "Tensor"]


class Relaxation(NamedTuple):
    """``sum_i lower_slopes[i] x_i + lower_intercept <= f(x) <= sum_i upper_slopes[i] x_i +
    upper_intercept``.

    All tensors are ``[B, *]``, or ``[B, S, *]`` where they depend on ``alpha`` given per
    specification. ``coupled`` is what the elements of a product know together, where that is known
    (``bounds.quadratic``).
    """

    lower_slopes: tuple[Tensor, ...]
    lower_intercept: Tensor
    upper_slopes: tuple[Tensor, ...]
    upper_intercept: Tensor
    coupled: Coupling | None = None


@dataclass(frozen=True)
class Nonlinear:
    """``interval(node, lowers, uppers) -> (lower, upper)`` and
    ``relax(node, lowers, uppers, alpha)``.

    ``lowers``/``uppers`` hold one ``[B, *]`` (or, with alpha, ``[B, 1, *]``) tensor per operand
    with lower <= upper, all finite. ``alphas`` is the number of free parameters per element:
    ``alpha`` is ``None`` (choose the best fixed relaxation) or ``[alphas, B, S, *]`` with entries
    in ``[0, 1]``, every value of which must give a sound relaxation. ``default_alpha(node, lowers,
    uppers) -> [alphas, B, *]`` is the start of the optimisation and reproduces what ``alpha=None``
    gives. The relaxation is differentiable in alpha wherever alpha matters. ``within(node, lowers,
    uppers, alpha, own)``, where there is one, is the relaxation of those points whose value lies in
    ``own``, two tensors like the operands'.
    """

    op: str
    interval: Interval
    relax: Relax
    alphas: int = 0
    default_alpha: DefaultAlpha | None = None
    is_piecewise_linear: bool = False
    within: Within | None = None


def gathered_terms(terms: Tensor, node: Node) -> Tensor:
    """``terms [.., *operand]`` of the slopes of ``node`` as ``[.., *]``: added up where one element
    reads a line."""
    is_line = bool(node.shape) and terms.shape[-1] != node.shape[-1] == 1
    return terms.sum(-1, keepdim=True) if is_line else terms


def terms_of(node: Node, place: int, slope: Tensor, value: Tensor) -> Tensor:
    """``slope value`` of operand ``place`` as ``[.., *]``, added up where an element reads several.

    The slopes that ``MatMul`` has for one operand are shaped as the other operand.
    """
    if node.op != "MatMul":
        return gathered_terms(slope * value, node)
    left, right = (value, slope) if place == 0 else (slope, value)
    return left @ right.mT


def passed_back(node: Node, place: int, a: Tensor, slope: Tensor) -> Tensor:
    """``a [.., *]`` of the node as coefficients of its operand ``place``: ``terms_of``,
    transposed."""
    if node.op != "MatMul":
        return a * slope
    return (a if place == 0 else a.mT) @ slope


_ROWS: dict[str, Nonlinear] = {}


def register_nonlinear(
    op: str,
    interval: Interval,
    relax: Relax,
    alphas: int = 0,
    default_alpha: DefaultAlpha | None = None,
    is_piecewise_linear: bool = False,
    within: Within | None = None,
) -> None:
    """Enter the row of ``op``; see ``Nonlinear``."""
    if op in _ROWS:
        raise ValueError(f"relaxation of {op} is registered twice")
    _ROWS[op] = Nonlinear(op, interval, relax, alphas, default_alpha, is_piecewise_linear, within)


def nonlinear_row(op: str) -> Nonlinear:
    """The row of a nonlinear operator; raises ``KeyError`` where none exists."""
    if op not in _ROWS:
        import bitcrown.bounds.relaxations.rows  # noqa: F401  (imports every module that registers rows)
    return _ROWS[op]
