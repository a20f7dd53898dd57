"""What the neuron split closed, as hints for a certificate: signs, slopes and multipliers of each
closed domain.

A recorder is given to a search that is to leave a certificate. It keeps numbers and judges nothing:
the writer (``certificates.neurons``) proves every leaf again, with the checker's own bounds, and
splits further where the hints do not prove it. The closed domains of a finished search cover all
signs, so they determine a tree: some neuron is decided in all of them, and divides them into two
sets of the same kind.

Legend: ``H`` closed domains, ``U`` neurons that a record knows, ``S`` rows of a case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from bitcrown.bounds.layout import Layout
    from bitcrown.search.neurons.domains import Domains

_MAX_BYTES = 1 << 30


class Batch(NamedTuple):
    """Domains closed together: ``case [H]``, ``split``/``alpha``/``beta [H, U]``,
    ``mix [H, S]``."""

    neurons: np.ndarray[Any, Any]
    case: np.ndarray[Any, Any]
    split: np.ndarray[Any, Any]
    alpha: np.ndarray[Any, Any]
    beta: np.ndarray[Any, Any]
    mix: np.ndarray[Any, Any]


class Recorder:
    """Collects ``Batch``es up to ``_MAX_BYTES``; ``names`` says which ReLU of the file a neuron
    belongs to."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.names: list[tuple[str, int]] = []
        self.bytes = 0

    def take(self, other: Recorder, cases: set[int]) -> None:
        """Also keep what ``other`` has about ``cases``."""
        self.names = self.names or other.names
        for batch in other.batches:
            rows = np.isin(batch.case, list(cases))
            kept = Batch(batch.neurons, *(part[rows] for part in batch[1:]))
            self.batches.append(kept)
            self.bytes += sum(part.nbytes for part in kept)

    def add(self, layout: Layout, neurons: Tensor | None, domains: Domains) -> None:
        """``layout`` is that of the whole network; ``neurons [U]`` those the domains know (None:
        all)."""
        if not len(domains) or layout.n_alphas != layout.n_neurons or self.bytes > _MAX_BYTES:
            return
        if not self.names:
            self.names = [(node.name, place) for node in layout.nodes for place in range(node.size)]
        known = np.arange(layout.n_neurons) if neurons is None else neurons.cpu().numpy()
        parts = (domains.case, domains.split, domains.alpha[:, 0], domains.beta, domains.mix)
        self.batches.append(Batch(known, *(part.detach().cpu().numpy() for part in parts)))
        self.bytes += sum(part.nbytes for part in self.batches[-1])


class Hints:
    """Recorded domains of one case over the neurons ``columns``: (ReLU, neuron) pairs of the
    checker's network."""

    def __init__(
        self, recorder: Recorder, case: int, columns: list[tuple[int, int]], numbers: dict[str, int]
    ) -> None:
        self.columns = columns
        place = {pair: k for k, pair in enumerate(columns)}
        target = np.array(
            [place.get((numbers.get(name, -1), index), -1) for name, index in recorder.names]
        )
        parts: list[list[np.ndarray[Any, Any]]] = [[], [], [], []]
        for batch in recorder.batches:
            rows = np.nonzero(batch.case == case)[0]
            to = target[batch.neurons]
            for store, source in zip(parts, (batch.split, batch.alpha, batch.beta), strict=False):
                found = np.zeros((len(rows), len(columns)), dtype=source.dtype)
                found[:, to[to != -1]] = source[rows][:, to != -1]
                store.append(found)
            parts[3].append(batch.mix[rows])
        empty = np.zeros((0, len(columns)))
        self.split, self.alpha, self.beta = (
            np.concatenate(part) if part else empty for part in parts[:3]
        )
        self.mix = np.concatenate(parts[3]) if parts[3] else np.zeros((0, 1))

    def __len__(self) -> int:
        return len(self.split)

    def next_column(self, rows: np.ndarray[Any, Any], used: set[int]) -> int:
        """The column that most of ``rows`` decide, of those not ``used`` yet; -1 if there is
        none."""
        counts = (self.split[rows] != 0).sum(axis=0)
        counts[list(used)] = 0
        best = int(counts.argmax()) if len(counts) else 0
        return best if len(counts) and counts[best] else -1
