"""One row per operator: how it computes, and for affine operators what bound propagation needs of
it.

Legend: ``R`` any leading batch extent; run-time tensors are ``[R, *shape]``.

An *affine* operator is ``f(x_1 .. x_k) = sum_i W_i x_i + b``. Its row has
  ``forward``   f itself;
  ``absolute``  ``sum_i |W_i| x_i`` without ``b`` (for the radius of an interval and for rounding
                error bounds);
  ``adjoint``   ``a -> (W_1^T a, .., W_k^T a)``; left out, it is derived automatically as a
                vector-Jacobian product.
A *nonlinear* operator has only ``forward`` here; its interval and relaxation rules live in
``bounds.relaxations``. It is *local* if an element of its value depends on the same element of its
operands alone, and *has jumps* if it is constant between jumps, so that its derivative says
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitcrown.model.graph import Node

if TYPE_CHECKING:
    from torch import Tensor

    _Forward = Callable[[Node, "Params", Sequence[Tensor]], Tensor]
    _Adjoint = Callable[[Node, "Params", Tensor, "Shapes"], Sequence[Tensor]]

Params = dict[str, "Tensor"]
"""Weights of a node."""
Shapes = Sequence[tuple[int, ...]]
"""Of what a node reads, without the batch extent."""

DIFFERENCE = "Difference"
"""What the name of an operator ends with that subtracts two values of another: ``f(z) - f(w)`` of
``(z, w, z - w, f(z), f(w))``."""
DIFFERENT = (
    *("Relu", "Sigmoid", "Tanh", "Atan", "Erf", "Exp", "Softplus", "Square", "Elu", "Clip"),
    *("Sin", "Cos"),
)
"""Operators that have such a one: their derivatives are bounded on every interval."""
SLOPE = "Slope"
"""What the name of an operator ends with that is the derivative of another along a direction:
``f'(z) u`` of ``(z, u)``. The same operators have one."""


@dataclass(frozen=True)
class Op:
    """``adjoint(node, params, a [R, *node.shape], input_shapes)`` gives one ``[R, *input_shape]``
    per input."""

    name: str
    forward: _Forward
    is_affine: bool
    absolute: _Forward | None = None
    adjoint: _Adjoint | None = None
    is_local: bool = True
    has_jumps: bool = False
    negated: tuple[int, ...] = ()
    """Operands that an affine operator without weights subtracts; it adds the others."""
    is_capped: bool = False
    """Whether an affine operator has a range and an upper line beyond what its operands say."""


_OPS: dict[str, Op] = {}


def register(op: Op) -> Op:
    if op.name in _OPS:
        raise ValueError(f"operator {op.name} is registered twice")
    if op.is_affine and op.absolute is None:
        raise ValueError(f"affine operator {op.name} needs an absolute rule")
    _OPS[op.name] = op
    return op


def op_row(name: str) -> Op:
    """The row of an operator; all rows are loaded on first use (this imports torch)."""
    if name not in _OPS:
        import bitcrown.model.ops  # noqa: F401  (its modules register their rows)
    return _OPS[name]
