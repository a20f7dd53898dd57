"""What an attack makes small: how far a point is from violating a case.

Legend: ``B`` cases, ``K`` points of each, ``S`` rows of a case, ``n`` inputs, ``m`` outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Target:
    """``C [B, S, m]``, ``D [B, S, n]`` or None, ``rhs [B, S]``: violated iff ``C y + D x <= rhs``.

    Rows with an infinite ``rhs`` are padding and always hold.
    """

    def __init__(self, c: Tensor, d: Tensor | None, rhs: Tensor) -> None:
        self.c, self.d, self.rhs = c, d, rhs

    def __getitem__(self, cases: slice) -> Target:
        """The same rows for some of the cases."""
        return Target(self.c[cases], None if self.d is None else self.d[cases], self.rhs[cases])

    def rows(self, x: Tensor, y: Tensor) -> Tensor:
        """``C y + D x - rhs [B, K, S]`` for ``x [B, K, n]``, ``y [B, K, m]``; NaN: not violated."""
        padding = torch.isinf(self.rhs).unsqueeze(1)
        value = torch.einsum("bsm,bkm->bks", self.c, y)
        if self.d is not None:
            value = value + torch.einsum("bsn,bkn->bks", self.d, x)
        value = value - torch.where(padding, 0.0, self.rhs.unsqueeze(1))
        value = torch.where(torch.isnan(value), torch.inf, value)
        return torch.where(padding, -torch.inf, value)

    def excess(self, x: Tensor, y: Tensor) -> Tensor:
        """``[B, K]``: largest entry of ``rows``; not positive where the case is violated."""
        return self.rows(x, y).amax(dim=2)

    def loss(self, rows: Tensor, y: Tensor, direction: Tensor | None = None) -> Tensor:
        """Scalar to descend; every other pair of points descends all its rows that fail.

        ``direction [B, K, m]``: odd points follow it instead of their rows.
        """
        finite = torch.where(torch.isfinite(rows), rows, torch.zeros_like(rows))
        worst = torch.where(torch.isfinite(rows), rows, torch.full_like(rows, -1e30)).amax(dim=2)
        worst = torch.where(worst > -1e30, worst, torch.zeros_like(worst))
        hinge = finite.clamp(min=0.0).sum(dim=2) + torch.where(
            (rows <= 0).all(dim=2), worst, torch.zeros_like(worst)
        )
        number = torch.arange(rows.shape[1], device=rows.device)
        per_point = torch.where((number // 2) % 2 == 1, hinge, worst)
        if direction is not None:
            per_point = torch.where(number % 2 == 1, (direction * y).sum(dim=2), per_point)
        return per_point.sum()
