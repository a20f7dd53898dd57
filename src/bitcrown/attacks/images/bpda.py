"""Backward pass differentiable approximation (BPDA): the values of one network, the slopes of
another.

Athalye, Carlini & Wagner (2018): a block ``g`` whose derivative is zero, infinite or undefined
(rounding, quantization) hides no attack, it only hides the direction. The attack runs ``f(x)`` as
it is and differentiates a smooth stand-in ``h`` with ``h(x) ~ f(x)``. Here that is a property of
the network, not of the attack: what ``bpda`` returns has bit for bit the values of the plain
network, so every attack can use it and every success is one on the real network.

Which stand-in, ``rule``:

* ``identity``: the block as it is forward, derivative one backward, so the rest is differentiated
  at its real inputs;
* ``removed``: a second pass through the network without its blocks (sharing the weights), as the
  Robust-Model-Zoo does;
* ``straight-through``: only the staircase inside has derivative one; scales and clipping around it
  keep their own;
* ``smooth``: the staircase's derivative is that of a smooth ramp between its steps.

The last two reach inside: a block says how (``Block.surrogate``), and rounding functions of torch
called anywhere in the network (also by networks read from ONNX) follow ``rounding_slopes``.

Legend: ``B`` images, ``K`` classes, ``...`` any further axes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bitcrown.attacks.images.victim import Classifier
from bitcrown.attacks.rounding_slopes import RoundingSlopes
from bitcrown.errors import SettingsError

RULES = ("identity", "removed", "straight-through", "smooth")
_INSIDE = ("straight-through", "smooth")


@runtime_checkable
class Block(Protocol):
    """A module that attacks should not differentiate as it is written."""

    def surrogate(self, x: Tensor, rule: str) -> Tensor:
        """What to differentiate in its place, near its own value; ``rule`` reaches inside."""


class _ValueAndStandIn(torch.autograd.Function):
    """``(value, stand_in) -> value``, with the derivative of ``stand_in``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, stand_in: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


@dataclass(frozen=True)
class SubstituteGradient:
    """A classifier, or part of one, with the values of ``model`` and the slopes of ``substitute``.

    The values are ``model``'s bit for bit. Raises ``SettingsError`` where the two differ in shape.
    """

    model: Classifier
    substitute: Classifier

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.model(x)
        if not torch.is_grad_enabled():
            return value
        stand_in = self.substitute(x)
        if stand_in.shape != value.shape:
            raise SettingsError(
                "a substitute must have the shape of what it stands for, but "
                f"{tuple(stand_in.shape)} is not {tuple(value.shape)}; choose another substitute"
            )
        return _as_tensor(_ValueAndStandIn.apply(value, stand_in))  # type: ignore[no-untyped-call]


def block_names(
    model: nn.Module, is_block: Callable[[nn.Module], bool] | None = None
) -> tuple[str, ...]:
    """Names of the outermost modules that ``is_block`` (by default: that are a ``Block``)."""
    chosen = is_block or (lambda module: isinstance(module, Block))
    found: list[str] = []
    for name, module in model.named_modules():
        is_inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if not is_inside and chosen(module):
            found.append(name)
    return tuple(found)


def bpda(
    model: Classifier, rule: str, is_block: Callable[[nn.Module], bool] | None = None
) -> Classifier:
    """``model`` with its values, bit for bit, and the gradient that ``rule`` (of ``RULES``) says.

    Weights are shared, not copied; switch ``model`` to evaluation mode first. Raises
    ``SettingsError`` where there is nothing the rule could apply to.
    """
    if rule not in RULES:
        raise SettingsError(f"there is no BPDA rule {rule!r}; choose one of {', '.join(RULES)}")
    names = block_names(model, is_block) if isinstance(model, nn.Module) else ()
    if not names and rule not in _INSIDE:
        raise SettingsError(
            f"BPDA rule {rule!r} needs blocks to replace, but the network has none: name them "
            f"with is_block, or use {' or '.join(_INSIDE)} for rounding anywhere in the network"
        )
    substitute: Classifier = model
    if names:
        assert isinstance(model, nn.Module)
        substitute = _replaced(model, names, rule)
    if rule in _INSIDE:
        substitute = _with_rounding_slopes(substitute, rule)
    return SubstituteGradient(model, substitute)


class _Part(nn.Module):
    """A block's values with the slopes of its stand-in, in the place of the block."""

    def __init__(self, block: nn.Module, rule: str) -> None:
        super().__init__()
        self.block = block
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        if self.rule == "identity":
            return SubstituteGradient(self.block, _unchanged)(x)
        assert isinstance(self.block, Block)
        block = self.block
        return SubstituteGradient(self.block, lambda inner: block.surrogate(inner, self.rule))(x)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _replaced(model: nn.Module, names: tuple[str, ...], rule: str) -> nn.Module:
    """A copy that shares all parameters and buffers, with stand-ins for the blocks ``names``."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    for name in names:
        block = twin.get_submodule(name)
        if rule in _INSIDE and not isinstance(block, Block):
            raise SettingsError(
                f"BPDA rule {rule!r} reaches inside a block, but {name or 'the network'} "
                f"({type(block).__name__}) has no surrogate(x, rule); add it, or use identity or "
                "removed"
            )
        stand_in = nn.Identity() if rule == "removed" else _Part(block, rule)
        if not name:
            return stand_in
        outer, _, last = name.rpartition(".")
        setattr(twin.get_submodule(outer), last, stand_in)
    return twin


def _with_rounding_slopes(network: Classifier, rule: str) -> Classifier:
    def sloped(x: Tensor) -> Tensor:
        with RoundingSlopes(rule):
            return network(x)

    return sloped


def _as_tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value
