"""Bounds of the neuron split's domains: from the root of every case to what a domain's parameters
prove.

A domain is a case plus a sign for some neurons. The ascent over alpha and beta runs in ``guide``
(float32 where that pays), or in what is left of it on the box (``reduced``); what it claims is then
evaluated in ``proof`` (float64 with rounding error), and only that excludes a domain.

Bounds of the layers are those of the root with the signs imposed; where inputs and neurons are few
enough, each domain also keeps its own box and neuron bounds, sharpened by ``clip``. Legend: ``B``
domains, ``S`` rows, ``N`` neurons.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bitcrown.bounds import claims
from bitcrown.bounds.alpha_beta import (
    Ascent,
    Layout,
    Parameters,
    Rows,
    ascend,
    bound_lines,
    bound_rows,
    proved_minimum,
    row_lines,
)
from bitcrown.bounds.crown import Lines
from bitcrown.bounds.intermediate import Enclosure, LayerBounder
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.subnetworks.reduced import Reduced, reduced_network
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.search.neurons.branching import best_candidates, triangle_scores
from bitcrown.search.neurons.clip import Clipper, Region, clipper_of
from bitcrown.search.neurons.domains import Domains, concatenate, whole_cases
from bitcrown.search.neurons.leaves import LeafSolver, shallow_network, snapped
from bitcrown.search.neurons.recorder import Recorder
from bitcrown.search.objective import Objective

CANDIDATES = 4
"""Neurons judged per split, for each of the two scores."""
TRIAL = 32
"""Domains on which the two forms of the network are compared."""
CLIP_ENTRIES = 1_000_000
CLIP_INPUTS = 200
"""Domains are clipped where the inputs, and (neurons x inputs), stay below these: elsewhere a box
hardly shrinks."""
PROPAGATIONS = 8
"""Rounds of propagation where several rows must hold together: decisions travel from row to row."""
SHARPENINGS = 4
"""Passes over a domain after its ascent: each uses the neuron bounds that the one before has
sharpened."""


class DomainBounds:
    """``confirm(x [n]) -> witness or None`` replays a candidate; all cases must share one box."""

    def __init__(
        self,
        proof: Network,
        guide: Network,
        objective: Objective,
        cases: np.ndarray,
        confirm: Callable[[np.ndarray], object | None],
        budget: Budget,
    ) -> None:
        self.proof, self.guide, self.confirm, self.budget = proof, guide, confirm, budget
        self.model = self.climber = guide
        self.layout = self.whole = Layout(proof)
        self.reduced: Reduced | None = None
        self.C = proof.tensor(objective.C[cases])
        self.rhs = proof.tensor(objective.rhs[cases])
        self.D = None if objective.D is None else proof.tensor(objective.D[cases])
        box = int(objective.box[cases[0]])
        self.x_lower = proof.tensor(objective.lower[box : box + 1])
        self.x_upper = proof.tensor(objective.upper[box : box + 1])
        self.clipper: Clipper | None = None
        self.clip_rounds = 1 if self.C.shape[1] == 1 else PROPAGATIONS
        self.witness: object | None = None
        self.leaf_solver: LeafSolver | None = None
        self.recorder: Recorder | None = None

    # -- rows and bounds ---------------------------------------------------------------------------

    def parameters(self, domains: Domains) -> Parameters:
        mix = domains.mix if domains.mix.shape[1] > 1 else None
        return Parameters(self.layout, domains.alpha, domains.beta, domains.split, mix)

    def case_rows(self, case: Tensor) -> Rows:
        """Rows of cases over the root's box."""
        d = None if self.D is None else self.D[case]
        count = len(case)
        return Rows(
            self.C[case],
            d,
            self.rhs[case],
            self.x_lower.expand(count, -1),
            self.x_upper.expand(count, -1),
        )

    def rows_of(self, domains: Domains) -> Rows:
        """Rows of domains over their own boxes."""
        rows = self.case_rows(domains.case)
        if self.clipper is not None:
            rows.x_lower, rows.x_upper = domains.x_lower, domains.x_upper
        return rows

    def bounds_of(self, domains: Domains, dtype: torch.dtype) -> Bounds:
        """Bounds of all nodes in these domains, signs imposed."""
        bounds = self.bounds if dtype == self.proof.dtype else self.guide_bounds
        bounds = self.layout.split_bounds(bounds, domains.split)
        if self.clipper is None:
            return bounds
        low, up = self.neuron_bounds(domains)
        low, up = self.clipper.tighten(domains.case, domains.x_lower, domains.x_upper, low, up)
        return self.layout.with_flat_bounds(bounds, low.to(dtype), up.to(dtype))

    def neuron_bounds(self, domains: Domains) -> tuple[Tensor, Tensor]:
        """Bounds ``[B, N]`` of the neurons: the root's, the domain's own, and its signs."""
        low, up = self.layout.flat_bounds(self.layout.split_bounds(self.bounds, domains.split))
        return claims.tightened(low, up, domains.low, domains.up)

    def root(self, enclosure: Enclosure | None = None) -> Tensor:
        """Bound all cases without splits; returns the indices (into ``cases``) still open. Layers
        are bounded once."""
        if enclosure is None:
            with torch.no_grad():
                enclosure = LayerBounder(self.proof, self.budget.memory // 4).run(
                    self.x_lower, self.x_upper
                )
        self.enclosure = enclosure
        self.bounds: Bounds = enclosure.bounds
        self.guide_bounds: Bounds = {
            name: (low.to(self.guide.dtype), up.to(self.guide.dtype))
            for name, (low, up) in self.bounds.items()
        }
        n_inputs = self.proof.graph.n_inputs
        if n_inputs <= CLIP_INPUTS and self.layout.n_neurons * n_inputs <= CLIP_ENTRIES:
            with torch.no_grad():
                rows_ = (self.C, self.D, self.rhs)
                self.clipper = clipper_of(
                    self.proof, self.layout, enclosure, rows_, self.budget.memory // 4
                )
                if self.C.shape[1] > 1 and self.guide is self.proof:
                    clip = self.clipper
                    shallow = shallow_network(
                        self.proof, self.layout, clip.last, clip.rest, self.rhs
                    )
                    self.leaf_solver = None if shallow is None else LeafSolver(shallow)
        self.start_alpha = self.layout.default_alpha(self.guide_bounds)
        value = []
        for case in torch.split(
            torch.arange(len(self.C), device=self.proof.device), self.fitting(1 << 30, self.proof)
        ):
            alpha = self.start_alpha[:, None, :].expand(1, 1, -1)
            parameters = Parameters(self.layout, alpha, None, None)
            rows = self.case_rows(case)
            value.append(
                proved_minimum(self.proof, rows, self.bounds, enclosure.scales, parameters)
            )
        self.row_value = torch.cat(value)
        self.root_value = self.row_value.amax(dim=1)
        return (~claims.excluded(self.row_value).any(dim=1)).nonzero().flatten()

    def fitting(self, wanted: int, network: Network) -> int:
        """Domains whose backward pass stays within a third of the memory budget."""
        item = torch.finfo(network.dtype).bits // 8
        per_domain = (
            self.C.shape[1] * sum(node.size for node in network.graph.nodes.values()) * item * 4
        )
        return max(1, min(wanted, self.budget.memory // 3 // max(1, per_domain)))

    def root_domains(self, case: Tensor, iterations: int) -> Domains:
        """Domains without splits for the open cases, alpha optimised; proved ones are left out."""
        parts = [self.fresh(case[:0], self.root_value[:0], self.row_value[:0])]
        for part in torch.split(case, self.fitting(max(1, len(case)), self.guide)):
            best = self.row_value[part].argmax(dim=1, keepdim=True)
            mix = torch.full_like(self.row_value[part], 0.1).scatter(1, best, 1.0)
            fresh = self.fresh(part, self.root_value[part], mix)
            parts.append(self.improve(fresh, Ascent(iterations, rate_alpha=0.25, rate_beta=0.05)))
        return concatenate(parts)

    def fresh(self, case: Tensor, value: Tensor, mix: Tensor) -> Domains:
        """Domains of whole cases, with the root's slopes."""
        dtype = self.guide.dtype
        box = (self.x_lower, self.x_upper) if self.clipper else None
        return whole_cases(
            case,
            self.start_alpha,
            value.to(dtype),
            mix.to(dtype),
            self.layout.n_neurons,
            2 * CANDIDATES,
            box,
        )

    def improve(self, domains: Domains, ascent: Ascent) -> Domains:
        """Ascend, prove what can be proved, and prepare the rest for branching. Returns the open
        domains."""
        domains = self.clip(domains)
        if not len(domains):
            return domains
        rows = self.rows_of(domains)
        parameters = self.parameters(domains)
        bounds = self.bounds_of(domains, self.guide.dtype)
        if self.leaf_solver is not None:
            self.solve_programs(domains, bounds)
            return self.assess(domains)
        parameters, _ = ascend(self.climber, rows, bounds, parameters, ascent)
        domains.alpha = parameters.alpha
        domains.beta = domains.beta if parameters.beta is None else parameters.beta
        domains.mix = domains.mix if parameters.mix is None else parameters.mix
        return self.assess(domains)

    def solve_programs(self, domains: Domains, bounds: Bounds) -> None:
        """Parameters and branching neurons from linear programs; their points are tried, also
        snapped to the box."""
        assert self.leaf_solver is not None
        low, up = (part.cpu().numpy() for part in self.layout.flat_bounds(bounds))
        ends = self.x_lower[0].cpu().numpy(), self.x_upper[0].cpu().numpy()
        for x in self.leaf_solver.assign(domains, low, up, self.budget):
            self.witness = self.witness or self.confirm(snapped(x, *ends)) or self.confirm(x)

    def clip(self, domains: Domains) -> Domains:
        """Propagate in each domain; empty ones are excluded."""
        if self.clipper is None:
            return domains
        with torch.no_grad():
            low, up = self.neuron_bounds(domains)
            region = self.clipper.run(
                domains.case, domains.x_lower, domains.x_upper, low, up, self.clip_rounds
            )
            domains.x_lower, domains.x_upper, domains.low, domains.up = region[:4]
            return self.still_open(domains, region.feasible)

    def still_open(self, domains: Domains, open_: Tensor) -> Domains:
        """The domains that are ``open_ [B]``; the others are recorded, where a certificate is
        wanted."""
        if self.recorder is not None:
            neurons = None if self.reduced is None else self.reduced.neurons
            self.recorder.add(self.whole, neurons, domains.select((~open_).nonzero().flatten()))
        return domains.select(open_.nonzero().flatten())

    def prove(self, domains: Domains) -> Tensor:
        """Whether the domains' parameters exclude them, rigorously: ``[B]``."""
        parameters, bounds = self.parameters(domains), self.bounds
        if self.reduced is not None:
            alpha, beta, split = (
                self.reduced.expand(part) for part in (domains.alpha, domains.beta, domains.split)
            )
            parameters = Parameters(self.whole, alpha, beta, split, parameters.mix)
        elif self.clipper is not None:
            bounds = self.bounds_of(domains, self.proof.dtype)
        rows = self.rows_of(domains)
        return claims.excluded(
            proved_minimum(self.proof, rows, bounds, self.enclosure.scales, parameters)
        ).any(dim=1)

    def assess(self, domains: Domains) -> Domains:
        """Exclude what the parameters prove; branching candidates and a smaller region for the
        rest."""
        with torch.no_grad():
            for _ in range(
                1 if self.clipper is None or self.guide is not self.proof else SHARPENINGS
            ):
                if not len(domains):
                    break
                domains = self.assessed(domains)
        return domains

    def assessed(self, domains: Domains) -> Domains:
        """One bounding pass with the parameters as they are."""
        record: dict[str, Tensor] = {}
        is_proof = self.guide.dtype == self.proof.dtype
        bounds, rows, parameters = (
            self.bounds_of(domains, self.guide.dtype),
            self.rows_of(domains),
            self.parameters(domains),
        )
        backward = parameters.backward(
            self.model, bounds, self.enclosure.scales if is_proof else None, record
        )
        gamma = backward.gamma if is_proof else 0.0
        goal, error = self.goal(domains, rows.to(self.guide.dtype), gamma)
        lines = row_lines(self.model, goal, backward)
        value = bound_lines(lines, goal, gamma)
        if error is not None:
            value = claims.least_margin(value, error)
        proved = claims.excluded(value).any(dim=1)
        if not is_proof and proved.any():
            hopeful = proved.nonzero().flatten()
            proved[hopeful] = self.prove(domains.select(hopeful))
        if self.leaf_solver is None:
            scores = triangle_scores(
                self.layout, bounds, record, domains.split, torch.ones_like(value)
            )
            domains.candidates = torch.cat(
                [best_candidates(score, CANDIDATES) for score in scores], dim=1
            )
        domains.value = torch.maximum(
            domains.value, claims.known(value, -torch.inf).amax(dim=1).to(domains.value.dtype)
        )
        self.try_minimisers(rows, lines)
        if is_proof and self.clipper is not None:
            proved |= ~self.cut(domains, lines, value)
        return self.still_open(domains, ~proved)

    def try_minimisers(self, rows: Rows, lines: Lines) -> None:
        """Run the network where the bounds of the domains are attained, and in the middle of their
        boxes."""
        if self.witness is not None:
            return
        rows = rows.to(self.guide.dtype)
        corner = claims.corner(lines.coefficient[:, 0], rows.x_lower, rows.x_upper)
        points = (
            torch.cat([corner, (rows.x_lower + rows.x_upper) / 2])
            if self.clipper is not None
            else corner
        )
        copies = len(points) // len(corner)
        outputs = self.model(points)
        reached = (rows.C.repeat(copies, 1, 1) @ outputs.unsqueeze(2)).squeeze(2)
        if rows.D is not None:
            reached = reached + (rows.D.repeat(copies, 1, 1) @ points.unsqueeze(2)).squeeze(2)
        for k in (
            (reached <= rows.rhs.repeat(copies, 1)).all(dim=1).nonzero().flatten()[:4].tolist()
        ):
            self.witness = self.confirm(points[k].double().cpu().numpy())
            if self.witness is not None:
                return

    def goal(self, domains: Domains, rows: Rows, gamma: float) -> tuple[Rows, Tensor | None]:
        """The one row per domain that is bounded, and the rounding error of forming it (None for a
        guide)."""
        if domains.mix.shape[1] == 1:
            return rows, None
        outputs = torch.cat(
            [self.enclosure.scales[name].flatten() for name in self.proof.graph.outputs]
        )
        mix = domains.mix.to(rows.C.dtype)
        error = rows.mixing_error(mix, outputs.to(rows.C.dtype), gamma) if gamma else None
        return rows.mixed(mix), error

    def cut(self, domains: Domains, lines: Lines, value: Tensor) -> Tensor:
        """Shrink the domains' boxes and neuron bounds by their rows; ``[B]`` says which stay
        feasible."""
        assert self.clipper is not None
        yes = torch.ones(len(domains), dtype=torch.bool, device=value.device)
        region = Region(domains.x_lower, domains.x_upper, *self.neuron_bounds(domains), yes)
        if value.shape[1] == 1:  # the least value is that over the boxes as they still are
            region = self.clipper.within_halfspace(region, lines.coefficient[:, 0], value[:, 0])
        region = self.clipper.cut_rows(region, lines.coefficient, value)
        domains.x_lower, domains.x_upper, domains.low, domains.up = region[:4]
        return region.feasible

    def quick_bound(self, domains: Domains, whole: Bounds, width: int) -> Tensor:
        """Bounds ``[B K]`` of trial splits with the parameters as they are; ``whole`` bounds the
        ``B`` parents."""
        parts = []
        step = self.fitting(len(domains), self.model)
        with torch.no_grad():
            for where in torch.split(torch.arange(len(domains), device=domains.case.device), step):
                part = domains.select(where)
                parameters = self.parameters(part)
                bounds = self.layout.split_bounds(
                    self.layout.gathered(whole, where // width), part.split
                )
                goal, _ = self.goal(part, self.rows_of(part).to(self.guide.dtype), 0.0)
                value = bound_rows(self.model, goal, parameters.backward(self.model, bounds), 0.0)
                parts.append(value.amax(dim=1))
        return torch.cat(parts)

    def shrunk(self, domains: Domains) -> Domains:
        """From here on ascend in the reduced network, where it exists and is faster; ``domains``
        have no splits yet."""
        if self.clipper is not None or self.guide is self.proof or not len(domains):
            return domains
        with torch.no_grad():
            reduced = reduced_network(
                self.guide, self.layout, self.guide_bounds, self.budget.memory // 8
            )
        if reduced is None:
            return domains
        before = self.model, self.layout, self.guide_bounds
        trial = domains.select(
            torch.arange(self.fitting(TRIAL, self.guide), device=domains.case.device) % len(domains)
        )
        whole = self._seconds(trial, self.guide)
        self.reduced, self.model, self.layout = reduced, reduced.network, reduced.layout
        self.guide_bounds = reduced.bounds
        trial = trial.restrict(reduced.neurons)
        dense, rough = self._seconds(trial, reduced.network), self._seconds(trial, reduced.rough)
        if min(dense, rough) > whole:
            self.reduced = None
            self.model, self.layout, self.guide_bounds = before
            return domains
        self.climber = reduced.rough if rough < 0.9 * dense else reduced.network
        return domains.restrict(reduced.neurons)

    def _seconds(self, domains: Domains, network: Network) -> float:
        """What a few steps of ascent in ``network`` take, the better of two measurements."""
        rows, bounds = self.rows_of(domains), self.bounds_of(domains, self.guide.dtype)
        times = []
        for _ in range(2):
            started = time.perf_counter()
            ascend(network, rows, bounds, self.parameters(domains), Ascent(3))
            times.append(time.perf_counter() - started)
        return min(times)
