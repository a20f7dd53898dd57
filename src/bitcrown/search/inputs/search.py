"""Branch and bound over the input box: for networks with few inputs that vary.

A domain is a box together with the cases still open on it. Each round takes a batch of boxes and

1. bounds the rows of all open cases, in stages (``bounds``), and closes a case when one of its rows
   is positive on the whole box; rows that are nearly positive get better slopes (``ascent``);
2. probes the midpoint and the minimiser of the worst row with the network itself;
3. clips: a violation of a case must satisfy ``a x + c <= 0`` for *each* of its rows, so every
   coordinate obeys ``a_i x_i <= min_i - L`` with ``L`` the row's least value and ``min_i`` the
   least value of ``a_i x_i``; a domain keeps the hull of what its open cases leave
   (Clip-and-Verify, 2025, "relaxed" form; ``bounds.claims``);
4. halves what is left along the coordinate that the rule of its part says (``rules``, ``parts``).

All numbers are float64 and rounded outward (``bounds.rounding``), so a closed domain is a proof.
The size of a batch follows from the work of a box, not from clocks: neither a near deadline nor a
busy machine changes the tree. Legend: see ``boxes``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bitcrown.bounds import claims
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.mirrored import without_mirrored_neurons
from bitcrown.search.inputs import ascent
from bitcrown.search.inputs.bounds import BoxBounder, RelaxedBoxes, RowBounds, worst_value
from bitcrown.search.inputs.boxes import (
    Boxes,
    GroupedRows,
    can_be_halved,
    distinct_boxes,
    halves_of,
    joined_boxes,
)
from bitcrown.search.inputs.parts import Subtrees
from bitcrown.search.inputs.rules import SPLIT_RULES, SplitRule, scores
from bitcrown.search.objective import Objective

_CLIP_ROUNDS = 3
ROUND_ENTRIES = 1 << 22
"""Entries of the passes of one round: more are no faster on a CPU core, fewer wait for Python."""
LARGEST_BATCH, SMALLEST_BATCH = 4096, 8
FEW = 16
"""Boxes below a batch over this are cut more than once: a round of so little work waits for Python,
however many boxes it has."""
PROBED = 8
"""Candidates replayed in a round."""
CHEAP_TRIAL = 16
"""A stage that closes too little is tried again once in so many rounds."""


@dataclass
class InputOutcome:
    """``proved`` says that every case was excluded everywhere; ``stuck`` counts domains too small
    to split."""

    proved: bool
    rounds: int
    domains: int
    stuck: int
    left: int
    witness: object | None = None


class InputSplit:
    """``confirm(x [n]) -> witness or None`` replays a candidate on the original network; ``rules``
    compete, the first one begins."""

    def __init__(
        self,
        network: Network,
        objective: Objective,
        cases: np.ndarray,
        confirm: Callable[[np.ndarray], object | None],
        budget: Budget,
        rules: Sequence[SplitRule] = SPLIT_RULES,
    ) -> None:
        folded = without_mirrored_neurons(network.graph)
        if folded is not network.graph:
            network = Network(folded, network.dtype, network.device)
        self.network, self.confirm, self.budget = network, confirm, budget
        self.rows = GroupedRows(objective, cases, network)
        self.bounder = BoxBounder(network, self.rows, budget)
        usable = [rule for rule in rules if self.bounder.takes_pairs or not rule.looks]
        self.parts = Subtrees(usable or list(rules))
        self.tries = ascent.Tries()
        self.takes_slopes = self.bounder.takes_pairs and ascent.has_slopes(self.bounder)
        self.root_width = (self.rows.upper - self.rows.lower).amax(0, keepdim=True)
        self.rounds = self.domains = 0
        self.rejected = 0
        self.sharp_boxes = self.sharp_work = self.quick_boxes = self.quick_work = 0.0
        self.quick_closed = 0.0
        self.roots_left = len(self.rows.lower)
        self.root_known: tuple[Tensor, Tensor] | None = None
        self.open_roots: list[Boxes] = []
        self.batch, self.largest = SMALLEST_BATCH if self.bounder.takes_pairs else 1, LARGEST_BATCH

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to bound or split; what is not proved then is ``stuck``."""
        return not self.roots_left and not self.parts.parts

    @property
    def stuck(self) -> int:
        return self.parts.stuck

    def run(
        self, seconds: float, on_progress: Callable[[int, int], None] | None = None
    ) -> InputOutcome:
        """Search until everything is excluded, a witness is confirmed, the deadline passes, or
        ``seconds`` are over (at least one round is done).

        Only an outcome that says ``proved`` proves anything; calling again goes on.
        """
        first, share = self.rounds, self.budget.capped(seconds)
        while not self.is_over:
            if self.budget.is_expired() or (self.rounds > first and share.is_expired()):
                return self._outcome(False, self._left())
            try:
                with torch.no_grad():
                    witness = self._root_round() if self.roots_left else self._tree_round()
            except torch.OutOfMemoryError:  # nothing is lost: the same boxes in smaller rounds
                if self.batch == 1:
                    raise
                self.largest = self.batch = self.batch // 2
                continue
            if witness is not None:
                return self._outcome(False, 0, witness)
            self.rounds += 1
            if on_progress is not None:
                on_progress(self.domains, self._left())
        return self._outcome(self.stuck == 0, self.stuck)

    def _left(self) -> int:
        return self.roots_left + sum(map(len, self.open_roots)) + len(self.parts)

    def _outcome(self, proved: bool, left: int, witness: object | None = None) -> InputOutcome:
        return InputOutcome(proved, self.rounds, self.domains, self.stuck, left, witness)

    # -- rounds ------------------------------------------------------------------------------------

    def _root_round(self) -> object | None:
        """Bound root boxes; what is open when all are becomes the first part."""
        if self.root_known is None:
            self.root_known = self.bounder.root()
        done = len(self.rows.lower) - self.roots_left
        count = min(self.roots_left, self.batch)
        index = torch.arange(done, done + count, device=self.rows.lower.device)
        boxes, _, witness = self._examine(self.rows.roots(index, self.root_known))
        if witness is not None:
            return witness
        self.roots_left -= count
        if len(boxes):
            self.open_roots.append(boxes)
        if not self.roots_left and self.open_roots:
            self.parts.add_roots(joined_boxes(self.open_roots))
            self.open_roots = []
        return None

    def _tree_round(self) -> object | None:
        taken = self.parts.take(self.batch)
        examine = self._examine_once if self.parts.is_racing() else self._examine
        try:
            boxes, rows, witness = examine(taken)
        except torch.OutOfMemoryError:
            self.parts.give(taken, torch.zeros_like(taken.mass), taken.region[:0])
            raise
        if witness is None:
            self.parts.give(*self._split(boxes, rows))
        return witness

    def _examine_once(self, taken: Boxes) -> tuple[Boxes, RowBounds, object | None]:
        """As ``_examine``; equal boxes, which trees that race from the same root have, are bounded
        once."""
        first, kind = distinct_boxes(taken)
        if len(first) == len(taken):
            return self._examine(taken)
        distinct = taken.select(first)
        distinct.region = torch.arange(len(first), device=kind.device)
        boxes, rows, witness = self._examine(distinct)
        place = torch.full_like(first, -1)
        place[boxes.region] = torch.arange(len(boxes), device=kind.device)
        is_left = place[kind] != -1
        every = place[kind][is_left]
        mass, region = taken.mass[is_left], taken.region[is_left]
        boxes = replace(boxes.select(every), mass=mass, region=region)
        return boxes, RowBounds(*(part[every] for part in rows)), witness

    def _resize(self) -> None:
        """A batch whose passes have ``ROUND_ENTRIES`` entries, as far as memory has room.

        In wide networks one box is work enough, and has zonotopes, which a batch has not.
        """
        if not self.bounder.takes_pairs:
            self.batch = 1
            return
        entries = self.bounder.work / max(self.domains, 1) * self.bounder.mean_width
        known = sum(self.bounder.sizes) * 16 * 64
        total = sum(node.size for node in self.network.graph.nodes.values())
        room = self.budget.memory // 4 // (total * 8 * (6 + 2 * self.bounder.symbols) + known + 1)
        wanted = int(min(self.largest, ROUND_ENTRIES / max(entries, 1.0), room))
        most = min(max(wanted, SMALLEST_BATCH), 4 * self.batch, max(room, 1), self.largest)
        self.batch = max(1, most)

    def _examine(self, boxes: Boxes) -> tuple[Boxes, RowBounds, object | None]:
        """The boxes that stay open, clipped, and the bounds of their rows; or a witness."""
        self.domains += len(boxes)
        if self._is_quick_useful():
            boxes, rows = self._close_quickly(boxes)
            if not len(boxes):
                return boxes, rows, None
        before, work = len(boxes), self.bounder.work
        stage, boxes = self.bounder.sharp(boxes)
        rows = self.bounder.row_bounds(boxes, stage)
        self.sharp_boxes, self.sharp_work = (
            self.sharp_boxes + before,
            self.sharp_work + self.bounder.work - work,
        )
        boxes.open = boxes.open & ~claims.excluded(rows.best).any(dim=2)
        if self.takes_slopes:
            rows = self._ascend(boxes, stage, rows)
        boxes, rows = _kept(boxes, rows)
        self._resize()
        if not len(boxes):
            return boxes, rows, None
        witness = self._probe(boxes, rows)
        if witness is not None:
            return boxes, rows, witness
        boxes = replace(boxes, least=worst_value(boxes, rows).clamp(max=0.0))
        return *self._clip(boxes, rows), None

    def _is_quick_useful(self) -> bool:
        """Whether the cheap stage closes enough boxes to pay for itself."""
        if not self.bounder.takes_pairs or not self.rounds:
            return False
        if self.rounds % CHEAP_TRIAL == 0 or not self.quick_boxes or not self.sharp_boxes:
            return True
        saved = self.quick_closed / self.quick_boxes * self.sharp_work / self.sharp_boxes
        return saved > self.quick_work / self.quick_boxes

    def _close_quickly(self, boxes: Boxes) -> tuple[Boxes, RowBounds]:
        work = self.bounder.work
        rows = self.bounder.row_bounds(boxes, self.bounder.quick(boxes))
        boxes.open = boxes.open & ~claims.excluded(rows.best).any(dim=2)
        left = _kept(boxes, rows)
        self.quick_boxes += len(boxes)
        self.quick_work += self.bounder.work - work
        self.quick_closed += len(boxes) - len(left[0])
        return left

    def _ascend(self, boxes: Boxes, stage: RelaxedBoxes, rows: RowBounds) -> RowBounds:
        """Better slopes for the best row of every open case, in boxes where that is worth it.

        Only the value is used: a line whose slopes suit one bound says less about where to split.
        """
        is_open = boxes.open.any(dim=1).nonzero().flatten()
        if not len(is_open):
            return rows
        kind = self.tries.kinds(worst_value(boxes, rows)[is_open], boxes.least[is_open])
        passes = (
            float(boxes.open[is_open].sum())
            / len(is_open)
            * (ascent.ASCENT_STEPS * ascent.ASCENT_STEP_COST + 2)
        )
        saved = 2.0 * self.sharp_work / max(self.sharp_boxes, 1.0)
        chosen = self.tries.chosen(kind, saved / passes)
        kind, chosen = kind[chosen], is_open[chosen]
        if not len(chosen):
            return rows
        place, case = boxes.open[chosen].nonzero(as_tuple=True)
        box = chosen[place]
        best = rows.best[box, case].argmax(dim=1)
        group = boxes.group[box]
        row = self.rows.place[group, case, best]
        value = ascent.sharpened_values(self.bounder, boxes, stage, box, row)
        value = claims.least_margin(value, self.rows.rhs[group, case, best])
        rows.best[box, case, best] = torch.maximum(rows.best[box, case, best], value)
        boxes.open &= ~claims.excluded(rows.best).any(dim=2)
        self.tries.note(kind, ~boxes.open[chosen].any(dim=1))
        return rows

    def _probe(self, boxes: Boxes, rows: RowBounds) -> object | None:
        """Try midpoints and row minimisers; replay what the float network finds to violate."""
        worst = torch.where(boxes.open.unsqueeze(2), rows.least, torch.inf).flatten(1).argmin(1)
        a = rows.a.flatten(1, 2)[torch.arange(len(boxes), device=worst.device), worst]
        corner = claims.corner(a, boxes.lower, boxes.upper)
        points = torch.cat([(boxes.lower + boxes.upper) / 2, corner])
        outputs = self.network(points)
        group = boxes.group.repeat(2)
        reached = (self.rows.C[group] * outputs[:, None, :]).sum(2)
        if self.rows.D is not None:
            reached = reached + (self.rows.D[group] * points[:, None, :]).sum(2)
        violated = (self.rows.spread(reached, group) <= self.rows.rhs[group]).all(dim=2)
        bad = (violated & boxes.open.repeat(2, 1)).any(dim=1).nonzero().flatten()
        for k in bad[:PROBED].tolist():
            witness = self.confirm(points[k].cpu().numpy())
            if witness is not None:
                return witness
            self.rejected += 1
        return None

    def _clip(self, boxes: Boxes, rows: RowBounds) -> tuple[Boxes, RowBounds]:
        """Shrink boxes to the hull of what each open case leaves; drop boxes that become empty.

        Rows are used again on the box that the others left, which is how conjunctions pay.
        """
        low, up = (
            end.unsqueeze(1).expand(-1, rows.a.shape[1], -1) for end in (boxes.lower, boxes.upper)
        )
        low, up, is_left = claims.clipped(low, up, rows.a, rows.least, _CLIP_ROUNDS)
        feasible = boxes.open & is_left
        shut = ~feasible.unsqueeze(2)
        lower = torch.where(shut, torch.inf, low).amin(dim=1)
        upper = torch.where(shut, -torch.inf, up).amax(dim=1)
        return _kept(replace(boxes, lower=lower, upper=upper, open=feasible), rows)

    # -- splits ------------------------------------------------------------------------------------

    def _split(self, boxes: Boxes, rows: RowBounds) -> tuple[Boxes, Tensor, Tensor]:
        """Both halves of every box along the coordinate that its rule chooses, what choosing has
        cost each of them, and the regions of boxes that floats cannot halve."""
        can = can_be_halved(boxes)
        movable = can.any(dim=1)
        stuck = boxes.region[~movable]
        index = movable.nonzero().flatten()
        boxes, rows = boxes.select(index), RowBounds(*(part[index] for part in rows))
        score = boxes.lower.new_full(boxes.lower.shape, -1.0)
        cost = boxes.lower.new_zeros(len(boxes))
        for rule, numbers in self.parts.taken_by().items():
            mine = torch.arange(len(boxes), device=score.device)
            if numbers is not None:
                mine = mine[torch.isin(boxes.region, boxes.region.new_tensor(numbers))]
            if len(mine):
                found = RowBounds(*(part[mine] for part in rows))
                score[mine], cost[mine] = self._scores(
                    rule, boxes.select(mine), found, can[index][mine]
                )
        children = halves_of(boxes, score.argmax(dim=1))
        if len(children) < self.batch // FEW:
            children = self._halves_again(children, score.repeat_interleave(2, dim=0))
        share = len(children) // max(len(boxes), 1)
        return children, (cost / max(share, 1)).repeat_interleave(share), stuck

    def _halves_again(self, children: Boxes, score: Tensor) -> Boxes:
        """While boxes are few a round costs the same for twice as many: cut along the second-best
        coordinate, too."""
        first = score.argmax(dim=1, keepdim=True)
        second = score.scatter(1, first, -1.0)
        second = torch.where(can_be_halved(children), second, -1.0)
        if len(children) and bool((torch.sign(second) == 1).any(dim=1).all()):
            return halves_of(children, second.argmax(dim=1))
        return children

    def _scores(
        self, rule: SplitRule, boxes: Boxes, rows: RowBounds, can: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scores ``[B, n]``, -1 where a coordinate cannot be halved, and their cost in boxes."""
        width = boxes.upper - boxes.lower
        score = scores(rule, rows.a, boxes.open, width, self.root_width)
        score = torch.where(can, score, -1.0)
        if not rule.looks:
            return score, width.new_zeros(len(boxes))
        work = self.bounder.work
        score = self._look_ahead(rule, boxes, score)
        box = self.sharp_work / max(self.sharp_boxes, 1.0)
        cost = (self.bounder.work - work) / max(len(boxes), 1) / max(box, 1.0)
        return score, width.new_full((len(boxes),), cost)

    def _look_ahead(self, rule: SplitRule, boxes: Boxes, score: Tensor) -> Tensor:
        """Products of what both halves gain, for the best few coordinates; ties go to ``score``.

        Gains are those of the cheap stage over itself: the box's own bounds may come from a sharper
        one, against which no half would gain anything.
        """
        count = min(rule.looks, score.shape[1])
        best = score.topk(count, dim=1)
        halves = [halves_of(boxes, best.indices[:, k]) for k in range(count)]
        tried = joined_boxes([boxes, *halves])
        rows = self.bounder.row_bounds(tried, self.bounder.quick(tried))
        least = worst_value(tried, rows)
        before, reached = least[: len(boxes)], least[len(boxes) :].reshape(count, len(boxes), 2)
        limit = torch.where(torch.isfinite(before), -before, 1.0)[None, :, None]
        gain = claims.ratio((reached - before[None, :, None]).clamp(min=0.0), limit)
        product = (gain.clamp(max=1.0) + 1e-8).prod(dim=2).T
        ties = 1e-16 * claims.ratio(best.values, best.values[:, :1])
        found = torch.where(torch.sign(best.values) != -1, product + ties, -1.0)
        return torch.full_like(score, -1.0).scatter(1, best.indices, found)


def _kept(boxes: Boxes, rows: RowBounds) -> tuple[Boxes, RowBounds]:
    """Boxes with an open case."""
    index = boxes.open.any(dim=1).nonzero().flatten()
    return boxes.select(index), RowBounds(*(part[index] for part in rows))
