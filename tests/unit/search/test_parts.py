"""Which rule cuts what: parts of the input split's tree, with boxes that are closed by hand."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from bitcrown.search.inputs.boxes import Boxes, halves_of
from bitcrown.search.inputs.parts import ALLOWANCE, RUNGS, Subtrees
from bitcrown.search.inputs.rules import SplitRule

SLICES = 400
NARROW = 1 / 8


def score(weight: Tensor, share: Tensor) -> Tensor:
    return share


BLIND, SEEING = SplitRule("blind", score), SplitRule("seeing", score)


def slices() -> Boxes:
    """The unit square in ``SLICES`` boxes side by side."""
    ends = torch.linspace(0, 1, SLICES + 1, dtype=torch.float64)
    lower = torch.stack([ends[:-1], torch.zeros(SLICES, dtype=torch.float64)], dim=1)
    upper = torch.stack([ends[1:], torch.ones(SLICES, dtype=torch.float64)], dim=1)
    ones, nothing = torch.ones(SLICES, dtype=torch.float64), lower[:, :0]
    place = torch.zeros(SLICES, dtype=torch.int64)
    is_open = torch.ones(SLICES, 1, dtype=torch.bool)
    return Boxes(lower, upper, place, is_open, ones, -ones, place, nothing, nothing)


def grown(rules: list[SplitRule], most: int) -> tuple[float, Counter[str]]:
    """The area of the boxes that were closed, each once, and the boxes that each rule has cut. A
    box is closed where its second edge is short, and ``BLIND`` cuts the first one only."""
    parts, closed, cut = Subtrees(rules), 0.0, Counter[str]()
    parts.add_roots(slices())
    done: dict[int, float] = {}
    while len(parts.parts) and sum(cut.values()) < most:
        boxes = parts.take(4096)
        width = boxes.upper - boxes.lower
        is_closed = width[:, 1] <= NARROW
        for number, area in zip(boxes.region[is_closed], width[is_closed].prod(1), strict=True):
            done[int(number)] = done.get(int(number), 0.0) + float(area)
        left = boxes.select((~is_closed).nonzero().flatten())
        rules_of = {number: attempt.rule for number, (_, attempt) in parts.attempts.items()}
        used = [rules_of[int(number)] for number in left.region]
        cut.update(rule.name for rule in used)
        axis = torch.tensor([rule is SEEING for rule in used], dtype=torch.int64)
        children = halves_of(left, axis)
        parts.give(children, torch.zeros(len(children), dtype=torch.float64), left.region[:0])
        for number in list(done):  # a tree that lost a race has closed nothing
            if number not in parts.attempts:
                closed += done.pop(number) if rules_of[number] is SEEING else 0.0
    return closed, cut


def test_what_waits_for_a_race_gets_the_rule_that_wins() -> None:
    """Sixteen parts of 25 boxes stand still under the rule that begins. Each is given up to the
    other one after one allowance and one race, and nothing of it is lost."""
    closed, cut = grown([BLIND, SEEING], 400_000)
    assert abs(closed - 1.0) < 1e-9
    parts = 16
    assert cut["blind"] <= parts * (ALLOWANCE + RUNGS[-1])
    assert cut["seeing"] > cut["blind"]


def test_one_rule_alone_has_nobody_to_wait_for() -> None:
    closed, cut = grown([SEEING], 400_000)
    assert abs(closed - 1.0) < 1e-9
    assert cut == {"seeing": SLICES * 7}


def test_who_is_left_in_a_race_alone_wins_it() -> None:
    """One rule's boxes become too small to cut: what the other one had reached was compared with
    what nobody had."""
    parts = Subtrees([BLIND, SEEING])
    parts.add_roots(slices().select(torch.arange(8)))
    for _ in range(2 * RUNGS[-1]):
        boxes = parts.take(8)
        rules_of = {number: attempt.rule for number, (_, attempt) in parts.attempts.items()}
        is_small = torch.tensor([rules_of[int(number)] is SEEING for number in boxes.region])
        left = boxes.select((~is_small).nonzero().flatten())
        children = halves_of(left, torch.zeros(len(left), dtype=torch.int64))
        costs = torch.zeros(len(children), dtype=torch.float64)
        parts.give(children, costs, boxes.region[is_small])
        if parts.wins:
            break
    assert parts.wins == {"blind": 1}
    assert abs(parts.left() - 1.0) < 1e-9
