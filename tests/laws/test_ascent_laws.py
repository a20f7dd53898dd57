"""Laws of the ascent of a batch: who has left it changes nothing for those who stay, and lengths of
steps are learned from what they gain."""

from __future__ import annotations

import pytest
import torch

from bitcrown.bounds import ascent as module
from bitcrown.bounds.ascent import Ascent, ascend
from bitcrown.bounds.multipliers import Multipliers
from bitcrown.bounds.stride import Stride
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.domains import Domains
from tests.laws.test_violation_laws import GRAPHS
from tests.laws.test_warm_start_laws import at_random, bounder_in_float64


def climbed(
    bounder: DomainBounder, domains: Domains, target: float
) -> tuple[Multipliers, torch.Tensor]:
    return ascend(
        bounder.guide.climber,
        bounder.rows(domains),
        bounder.guide_bounds(domains),
        bounder.multipliers(domains),
        Ascent(6, 0.1, 0.1),
        target,
    )


@pytest.mark.parametrize("kind", GRAPHS)
def test_domains_that_leave_a_batch_change_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = done = 0
    for seed in range(3):
        bounder = bounder_in_float64(GRAPHS[kind](seed), seed)
        domains = at_random(bounder, seed)
        domains = Domains.stacked([domains, at_random(bounder, seed + 10)])
        # a target that some reach at once, some later and some never
        first = climbed(bounder, domains, -torch.inf)[1]
        last = climbed(bounder, domains, torch.inf)[1]
        both = torch.cat([first, last]).amax(dim=1)
        target = float(torch.quantile(both, 0.5, interpolation="midpoint"))
        found = {}
        for share in (1e-9, 2.0):
            monkeypatch.setattr(module, "_DONE", share)
            found[share] = climbed(bounder, domains, target)
        (early, value), (late, other) = found.values()
        is_open = other.amax(dim=1) <= target
        assert torch.equal(is_open, value.amax(dim=1) <= target)
        opened += int(is_open.sum())
        done += int((~is_open).sum())
        assert early.beta is not None and late.beta is not None
        for mine, theirs in ((early.alpha, late.alpha), (early.beta, late.beta), (value, other)):
            assert torch.allclose(mine[is_open], theirs[is_open], rtol=1e-9, atol=1e-9)
    assert opened and done


@pytest.mark.parametrize("best", [1.0, 0.2, 0.01])
def test_a_stride_finds_the_length_that_gains_most(best: float) -> None:
    """Gains of a length ``f`` are largest at ``best`` and nothing beyond four times that."""
    stride = Stride()
    for _ in range(40):
        factors = stride.factors(torch.zeros(16, 3))
        gain = torch.minimum(factors / best, (4.0 - factors / best) / 3.0).clamp(min=0.0)
        stride.learn(factors, torch.full((16,), -1.0), gain - 1.0)
    assert best / 4 <= stride.factor <= 2 * best


def test_a_stride_is_not_moved_by_what_is_not_a_number() -> None:
    stride = Stride()
    factors = stride.factors(torch.zeros(8, 1))
    for value in (torch.nan, -torch.inf, torch.inf):
        stride.learn(factors, torch.full((8,), value), torch.zeros(8))
    assert stride.factor == 1.0
    stride.learn(factors, torch.full((8,), -1.0), torch.full((8,), torch.nan))
    assert 0.0 < stride.factor <= 1.0
