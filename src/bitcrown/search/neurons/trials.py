"""Points at which bounds are attained: one where the network violates, too, ends the search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from bitcrown.bounds.rows import Rows
from bitcrown.model.execute import Network

_REPLAYS = 4
"""Points of one batch that are replayed: a replay costs more than a bound."""


class Trials:
    """``confirm(x [n]) -> witness or None`` replays a candidate on the original network; ``found``
    holds what was confirmed, at most one for each batch."""

    def __init__(self, confirm: Callable[[np.ndarray], object | None]) -> None:
        self.confirm = confirm
        self.found: list[object] = []

    @property
    def witness(self) -> object | None:
        return self.found[0] if self.found else None

    def replay(self, x: np.ndarray) -> bool:
        """Whether ``x [n]`` violates; nothing is replayed once there is a witness."""
        if not self.found:
            witness = self.confirm(x)
            if witness is not None:
                self.found.append(witness)
        return bool(self.found)

    def run(self, network: Network, rows: Rows, points: Tensor) -> None:
        """Evaluate ``points [k B, n]``, ``k`` for each of the ``B`` domains of ``rows``, and replay
        those that violate all rows of their domain in ``network``."""
        if self.found:
            return
        copies = len(points) // len(rows.C)
        outputs = network(points)
        reached = (rows.C.repeat(copies, 1, 1) @ outputs.unsqueeze(2)).squeeze(2)
        if rows.D is not None:
            reached = reached + (rows.D.repeat(copies, 1, 1) @ points.unsqueeze(2)).squeeze(2)
        violating = (reached <= rows.rhs.repeat(copies, 1)).all(dim=1).nonzero().flatten()
        for k in violating[:_REPLAYS].tolist():
            if self.replay(points[k].double().cpu().numpy()):
                return
