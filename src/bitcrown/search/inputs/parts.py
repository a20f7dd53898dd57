"""Which rule cuts which part of the tree: rules race on small trees from the same boxes.

A *part* is a set of boxes that must be excluded; an *attempt* at it is a tree below them, grown by
one rule. A part is done as soon as one attempt has nothing left.

* A part begins with one attempt, and a small tree needs no other.
* Where that stands still, all rules *race*: each grows a tree from the same boxes, ``RUNGS`` boxes
  long; those with most left drop out. Nothing of the winner's tree is lost: what it has left open
  is dealt out to parts of their own, which its rule goes on with.
* A part that has used its allowance without closing its share as fast as before races again, from
  its own first box: bad splits at its top are undone. The attempt so far takes part in the race.
  If the part began as many boxes, the rules race from a sample of those that are left, and all
  others wait for the winner: which rule is best for a tree shows late, as the first boxes that one
  closes are others than the last ones. A race that nothing new has won makes the next one rarer.

The measure is the share of the part that is left, each box weighted by its deficit: how far its
worst row is from positive, relative to the part's. Work is counted in boxes, never in seconds: a
busy machine grows the same tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bitcrown.search.inputs.boxes import Boxes, joined_boxes
from bitcrown.search.inputs.rules import SplitRule

FIRST = 16
"""Boxes of the first attempt before the rules race."""
RUNGS = (32, 96, 256)
"""Boxes of every attempt at the end of each round of a race."""
SURVIVORS = (3, 2, 1)
ALLOWANCE = 1024
"""Boxes of a part before its progress is looked at; twice as many each time it is found well."""
BRANCHES = 16
"""Subtrees that a winner's open boxes are dealt out to."""
DEFICIT_POWER = 0.25
"""A box that is nearly closed counts less, but not in proportion: the last steps take longest."""
DECISIVE = 0.7
"""A race ends early where the first needs less than this share of the boxes of the second."""
STANDSTILL = 0.25
"""A part stands still that closes less than this share of what as many boxes closed before."""
_WORST_FIRST = 4
"""Once in so many rounds the worst boxes come first, whatever their depth."""
SLOW = 0.02
"""So does one that has closed less than this share in all of its allowance."""
_STANDING_STILL = 1e9
"""Boxes, for each one spent, that an attempt is thought to need which has closed nothing."""


@dataclass(eq=False)
class Attempt:
    """A tree grown by ``rule``: open boxes, the boxes bounded so far, and how many it may."""

    number: int
    rule: SplitRule
    stack: list[Boxes]
    quota: float
    spent: float = 0.0
    taken: int = 0
    stuck: int = 0
    closed_before: float | None = None

    def open_mass(self) -> float:
        return float(torch.cat([part.mass for part in self.stack]).sum()) if self.stack else 0.0

    def left(self, worst: float) -> float:
        """The share of the part that is left, weighted by deficits; ``worst < 0`` is the part's."""
        if not self.stack:
            return 0.0
        least = torch.cat([part.least for part in self.stack])
        mass = torch.cat([part.mass for part in self.stack])
        deficit = torch.where(torch.isfinite(least), least / worst, 1.0)
        return float((mass * deficit.clamp(0.0, 1.0) ** DEFICIT_POWER).sum())

    def bring_up_worst(self) -> None:
        """Sort the open boxes, the least bound on top. A violation lies where bounds are bad, and
        is found by chance only in a corner that depth-first search comes to late."""
        boxes = joined_boxes(self.stack)
        self.stack = [boxes.select(boxes.least.argsort(descending=True))]

    def projected(self, worst: float) -> float:
        """Boxes that it takes to divide what is left by ``e``, if it goes on like this."""
        left = min(self.left(worst), 1.0)
        if not left:
            return 0.0
        folds = -math.log(left)
        return self.spent / folds if folds else _STANDING_STILL * self.spent


@dataclass(eq=False)
class Subtree:
    """``root``: its boxes as they were before any attempt; ``rung`` is None while nothing races;
    ``weight``: the share of the whole that it stands for; ``heirs`` wait for the rule that wins
    here. Where it is the one they had, ``rule``, what comes next is looked at after ``allowance``
    boxes.
    """

    root: Boxes
    attempts: list[Attempt]
    rung: int | None = None
    weight: float = 1.0
    heirs: list[Subtree] = field(default_factory=list)
    rule: SplitRule | None = None
    allowance: float = 0.0

    def left(self) -> float:
        """The share of the whole that no attempt has closed."""
        return self.weight * min(attempt.open_mass() for attempt in self.attempts)

    def worst(self) -> float:
        least = self.root.least[torch.isfinite(self.root.least)]
        return min(float(least.min()) if len(least) else -1.0, -1e-300)


@dataclass
class Subtrees:
    """All open parts. ``rules[0]`` makes the first attempt at everything."""

    rules: Sequence[SplitRule]
    parts: list[Subtree] = field(default_factory=list)
    attempts: dict[int, tuple[Subtree, Attempt]] = field(default_factory=dict)
    races: int = 0
    stuck: int = 0
    wins: dict[str, int] = field(default_factory=dict)
    _count: int = 0
    _takes: int = 0

    def __len__(self) -> int:
        """Open boxes; of a part that several attempts are made at, those of the shortest list."""
        return sum(
            min(sum(map(len, attempt.stack)) for attempt in part.attempts) for part in self.parts
        )

    def is_racing(self) -> bool:
        return any(part.rung is not None for part in self.parts)

    def left(self) -> float:
        """The share of all boxes that is not closed, each weighted by its mass."""
        return sum(part.left() for part in self.parts)

    def smallest_share(self) -> float:
        """The share of all boxes that the smallest open one stands for."""
        return min(
            (
                part.weight * float(boxes.mass.min())
                for part in self.parts
                for attempt in part.attempts
                for boxes in attempt.stack
            ),
            default=1.0,
        )

    def add(self, boxes: Boxes, rule: SplitRule, quota: float, weight: float = 1.0) -> None:
        """A new part with one attempt."""
        boxes = replace(boxes, mass=boxes.mass / boxes.mass.sum())
        part = Subtree(boxes, [], weight=weight)
        self.parts.append(part)
        self._begin(part, rule, quota)

    def add_roots(self, boxes: Boxes) -> None:
        """Boxes left open at the root: one part if they are few."""
        if len(boxes) <= BRANCHES:
            self.add(boxes, self.rules[0], FIRST)
        else:
            self._deal_out(boxes, self.rules[0])

    def _begin(self, part: Subtree, rule: SplitRule, quota: float) -> None:
        self._count += 1
        boxes = replace(part.root, region=torch.full_like(part.root.region, self._count))
        attempt = Attempt(self._count, rule, [boxes], quota)
        part.attempts.append(attempt)
        self.attempts[self._count] = part, attempt

    def _deal_out(
        self, boxes: Boxes, rule: SplitRule, weight: float = 1.0, quota: float | None = None
    ) -> None:
        """Neighbours stay together; the part with the worst box comes first. Together they stand
        for ``weight`` of the whole."""
        share = weight / float(boxes.mass.sum())
        index = torch.arange(len(boxes), device=boxes.lower.device)
        runs = torch.split(index, -(-len(boxes) // BRANCHES))
        chunks = sorted(runs, key=lambda chunk: float(boxes.least[chunk].min()), reverse=True)
        for chunk in chunks:
            part = boxes.select(chunk)
            allowed = ALLOWANCE if quota is None else quota
            self.add(part, rule, allowed, share * float(part.mass.sum()))

    # -- rounds ------------------------------------------------------------------------------------

    def take(self, count: int) -> Boxes:
        """Up to ``count`` boxes, at least one, of the attempts that have not used their quotas."""
        taken: list[Boxes] = []
        self._takes += 1
        for part in reversed(self.parts):
            for attempt in part.attempts:
                if self._takes % _WORST_FIRST == 0:
                    attempt.bring_up_worst()
                room = min(count, math.ceil(attempt.quota - attempt.spent))
                while attempt.stack and room >= 1:
                    boxes = attempt.stack.pop()
                    if len(boxes) > room:
                        index = torch.arange(len(boxes), device=boxes.lower.device)
                        attempt.stack.append(boxes.select(index[: len(boxes) - room]))
                        boxes = boxes.select(index[len(boxes) - room :])
                    taken.append(boxes)
                    attempt.taken += len(boxes)
                    room, count = room - len(boxes), count - len(boxes)
            if count < 1:
                break
        return joined_boxes(taken)

    def taken_by(self) -> dict[SplitRule, list[int] | None]:
        """The rules of the boxes taken last with the regions of each; None where it has all."""
        found: dict[SplitRule, list[int] | None] = {}
        for number, (_, attempt) in self.attempts.items():
            if attempt.taken:
                found[attempt.rule] = [*(found.get(attempt.rule) or []), number]
        return found if len(found) > 1 else dict.fromkeys(found)

    def give(self, children: Boxes, costs: Tensor, stuck: Tensor) -> None:
        """What the boxes taken last have become; ``costs [children]`` is what looking ahead has
        cost each of them, in boxes; ``stuck [K]`` are the regions of boxes too small to cut."""
        touched: dict[int, Subtree] = {}
        for part in self.parts:
            for attempt in part.attempts:
                if attempt.taken:
                    attempt.spent += attempt.taken
                    attempt.taken = 0
                    touched[id(part)] = part
        numbers, place, counts = torch.unique(
            children.region, return_inverse=True, return_counts=True
        )
        total = costs.new_zeros(len(numbers)).index_add(0, place, costs)
        order = torch.split(place.argsort(stable=True), counts.tolist())
        for number, index, cost in zip(numbers.tolist(), order, total.tolist(), strict=True):
            _, attempt = self.attempts[number]
            attempt.stack.append(children.select(index))
            attempt.spent += cost
        for number in stuck.tolist():
            self.attempts[number][1].stuck += 1
        for part in touched.values():
            self._advance(part)

    def _advance(self, part: Subtree) -> None:
        finished = [attempt for attempt in part.attempts if not attempt.stack]
        whole = [attempt.rule for attempt in finished if not attempt.stuck]
        if whole:
            self._drop(part, whole[0])
            return
        part.attempts = [attempt for attempt in part.attempts if attempt.stack]
        if not part.attempts:
            self.stuck += min(attempt.stuck for attempt in finished)
            self._drop(part)
            return
        if part.rung is None:
            self._look_at(part)
            return
        if any(attempt.spent < attempt.quota for attempt in part.attempts):
            return
        worst = part.worst()
        ranked = sorted(part.attempts, key=lambda attempt: attempt.projected(worst))
        best, *others = (attempt.projected(worst) for attempt in ranked)
        is_clear = not others or best < DECISIVE * others[0]
        keep = 1 if is_clear else SURVIVORS[part.rung]
        part.attempts = ranked[:keep]
        part.rung += 1
        if len(part.attempts) == 1 or part.rung == len(RUNGS):
            winner = part.attempts[0]
            self.wins[winner.rule.name] = self.wins.get(winner.rule.name, 0) + 1
            self._drop(part, winner.rule)
            self.stuck += winner.stuck
            left = part.weight * winner.open_mass()
            boxes = joined_boxes(winner.stack)
            self._deal_out(boxes, winner.rule, left, self._next_look(part, winner.rule))
            return
        for attempt in part.attempts:
            attempt.quota = max(attempt.quota, RUNGS[part.rung])

    def _drop(self, part: Subtree, rule: SplitRule | None = None) -> None:
        """Forget ``part``; those that waited for it go on by ``rule`` (None: by their own)."""
        for heir in part.heirs:
            for attempt in heir.attempts:
                attempt.rule = rule or attempt.rule
                attempt.quota = self._next_look(part, attempt.rule)
        self.parts.remove(part)
        self.attempts = {
            number: found for number, found in self.attempts.items() if found[0] is not part
        }

    def _next_look(self, part: Subtree, rule: SplitRule) -> float:
        """Boxes after which what the race on ``part`` leaves is looked at, if ``rule`` has won."""
        return part.allowance if rule is part.rule else ALLOWANCE

    def _look_at(self, part: Subtree) -> None:
        """Let the only attempt at a part go on, or let the others race with it."""
        attempt = part.attempts[0]
        if attempt.spent >= attempt.quota / 2 and attempt.closed_before is None:
            attempt.closed_before = 1.0 - attempt.open_mass()
        if attempt.spent < attempt.quota:
            return
        closed = 1.0 - attempt.open_mass()
        before = attempt.closed_before or 0.0
        is_first = attempt.quota <= FIRST
        if not is_first and closed > SLOW and closed - before > STANDSTILL * before:
            attempt.closed_before, attempt.quota = closed, 2 * attempt.quota
        elif len(part.root) <= BRANCHES and len(self.rules) > 1:
            self._race(part, attempt, attempt.spent)
        else:
            self._divide(part, attempt)

    def _divide(self, part: Subtree, attempt: Attempt) -> None:
        """What the only ``attempt`` at a part has left becomes parts of their own. If they are
        many, the rules race on some, and the others wait."""
        self._drop(part)
        self.stuck += attempt.stuck
        weight, boxes = part.weight * attempt.open_mass(), joined_boxes(attempt.stack)
        if len(boxes) < BRANCHES**2 or len(self.rules) == 1:
            self._deal_out(boxes, attempt.rule, weight)
            return
        every = torch.arange(len(boxes), device=boxes.lower.device)
        step = len(boxes) // BRANCHES
        is_chosen = (every % step == step // 2) & (every < step * BRANCHES)
        chosen, others = (
            boxes.select(mask.nonzero().flatten()) for mask in (is_chosen, ~is_chosen)
        )
        share, first = weight / float(boxes.mass.sum()), len(self.parts)
        self._deal_out(others, attempt.rule, share * float(others.mass.sum()), 0.0)
        heirs = self.parts[first:]
        self.add(chosen, attempt.rule, 0.0, share * float(chosen.mass.sum()))
        racing = self.parts[-1]
        racing.heirs = heirs
        self._race(racing, racing.attempts[0], attempt.spent)

    def _race(self, part: Subtree, first: Attempt, spent: float) -> None:
        """``spent`` boxes went into what the part is about."""
        self.races += 1
        part.rung, part.rule, part.allowance = 0, first.rule, max(2 * spent, ALLOWANCE)
        first.quota = max(first.spent, RUNGS[0])
        for rule in self.rules:
            if rule is not first.rule:
                self._begin(part, rule, RUNGS[0])
