"""``Perturb``: a value ``v`` that the runtime computes with an error of at most a share of another,
``|z - v| <= share |q| + least``.

For results of sums that cancel: the error of ``mean(x^2) - mean(x)^2`` is no share of the result,
but one of ``q = mean(x^2)``. The node stands for every ``z`` in that range, so its interval is that
of ``v`` widened, and its lines are ``v`` itself moved by the largest error on the box.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.lines import padding
from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node


def _error(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
    largest = torch.maximum(lowers[1].abs(), uppers[1].abs())
    relative, absolute = padding(largest.dtype)
    found = largest * float(node.attrs["share"]) * (1 + relative) + float(node.attrs["least"])
    return torch.nan_to_num(found + absolute, nan=torch.inf)


def _interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
    error, (relative, _) = _error(node, lowers, uppers), padding(lowers[0].dtype)
    low, up = lowers[0] - error, uppers[0] + error
    return low - low.abs() * relative, up + up.abs() * relative


def _relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    error = _error(node, lowers, uppers)
    one, none = torch.ones_like(error), torch.zeros_like(error)
    return Relaxation((one, none), -error, (one, none), error)


register_nonlinear("Perturb", _interval, _relax)
