"""The network in which multipliers are sought: any network will do that resembles the proof's.

What the ascent finds is proved in the float64 network, so it may run in float32 (``guide_network``)
and, on a box where most neurons are stable, in what is left of the network there (``reduced``).
Which form is fastest depends on the machine and the network, so a few steps of each are timed.

Legend: ``N`` neurons of the network, ``U`` those that the guide knows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitcrown.bounds.cuts import Cuts
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.subnetworks.reduced import Reduced, reduced_network
from bitcrown.model.execute import Network
from bitcrown.search.neurons.root import Root, in_dtype

if TYPE_CHECKING:
    from bitcrown.search.neurons.bounder import DomainBounder
    from bitcrown.search.neurons.domains import Domains

SMALL_NETWORK = 2000
"""Networks with fewer tensor entries are bounded in float64 throughout: there float32 saves
nothing."""
_TRIAL = 32
"""Domains on which the forms of the network are compared."""


@dataclass(frozen=True)
class Guide:
    """``network`` with its ``layout``, root ``bounds`` and ``cuts``. The ascent runs in
    ``climber``, which has the same nodes and perhaps rougher weights. ``reduced`` says which
    neurons of the root these are (None: all)."""

    network: Network
    climber: Network
    layout: Layout
    bounds: Bounds
    cuts: Cuts | None = None
    reduced: Reduced | None = None

    def expanded(self, flat: Tensor) -> Tensor:
        """``[..., U]`` of the guide's neurons as ``[..., N]`` of the root's."""
        return flat if self.reduced is None else self.reduced.expand(flat)


def guide_network(proof: Network) -> Network:
    """``proof`` itself where it is small, else the same network in float32."""
    if sum(node.size for node in proof.graph.nodes.values()) <= SMALL_NETWORK:
        return proof
    return Network(proof.graph, torch.float32, proof.device)


def whole_guide(root: Root, network: Network) -> Guide:
    """The guide with all neurons; ``network`` is ``guide_network`` of the root's."""
    bounds = in_dtype(root.enclosure.bounds, network.dtype)
    return Guide(network, network, root.layout, bounds, root.cuts)


def _reduced_guide(root: Root, whole: Guide, reduced: Reduced, climber: Network) -> Guide:
    cuts = root.cuts
    if cuts is not None:
        ends = root.layout.flat_bounds(root.enclosure.bounds)
        cuts = cuts.restricted(reduced.neurons, *ends).to(whole.network.dtype)
    return Guide(reduced.network, climber, reduced.layout, reduced.bounds, cuts, reduced)


def narrowed_guide(guide: Guide, root: Root) -> Guide:
    """``guide`` with the bounds that its neurons have in ``root``."""
    low, up = root.layout.flat_bounds(root.enclosure.bounds)
    if guide.reduced is not None:
        low, up = low[:, guide.reduced.neurons], up[:, guide.reduced.neurons]
    dtype = guide.network.dtype
    bounds = guide.layout.with_flat_bounds(guide.bounds, low.to(dtype), up.to(dtype))
    return replace(guide, bounds=bounds)


def fastest(bounder: DomainBounder, domains: Domains) -> tuple[DomainBounder, Domains]:
    """The bounder with the guide that ascends fastest, and ``domains``, which have no splits yet,
    over the neurons of that guide."""
    root, whole = bounder.root, bounder.guide
    # Clipping needs the bounds of all neurons, and a small network gains nothing.
    if root.clipper is not None or whole.network is root.proof or not len(domains):
        return bounder, domains
    memory = bounder.budget.memory // 8
    with torch.no_grad():
        reduced = reduced_network(whole.network, root.layout, whole.bounds, memory)
    if reduced is None:
        return bounder, domains
    places = torch.arange(bounder.fitting(_TRIAL), device=domains.case.device)
    trial = domains.select(places % len(domains))
    smaller = trial.restrict(reduced.neurons)
    forms = [
        bounder.with_guide(_reduced_guide(root, whole, reduced, climber))
        for climber in (reduced.network, reduced.rough)
    ]
    seconds = bounder.seconds(trial)
    dense, rough = (form.seconds(smaller) for form in forms)
    if min(dense, rough) > seconds:
        return bounder, domains
    # Rough weights cost a little in every step, so they must save more than noise.
    chosen = forms[1] if rough < 0.9 * dense else forms[0]
    return chosen, domains.restrict(reduced.neurons)
