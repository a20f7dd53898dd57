"""Open subproblems of the neuron split, as rows of tensors, and the stack they wait on.

Legend: ``B`` domains, ``S`` rows per domain, ``N`` neurons (operands of ReLU), ``K`` cuts, ``C``
branching candidates, ``n`` inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor


class OpenDomains(Protocol):
    """What a search asks of its domains, whatever they split; ``case``, ``value`` and ``mass`` are
    those of ``Domains``."""

    @property
    def case(self) -> Tensor: ...
    @property
    def value(self) -> Tensor: ...
    @property
    def mass(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def bytes(self) -> int: ...
    def select(self, index: Tensor) -> Self: ...
    def children(self, choice: Tensor) -> Self:
        """``[2 B]``: both halves of each domain, by the rule's ``choice [B]``."""
        ...

    @classmethod
    def stacked(cls, parts: list[Self]) -> Self: ...


D = TypeVar("D", bound=OpenDomains)


@dataclass(frozen=True)
class Domains:
    """Everything that a domain knows beyond the root.

    * ``case [B]``: which case; ``split [B, N]`` int8 in {-1, 0, 1}: the signs imposed;
    * ``alpha [B, 1, N_alpha]``, ``beta [B, N]``, ``mix [B, S]``, ``mu [B, K]``: multipliers found
      so far (see ``bounds.multipliers``);
    * ``value [B]``: the best lower bound so far, over rows;
    * ``candidates [B, C]``: neurons worth splitting, -1 where there are no more, and ``warm
      [B, 2 C]``: where the multipliers of their signs start, negative ones first (see
      ``branching.starting_betas``);
    * ``mass [B]``: its share of the case's tree, one half of its parent's (float64);
    * ``x_lower``/``x_upper [B, n]``: the domain's own box, and ``low``/``up [B, N]`` its own neuron
      bounds (float64); ``[B, 0]`` where domains keep the root's.
    """

    case: Tensor
    alpha: Tensor
    beta: Tensor
    split: Tensor
    value: Tensor
    candidates: Tensor
    warm: Tensor
    x_lower: Tensor
    x_upper: Tensor
    low: Tensor
    up: Tensor
    mix: Tensor
    mu: Tensor
    mass: Tensor

    def __len__(self) -> int:
        return int(self.case.shape[0])

    def select(self, index: Tensor) -> Domains:
        return Domains(*(getattr(self, f.name)[index] for f in fields(self)))

    def bytes(self) -> int:
        tensors = [getattr(self, f.name) for f in fields(self)]
        return sum(t.numel() * t.element_size() for t in tensors)

    def restrict(self, neurons: Tensor) -> Domains:
        """The same domains over the neurons ``[U]`` alone (no other one may be split; one alpha per
        neuron)."""
        position = torch.full((self.beta.shape[1] + 1,), -1, device=neurons.device)
        position[neurons] = torch.arange(len(neurons), device=neurons.device)
        return replace(
            self,
            alpha=self.alpha[:, :, neurons],
            beta=self.beta[:, neurons],
            split=self.split[:, neurons],
            candidates=position[self.candidates],  # the entry at -1 stays -1
        )

    @classmethod
    def stacked(cls, parts: list[Domains]) -> Domains:
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def decided(self, neuron: Tensor, sign: int) -> Domains:
        """Each domain with its ``neuron [B]`` of one ``sign`` (-1 or 1), whose multiplier starts
        where a candidate's does, and at zero elsewhere; all else stays."""
        column = neuron.unsqueeze(1)
        starts = self.warm.chunk(2, dim=1)[sign == 1] * (self.candidates == column)
        beta = self.beta.scatter(1, column, starts.amax(dim=1, keepdim=True).to(self.beta.dtype))
        return replace(self, split=self.split.scatter(1, column, sign), beta=beta)

    def children(self, choice: Tensor) -> Domains:
        """``[2 B]``: each domain with the neuron ``choice [B]`` negative, then each with it
        positive."""
        both = self.stacked([self.decided(choice, -1), self.decided(choice, 1)])
        return replace(both, mass=both.mass / 2)


class DomainStack(Generic[D]):
    """Last in, first out, by chunks: keeps the store small, since deep domains are proved
    soonest."""

    def __init__(self) -> None:
        self.chunks: list[D] = []

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)

    def bytes(self) -> int:
        return sum(chunk.bytes() for chunk in self.chunks)

    def push(self, domains: D) -> None:
        if len(domains):
            self.chunks.append(domains)

    def pop(self, count: int) -> D:
        """Up to ``count`` domains from the top."""
        parts: list[D] = []
        missing = count
        while self.chunks and missing:
            chunk = self.chunks.pop()
            if len(chunk) > missing:
                index = torch.arange(len(chunk), device=chunk.case.device)
                self.chunks.append(chunk.select(index[missing:]))
                chunk = chunk.select(index[:missing])
            parts.append(chunk)
            missing -= len(chunk)
        return type(parts[0]).stacked(parts)
