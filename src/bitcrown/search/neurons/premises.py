"""What may be taken for granted while one case is refuted, so that refuting all cases refutes all
violations.

To refute a case means: no input of the box violates it. But of an input that violates several cases
one may be chosen, and it is enough that this one is refuted there. Let every case have one row
``r_p(x) <= 0``, and let ``k`` be a case for which ``r_k(x)`` is least among all. If ``x`` violates
any case, it violates ``k``. So while ``k`` is refuted, its *premises* are

    r_k <= 0,     r_k - r_j <= 0 for every j,     -r_j <= 0 for each j that no input violates.

("The target is the largest output", and it is larger than the label's.) The last kind must be known
of *all* inputs: a case that was only refuted under premises of the second kind may be violated
where another one is least. A case with several rows has these rows as premises and takes no part in
the choice.

Exactness: a difference of rows is used only if every coefficient is exact; right sides round up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.claims import least_margin
from bitcrown.bounds.rows import Rows


def premises_of(rows: Rows, case: int, excluded: set[int]) -> Rows:
    """Premises ``C [1, S, m]`` of ``case`` among all cases of one problem, whose ``rows`` are
    ``C [P, S, m]`` over one box; no input of it violates those of ``excluded``."""
    is_row = torch.isfinite(rows.rhs)
    is_single = is_row.sum(dim=1) == 1
    own = rows.of_cases(torch.tensor([case], device=rows.C.device))
    if not bool(is_single[case]):
        return own
    # The one row of each case with a single row; r_j - r_k in place of r_k - r_j is never wrong by
    # mistake: what is not exact gets an infinite right side and says nothing.
    place = is_row.to(torch.int8).argmax(dim=1)
    each = torch.arange(len(place), device=place.device)
    others = is_single & (each != case)
    c, d = rows.C[each, place], None if rows.D is None else rows.D[each, place]
    rhs = rows.rhs[each, place]
    is_excluded = torch.tensor([int(p) in excluded for p in each], device=place.device)
    less, is_exact = _difference(c[case], c)
    parts = [torch.where(is_excluded[:, None], -c, less)]
    if d is not None:
        d_less, d_exact = _difference(d[case], d)
        is_exact = is_exact & d_exact
        parts.append(torch.where(is_excluded[:, None], -d, d_less))
    limit = torch.where(is_excluded, -rhs, -least_margin(rhs, rhs[case]))  # up(rhs_k - rhs_j)
    limit = torch.where(is_excluded | is_exact, limit, torch.inf)
    kept = others.nonzero().flatten()
    return Rows(
        torch.cat([own.C, parts[0][kept].unsqueeze(0)], dim=1),
        None if own.D is None else torch.cat([own.D, parts[1][kept].unsqueeze(0)], dim=1),
        torch.cat([own.rhs, limit[kept].unsqueeze(0)], dim=1),
        own.x_lower,
        own.x_upper,
    )


def _difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``a - b`` for ``a [m]``, ``b [P, m]``, and whether it is exact in every entry, ``[P]``
    (Knuth's two-sum: the rounding error of a sum is a number that can be computed)."""
    total = a - b
    part = total - a
    error = (a - (total - part)) - (b + part)
    return total, (error == 0).all(dim=1)
