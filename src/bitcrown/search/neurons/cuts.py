"""Families of cuts for the neuron split: a table of functions that make them at the root.

A cut is a linear inequality over neurons (``bounds.cuts``) that holds on the whole root box, hence
in every domain; each domain carries multipliers for all of them and ascends them together with its
slopes. A new family is a function in a file of its own and a row of ``CUT_FAMILIES``.

Legend: ``K`` cuts, ``N`` neurons.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bitcrown.bounds.cuts import Cuts
from bitcrown.bounds.intermediate import Enclosure
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.rows import Rows
from bitcrown.model.execute import Network

Family = Callable[[Network, Layout, Enclosure, Rows], Cuts | None]
"""Cuts ``[K, N]`` that hold at every point of the enclosed box; None where there are none."""

CUT_FAMILIES: tuple[Family, ...] = ()


def cuts_of(network: Network, layout: Layout, enclosure: Enclosure, rows: Rows) -> Cuts | None:
    """The cuts of all families, one under the other."""
    made = [family(network, layout, enclosure, rows) for family in CUT_FAMILIES]
    found = [cuts for cuts in made if cuts is not None]
    if not found:
        return None
    return Cuts(
        torch.cat([cuts.coefficient for cuts in found]), torch.cat([cuts.bound for cuts in found])
    )
