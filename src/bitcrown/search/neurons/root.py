"""What is known of all cases before anything is split: one frozen value that every domain reads.

A domain is a case plus a sign for some neurons; all cases share one box. Whatever holds on the
whole box holds in every domain, so it is computed once, here: bounds of the layers, magnitudes for
rounding errors, lines for clipping, cuts.

Legend: ``P`` cases, ``B`` domains, ``S`` rows of a case, ``N`` neurons, ``n`` inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitcrown.bounds import claims, rounding
from bitcrown.bounds.cuts import Cuts
from bitcrown.bounds.intermediate import Enclosure
from bitcrown.bounds.interval import Bounds, interval_bounds
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.multipliers import Multipliers, proved_minimum
from bitcrown.bounds.rows import Rows, flat_outputs, interval_rows
from bitcrown.model.execute import Network
from bitcrown.search.neurons.clip import Clipper, clipper_of
from bitcrown.search.neurons.cuts import cuts_of
from bitcrown.search.objective import Objective

_CLIP_ENTRIES = 1_000_000
CLIP_INPUTS = 200
"""Domains are clipped where the inputs, and (neurons x inputs), stay below these: elsewhere a box
hardly shrinks."""


@dataclass(frozen=True)
class Root:
    """``rows`` are those of all cases, ``C [P, S, m]``, over the one box ``[1, n]`` or over a box
    each, ``[P, n]``; ``row_value [P, S]`` their proved bounds there; ``slopes``, ``[1, N_alpha]``
    or ``[P, N_alpha]``, where every ascent begins. Domains have boxes and neuron bounds of their
    own where there is a ``clipper``. Bounds of the ``enclosure`` hold in every case, ``[1, *]``,
    or in one each, ``[P, *]`` (``case_bounds``)."""

    proof: Network
    layout: Layout
    rows: Rows
    enclosure: Enclosure
    slopes: Tensor
    row_value: Tensor
    clipper: Clipper | None
    cuts: Cuts | None

    @property
    def case_value(self) -> Tensor:
        """``[P]``: the best bound that a row of each case has."""
        return self.row_value.amax(dim=1)

    def open_cases(self) -> Tensor:
        """Indices of the cases that no row excludes on the whole box."""
        return (~claims.excluded(self.row_value).any(dim=1)).nonzero().flatten()

    def neuron_bounds(self, split: Tensor, low: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds ``[B, N]`` of the neurons in domains: the root's, the domain's own ``low``/``up``,
        and the signs of ``split``."""
        bounds = self.layout.split_bounds(self.enclosure.bounds, split)
        return claims.tightened(*self.layout.flat_bounds(bounds), low, up)


def root_of(proof: Network, guide: Network, rows: Rows, enclosure: Enclosure, memory: int) -> Root:
    """Everything else about the root, given the ``enclosure`` of its box, which may come from
    anywhere. ``memory`` (bytes) is that of the whole search."""
    layout = Layout(proof)
    slopes = layout.default_alpha(in_dtype(enclosure.bounds, guide.dtype))
    with torch.no_grad():
        clipper = None
        n_inputs = proof.graph.n_inputs
        is_one_box = len(rows.x_lower) == 1
        if is_one_box and n_inputs <= CLIP_INPUTS and layout.n_neurons * n_inputs <= _CLIP_ENTRIES:
            arrays = rows.C, rows.D, rows.rhs
            clipper = clipper_of(proof, layout, enclosure, arrays, memory // 4)
        cuts = cuts_of(proof, layout, enclosure, rows)
    # Cuts have no multipliers yet, so the root's own bound does without them.
    every = torch.arange(len(rows.C), device=proof.device)
    value = []
    for case in torch.split(every, domains_that_fit(1 << 30, rows, proof, memory)):
        start = Multipliers(layout, of_each(slopes, case)[:, None, :])
        bounds = layout.gathered(enclosure.bounds, case)
        value.append(proved_minimum(proof, rows.of_cases(case), bounds, enclosure.scales, start))
    found = torch.maximum(torch.cat(value), _interval_value(proof, rows, enclosure.bounds))
    return Root(proof, layout, rows, enclosure, slopes, found, clipper, cuts)


def of_each(shared: Tensor, case: Tensor) -> Tensor:
    """``shared [1, *]`` as it is, or ``[P, *]`` of all cases as that of ``case [B]``."""
    return shared if len(shared) == 1 else shared[case]


def _interval_value(proof: Network, rows: Rows, bounds: Bounds) -> Tensor:
    """``[P, S]``: what the intervals of the outputs say of the rows. Behind a quantizer they lie on
    its steps, lines do not."""
    every = replace(
        rows,
        x_lower=rows.x_lower.expand(len(rows.C), -1),
        x_upper=rows.x_upper.expand(len(rows.C), -1),
    )
    low, up = (end.expand(len(rows.C), -1) for end in flat_outputs(proof, bounds))
    with torch.no_grad():
        value = interval_rows(every, low, up, rounding.gamma(proof))
        return claims.least_margin(value, rows.rhs)


def interval_values_of(proof: Network, rows: Rows) -> Tensor:
    """``[P, S]``: what intervals alone say of the rows, in the memory of a few layers."""
    with torch.no_grad():
        box = rows.x_lower, rows.x_upper
        bounds = interval_bounds(proof, *box, wanted=proof.graph.outputs)
        return _interval_value(proof, rows, bounds)


def in_dtype(bounds: Bounds, dtype: torch.dtype) -> Bounds:
    """Bounds rounded to nearest: for a guide only."""
    return {name: (low.to(dtype), up.to(dtype)) for name, (low, up) in bounds.items()}


def rows_of_cases(proof: Network, objective: Objective) -> Rows:
    """Rows of all cases of ``objective``, which must share one box."""
    assert (objective.box == objective.box[0]).all(), "cases of a neuron split share their box"
    box = int(objective.box[0])
    return Rows(
        proof.tensor(objective.C),
        None if objective.D is None else proof.tensor(objective.D),
        proof.tensor(objective.rhs),
        proof.tensor(objective.lower[box : box + 1]),
        proof.tensor(objective.upper[box : box + 1]),
    )


def domains_that_fit(wanted: int, rows: Rows, network: Network, memory: int) -> int:
    """How many domains, at most ``wanted``, a backward pass may take: a third of the memory."""
    item = torch.finfo(network.dtype).bits // 8
    per_domain = (
        rows.C.shape[1] * sum(node.size for node in network.graph.nodes.values()) * item * 4
    )
    return max(1, min(wanted, memory // 3 // max(1, per_domain)))
