"""Branch and bound over the input box: for networks with few inputs that vary.

A domain is a box together with the cases still open on it. Each round takes a batch of domains and

1. bounds every layer (interval, then CROWN where it matters) and the rows of all open cases;
2. closes a case when one of its rows is positive on the whole box;
3. clips: a violation of a case must satisfy ``a x + c <= 0`` for *each* of its rows, so every
   coordinate obeys ``a_i x_i <= min_i - L`` with ``L`` the row's least value and ``min_i`` the
   least value of ``a_i x_i``; a domain keeps the hull of what its open cases leave
   (Clip-and-Verify, 2025, "relaxed" form; ``bounds.claims``);
4. probes the midpoint and the minimiser of the worst row with the network itself;
5. halves what is left along the coordinate that matters most to the rows (smart branching:
   ``|a_i| * width``).

All numbers are float64 and rounded outward (``bounds.rounding``), so a closed domain is a proof.
Legend: ``B`` domains, ``Q`` cases of a box, ``S`` rows of a case, ``n`` inputs, ``m`` outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitcrown.bounds import claims
from bitcrown.bounds.crown import Backward, Lines, minimum, output_seeds
from bitcrown.bounds.intermediate import Enclosure, LayerBounder
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.search.objective import Objective

CLIP_ROUNDS = 3


@dataclass
class Boxes:
    """Domains: ``lower``/``upper [B, n]``, ``group [B]`` (which original box), ``open [B, Q]``
    (cases not excluded)."""

    lower: Tensor
    upper: Tensor
    group: Tensor
    open: Tensor

    def __len__(self) -> int:
        return int(self.lower.shape[0])

    def select(self, index: Tensor) -> Boxes:
        return Boxes(self.lower[index], self.upper[index], self.group[index], self.open[index])


def concatenate(parts: list[Boxes]) -> Boxes:
    fields = zip(*((p.lower, p.upper, p.group, p.open) for p in parts), strict=True)
    return Boxes(*(torch.cat(list(field)) for field in fields))


class GroupedRows:
    """Rows of all cases, grouped by box: ``C [G, Q, S, m]``, ``D [G, Q, S, n]`` or None,
    ``rhs [G, Q, S]``."""

    def __init__(self, objective: Objective, cases: np.ndarray, network: Network) -> None:
        boxes, group_of = np.unique(objective.box[cases], return_inverse=True)
        counts = np.bincount(group_of, minlength=len(boxes))
        depth, width = objective.C.shape[1], int(counts.max())
        place = np.zeros(len(cases), dtype=np.int64)
        seen = np.zeros(len(boxes), dtype=np.int64)
        for k, g in enumerate(group_of):
            place[k], seen[g] = seen[g], seen[g] + 1
        c = np.zeros((len(boxes), width, depth, objective.C.shape[2]))
        c[group_of, place] = objective.C[cases]
        rhs = np.full((len(boxes), width, depth), np.inf)
        rhs[group_of, place] = objective.rhs[cases]
        used = np.zeros((len(boxes), width), dtype=bool)
        used[group_of, place] = True
        self.C, self.rhs = network.tensor(c), network.tensor(rhs)
        self.D = None
        if objective.D is not None:
            d = np.zeros((len(boxes), width, depth, objective.D.shape[2]))
            d[group_of, place] = objective.D[cases]
            self.D = network.tensor(d)
        self.roots = Boxes(
            network.tensor(objective.lower[boxes]),
            network.tensor(objective.upper[boxes]),
            torch.arange(len(boxes), device=network.device),
            torch.as_tensor(used, device=network.device),
        )


@dataclass
class Outcome:
    """``proved`` says that every case was excluded everywhere; ``stuck`` counts domains too small
    to split."""

    proved: bool
    rounds: int
    domains: int
    stuck: int
    left: int
    witness: object | None = None


class InputSplit:
    """``confirm(x [n]) -> witness or None`` replays a candidate on the original network."""

    def __init__(
        self,
        network: Network,
        objective: Objective,
        cases: np.ndarray,
        confirm: Callable[[np.ndarray], object | None],
        budget: Budget,
    ) -> None:
        self.network, self.confirm, self.budget = network, confirm, budget
        self.rows = GroupedRows(objective, cases, network)
        self.bounder = LayerBounder(network, min(budget.memory // 4, 1 << 29), quick=True)
        self.batch = self._first_batch()
        self.rounds = self.domains = self.stuck = 0
        self.rejected = 0
        self.stack = [self.rows.roots]

    def _first_batch(self) -> int:
        """Boxes per round to begin with; grows or shrinks with the measured time per box."""
        widest = max(node.size for node in self.network.graph.nodes.values())
        return max(1, min(256, (1 << 16) // widest))

    def run(self, seconds: float, on_progress: Callable[[int, int], None] | None = None) -> Outcome:
        """Search until everything is excluded, a witness is confirmed, the deadline passes, or
        ``seconds`` are over (at least one round is done).

        Only an outcome that says ``proved`` proves anything; calling again goes on.
        """
        stack = self.stack
        best_rate = 0.0
        first, end = self.rounds, time.monotonic() + seconds
        while stack:
            if self.budget.is_expired() or (self.rounds > first and time.monotonic() > end):
                return self._outcome(False, sum(len(part) for part in stack))
            batch = self._take(stack)
            started = time.perf_counter()
            rest, witness = self._round(batch)
            if witness is not None:
                return self._outcome(False, 0, witness)
            rate = len(batch) / (time.perf_counter() - started)
            best_rate = self._resize(len(batch), rate, best_rate)
            if len(rest):
                stack.append(rest)
            self.rounds += 1
            self.domains += len(batch)
            if on_progress is not None:
                on_progress(self.domains, sum(len(part) for part in stack))
        return self._outcome(self.stuck == 0, self.stuck)

    def _outcome(self, proved: bool, left: int, witness: object | None = None) -> Outcome:
        return Outcome(proved, self.rounds, self.domains, self.stuck, left, witness)

    def _resize(self, size: int, rate: float, best: float) -> float:
        """Double the batch while that raises the rate and a round stays short against the time
        left."""
        seconds = size / rate
        if seconds > min(2.0, 0.1 * max(self.budget.remaining(), 0.1)):
            self.batch = max(1, self.batch // 2)
        elif (
            size == self.batch
            and rate > 0.9 * best
            and seconds < 0.5
            and self._fits(2 * self.batch)
        ):
            self.batch *= 2
        return max(best, rate)

    def _fits(self, boxes: int) -> bool:
        total = sum(node.size for node in self.network.graph.nodes.values())
        return boxes * total * 8 * 6 < self.budget.memory // 2

    def _take(self, stack: list[Boxes]) -> Boxes:
        parts, size = [], 0
        while stack and size < self.batch:
            part = stack.pop()
            if size + len(part) > self.batch:
                cut = self.batch - size
                index = torch.arange(len(part), device=part.lower.device)
                stack.append(part.select(index[cut:]))
                part = part.select(index[:cut])
            parts.append(part)
            size += len(part)
        return parts[0] if len(parts) == 1 else concatenate(parts)

    def _round(self, boxes: Boxes) -> tuple[Boxes, object | None]:
        with torch.no_grad():
            enclosure = self.bounder.run(boxes.lower, boxes.upper)
            lines, values = self._bound_rows(boxes, enclosure)
            boxes.open &= ~claims.excluded(values).any(dim=2)
            keep = boxes.open.any(dim=1).nonzero().flatten()
            if not len(keep):
                return boxes.select(keep), None
            boxes = boxes.select(keep)
            coefficient, values = lines.coefficient[keep], values[keep]
            coefficient = coefficient.reshape(*values.shape, -1)
            witness = self._probe(boxes, coefficient, values)
            if witness is not None:
                return boxes, witness
            boxes, coefficient, values = self._clip(boxes, coefficient, values)
            return self._split(boxes, coefficient, values), None

    def _bound_rows(self, boxes: Boxes, enclosure: Enclosure) -> tuple[Lines, Tensor]:
        """Lines of all rows and their least values minus ``rhs``: ``[B, Q, S]``."""
        shared = len(self.rows.C) == 1
        group = boxes.group[:1] if shared else boxes.group
        c, rhs = self.rows.C[group], self.rows.rhs[group]
        relaxations = enclosure.relaxations
        backward = Backward(self.network, relaxations, scales=enclosure.scales)
        lines = backward.run(output_seeds(self.network, c.flatten(1, 2)))
        lines = Lines(*(part.expand(len(boxes), *part.shape[1:]) for part in lines))
        if self.rows.D is not None:
            lines = lines._replace(coefficient=lines.coefficient + self.rows.D[group].flatten(1, 2))
        gamma = self.bounder.gamma
        value = minimum(lines, boxes.lower, boxes.upper, gamma)
        return lines, claims.least_margin(value, rhs.flatten(1)).reshape(len(boxes), *c.shape[1:3])

    def _probe(self, boxes: Boxes, coefficient: Tensor, values: Tensor) -> object | None:
        """Try midpoints and row minimisers; replay what the float network finds to violate."""
        worst = (
            torch.where(boxes.open.unsqueeze(2), values, torch.full_like(values, np.inf))
            .flatten(1)
            .argmin(1)
        )
        a = coefficient.flatten(1, 2)[torch.arange(len(boxes), device=worst.device), worst]
        corner = claims.corner(a, boxes.lower, boxes.upper)
        points = torch.cat([(boxes.lower + boxes.upper) / 2, corner])
        outputs = self.network(points)
        group = boxes.group.repeat(2)
        reached = (self.rows.C[group] * outputs[:, None, None, :]).sum(3)
        if self.rows.D is not None:
            reached = reached + (self.rows.D[group] * points[:, None, None, :]).sum(3)
        bad = (
            ((reached <= self.rows.rhs[group]).all(dim=2) & boxes.open.repeat(2, 1))
            .any(dim=1)
            .nonzero()
            .flatten()
        )
        for k in bad[:8].tolist():
            witness = self.confirm(points[k].cpu().numpy())
            if witness is not None:
                return witness
            self.rejected += 1
        return None

    def _clip(self, boxes: Boxes, a: Tensor, values: Tensor) -> tuple[Boxes, Tensor, Tensor]:
        """Shrink boxes to the hull of what each open case leaves; drop boxes that become empty.

        Rows are used again on the box that the others left, which is how conjunctions pay.
        """
        low, up = (
            end.unsqueeze(1).expand(-1, a.shape[1], -1) for end in (boxes.lower, boxes.upper)
        )
        low, up, is_left = claims.clipped(low, up, a, values, CLIP_ROUNDS)
        feasible = boxes.open & is_left
        shut = ~feasible.unsqueeze(2)
        lower = torch.where(shut, torch.inf, low).amin(dim=1)
        upper = torch.where(shut, -torch.inf, up).amax(dim=1)
        keep = feasible.any(dim=1).nonzero().flatten()
        clipped = Boxes(lower, upper, boxes.group, feasible).select(keep)
        return clipped, a[keep], values[keep]

    def _split(self, boxes: Boxes, a: Tensor, values: Tensor) -> Boxes:
        """Halve each box along its most influential coordinate; boxes that floats cannot halve are
        stuck."""
        width = boxes.upper - boxes.lower
        weight = (
            torch.where(boxes.open[:, :, None, None], a.abs(), torch.zeros_like(a))
            .flatten(1, 2)
            .amax(1)
        )
        score = (weight + 1e-3 * weight.amax(1, keepdim=True)) * width + 1e-12 * width
        middle = (boxes.lower + boxes.upper) / 2
        can_split = (middle != boxes.lower) & (middle != boxes.upper) & torch.isfinite(middle)
        score = torch.where(
            torch.isfinite(score), score, width
        )  # rows without bound say nothing about coordinates
        score = torch.where(can_split, score, torch.full_like(score, -1.0))
        axis = score.argmax(dim=1)
        movable = can_split.any(dim=1)
        self.stuck += int((~movable).sum())
        boxes, axis, middle = (
            boxes.select(movable.nonzero().flatten()),
            axis[movable],
            middle[movable],
        )
        index = torch.arange(len(boxes), device=axis.device)
        left_upper, right_lower = boxes.upper.clone(), boxes.lower.clone()
        left_upper[index, axis] = middle[index, axis]
        right_lower[index, axis] = middle[index, axis]
        return Boxes(
            torch.cat([boxes.lower, right_lower]),
            torch.cat([left_upper, boxes.upper]),
            boxes.group.repeat(2),
            boxes.open.repeat(2, 1),
        )
