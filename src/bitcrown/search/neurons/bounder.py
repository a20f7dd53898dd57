"""Bounds of the neuron split's domains: from what a domain's multipliers are to what they prove.

A domain is a case plus a sign for some neurons. Its multipliers are improved in the guide; what
they claim is then evaluated in the proof network (float64 with rounding error), and only that
excludes a domain. Bounds of the layers are those of the root with the signs imposed; where inputs
and neurons are few enough, each domain also keeps a box and neuron bounds of its own, sharpened by
``clip``.

Legend: ``B`` domains, ``S`` rows, ``N`` neurons.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitcrown.bounds import claims
from bitcrown.bounds.ascent import Ascent, ascend
from bitcrown.bounds.crown import Lines
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.multipliers import Multipliers, proved_minimum
from bitcrown.bounds.rows import Rows, bound_lines, bound_rows, row_lines
from bitcrown.budget import Budget, Stopwatch
from bitcrown.search.neurons.branching import best_candidates, starting_betas, triangle_scores
from bitcrown.search.neurons.clip import Region
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.guide import Guide
from bitcrown.search.neurons.leaves import LeafSolver, shallow_network, snapped
from bitcrown.search.neurons.recorder import Recorder
from bitcrown.search.neurons.root import Root, domains_that_fit, of_each
from bitcrown.search.neurons.trials import Trials

_CANDIDATES = 4
"""Neurons judged per split, for each of the two scores."""
_PROPAGATIONS = 8
"""Rounds of propagation where several rows must hold together: decisions travel from row to row."""
_SHARPENINGS = 4
"""Passes over a domain after its ascent: each uses the neuron bounds that the one before has
sharpened."""


@dataclass(frozen=True)
class DomainBounder:
    """``root`` and ``guide`` say what is known and where multipliers are sought; ``trials`` collect
    witnesses met on the way, ``recorder`` what is closed (None: no certificate is wanted).
    ``leaf_solver`` finds multipliers where the network is shallow, in place of the ascent."""

    root: Root
    guide: Guide
    trials: Trials
    budget: Budget
    recorder: Recorder | None = None
    leaf_solver: LeafSolver | None = None

    def with_guide(self, guide: Guide) -> DomainBounder:
        return replace(self, guide=guide)

    def narrowed(self, other: DomainBounder) -> DomainBounder:
        """With the tighter root of ``other``, which has the same guide."""
        return replace(self, root=other.root, guide=other.guide)

    @property
    def has_joint_rows(self) -> bool:
        """Whether several rows must hold together."""
        return self.root.rows.C.shape[1] > 1

    def fitting(self, wanted: int) -> int:
        """Domains, at most ``wanted``, whose backward pass in the guide the memory allows."""
        return domains_that_fit(wanted, self.root.rows, self.guide.network, self.budget.memory)

    # -- what a domain's tensors mean --------------------------------------------------------------

    def multipliers(self, domains: Domains) -> Multipliers:
        """In the guide's layout."""
        mix = domains.mix if self.has_joint_rows else None
        mu = None if self.guide.cuts is None else domains.mu
        return Multipliers(
            self.guide.layout, domains.alpha, domains.beta, domains.split, mix, self.guide.cuts, mu
        )

    def rows(self, domains: Domains) -> Rows:
        """Rows of the domains over their own boxes, or the root's."""
        rows = self.root.rows.of_cases(domains.case)
        if self.root.clipper is None:
            return rows
        return replace(rows, x_lower=domains.x_lower, x_upper=domains.x_upper)

    def guide_bounds(self, domains: Domains) -> Bounds:
        """Bounds of all nodes of the guide in these domains, signs imposed."""
        return self._bounds(domains, self.guide.layout, self.guide.bounds)

    def _bounds(self, domains: Domains, layout: Layout, bounds: Bounds) -> Bounds:
        """``bounds`` of the root over ``layout``, narrowed to the domains; in their own dtype."""
        clipper = self.root.clipper
        imposed = layout.split_bounds(layout.gathered(bounds, domains.case), domains.split)
        if clipper is None:
            return imposed
        dtype = next(iter(bounds.values()))[0].dtype
        box = domains.x_lower, domains.x_upper
        low, up = clipper.tighten(domains.case, *box, *self.neuron_bounds(domains))
        return layout.with_flat_bounds(imposed, low.to(dtype), up.to(dtype))

    def neuron_bounds(self, domains: Domains) -> tuple[Tensor, Tensor]:
        """Bounds ``[B, N]`` of the neurons (float64), where domains keep their own."""
        return self.root.neuron_bounds(domains.split, domains.low, domains.up)

    # -- making, improving and proving domains -----------------------------------------------------

    def root_domains(self, case: Tensor, iterations: int) -> Domains:
        """Domains without splits for the open cases, multipliers optimised; proved ones are left
        out."""
        value, row_value = self.root.case_value, self.root.row_value
        parts = [self._fresh(case[:0], value[:0], row_value[:0])]
        for part in torch.split(case, self.fitting(max(1, len(case)))):
            # The mixture begins near the row that alone bounds best.
            best = row_value[part].argmax(dim=1, keepdim=True)
            mix = torch.full_like(row_value[part], 0.1).scatter(1, best, 1.0)
            fresh = self._fresh(part, value[part], mix)
            parts.append(self.improve(fresh, Ascent(iterations, rate_alpha=0.25, rate_beta=0.05)))
        return Domains.stacked(parts)

    def _fresh(self, case: Tensor, value: Tensor, mix: Tensor) -> Domains:
        """Domains of whole cases, with the root's slopes and no other multipliers yet."""
        root, dtype, count = self.root, self.guide.network.dtype, len(case)
        n_cuts = 0 if root.cuts is None else len(root.cuts.bound)
        flat = torch.zeros(count, root.layout.n_neurons, dtype=dtype, device=value.device)
        x_lower = x_upper = nothing = value.new_zeros(count, 0, dtype=torch.float64)
        if root.clipper is not None:
            x_lower, x_upper = (
                end.expand(count, -1) for end in (root.rows.x_lower, root.rows.x_upper)
            )
            nothing = torch.full_like(flat, torch.inf, dtype=torch.float64)
        return Domains(
            case,
            of_each(root.slopes, case)[:, None, :].expand(count, 1, -1).clone(),
            beta=flat,
            split=flat.to(torch.int8),
            value=value.to(dtype),
            candidates=torch.full((count, 2 * _CANDIDATES), -1, device=value.device),
            warm=flat.new_zeros(count, 4 * _CANDIDATES),
            x_lower=x_lower,
            x_upper=x_upper,
            low=-nothing,
            up=nothing,
            mix=mix.to(dtype),
            mu=flat.new_zeros(count, n_cuts),
            mass=torch.ones(count, dtype=torch.float64, device=value.device),
        )

    def improve(self, domains: Domains, ascent: Ascent) -> Domains:
        """Ascend, prove what can be proved, and prepare the rest for branching. Returns the open
        domains."""
        domains = self._propagated(domains)
        if not len(domains):
            return domains
        bounds = self.guide_bounds(domains)
        if self.leaf_solver is not None:
            return self._assess(self._solved(self.leaf_solver, domains, bounds))
        start, climber = self.multipliers(domains), self.guide.climber
        rows = self.rows(domains)
        found, value = ascend(climber, rows, bounds, start, ascent, budget=self.budget)
        assert found.beta is not None
        domains = replace(
            domains,
            alpha=found.alpha,
            beta=found.beta,
            mix=domains.mix if found.mix is None else found.mix,
            mu=domains.mu if found.mu is None else found.mu,
        )
        if not self._guide_is_proof():
            with torch.no_grad():
                hoped = claims.excluded(value).any(dim=1)
                domains = self._still_open(domains, ~self._confirmed(domains, hoped))
        return self._assess(domains)

    def _confirmed(self, domains: Domains, hoped: Tensor) -> Tensor:
        """``[B]``: which of the ``hoped`` domains the proof network excludes."""
        proved = torch.zeros_like(hoped)
        index = hoped.nonzero().flatten()
        if len(index):
            value = self.proved_value(domains.select(index))
            proved[index] = claims.excluded(value).any(dim=1)
        return proved

    def _solved(self, solver: LeafSolver, domains: Domains, bounds: Bounds) -> Domains:
        """Multipliers and branching neurons from linear programs; their points are tried, also
        snapped to the box."""
        rows = self.root.rows
        low, up = (part.cpu().numpy() for part in self.guide.layout.flat_bounds(bounds))
        ends = rows.x_lower[0].cpu().numpy(), rows.x_upper[0].cpu().numpy()
        domains, points = solver.assign(domains, low, up, self.budget)
        for x in points:
            if not self.trials.replay(snapped(x, *ends)):
                self.trials.replay(x)
        return domains

    def _propagated(self, domains: Domains) -> Domains:
        """Propagate in each domain; empty ones are excluded."""
        clipper = self.root.clipper
        if clipper is None:
            return domains
        rounds = _PROPAGATIONS if self.has_joint_rows else 1
        with torch.no_grad():
            box = domains.x_lower, domains.x_upper
            region = clipper.run(domains.case, *box, *self.neuron_bounds(domains), rounds)
            return self._still_open(_narrowed(domains, region), region.feasible)

    def closed(self, domains: Domains) -> Domains:
        """Nothing: the recorder is told that all ``domains`` are excluded."""
        return self._still_open(domains, torch.zeros_like(domains.case, dtype=torch.bool))

    def _still_open(self, domains: Domains, is_open: Tensor) -> Domains:
        """The domains that ``is_open [B]`` names. The recorder sees the others, with the neurons
        that they have values for: those of the guide, not of the whole network."""
        if self.recorder is not None:
            reduced = self.guide.reduced
            neurons = None if reduced is None else reduced.neurons
            closed = domains.select((~is_open).nonzero().flatten())
            self.recorder.add(self.root.layout, neurons, closed)
        return domains.select(is_open.nonzero().flatten())

    def proved_value(self, domains: Domains) -> Tensor:
        """What the domains' multipliers prove of their rows, or of their mixture: ``[B, S]``.

        Multipliers found in a reduced guide are those of the whole network with 0 for the neurons
        that the guide does not know, all of which are stable: no slope or sign of theirs matters.
        """
        root = self.root
        found = replace(
            self.multipliers(domains),
            layout=root.layout,
            alpha=self.guide.expanded(domains.alpha),
            beta=self.guide.expanded(domains.beta),
            split=self.guide.expanded(domains.split),
            cuts=root.cuts,
        )
        bounds = root.layout.gathered(root.enclosure.bounds, domains.case)
        if root.clipper is not None:
            bounds = self._bounds(domains, root.layout, bounds)
        return proved_minimum(root.proof, self.rows(domains), bounds, root.enclosure.scales, found)

    def _assess(self, domains: Domains) -> Domains:
        """Exclude what the multipliers prove; branching candidates and a smaller region for the
        rest."""
        sharpens = self.root.clipper is not None and self._guide_is_proof()
        with torch.no_grad():
            for _ in range(_SHARPENINGS if sharpens else 1):
                if not len(domains):
                    break
                domains = self._assessed(domains)
        return domains

    def _guide_is_proof(self) -> bool:
        return self.guide.network is self.root.proof

    def _assessed(self, domains: Domains) -> Domains:
        """One bounding pass with the multipliers as they are."""
        network, scales = self.guide.network, self.root.enclosure.scales
        is_proof = self._guide_is_proof()
        bounds, rows = self.guide_bounds(domains), self.rows(domains)
        # 1. Bound the rows. Where the guide is the proof network the pass counts its rounding
        #    errors, and its value is a proof already.
        record: dict[str, Tensor] = {}
        backward = self.multipliers(domains).backward(
            network, bounds, scales if is_proof else None, record
        )
        gamma = backward.gamma if is_proof else 0.0
        goal, error = self._goal(domains, rows.to(network.dtype), gamma)
        lines = row_lines(network, goal, backward)
        value = bound_lines(lines, goal, gamma)
        if error is not None:
            value = claims.least_margin(value, error)
        # 2. Elsewhere a positive value is a hope, which the proof network confirms or not.
        proved = claims.excluded(value).any(dim=1)
        if not is_proof:
            proved = self._confirmed(domains, proved)
        # 3. Neurons worth splitting: those whose triangles cost this bound most.
        candidates = domains.candidates
        if self.leaf_solver is None:
            scores = triangle_scores(self.guide.layout, bounds, record, domains.split)
            candidates = torch.cat([best_candidates(s, _CANDIDATES) for s in scores], dim=1)
            is_flat = (candidates == -1).all(dim=1)
            if is_flat.any():
                index = is_flat.nonzero().flatten()
                candidates[index] = self._candidates_of_signs(domains.select(index))
        least = claims.known(value, -torch.inf).amax(dim=1).to(domains.value.dtype)
        best = torch.maximum(domains.value, least)
        warm = starting_betas(self.guide.layout, record, domains.alpha, candidates)
        domains = replace(domains, candidates=candidates, warm=warm, value=best)
        # 4. The network itself, where the bounds are attained.
        self._try_minimisers(rows.to(network.dtype), lines)
        # 5. A line that bounds the row is a constraint on what may violate: it cuts the domain.
        if is_proof and self.root.clipper is not None:
            domains, is_left = self._cut(domains, lines, value)
            proved |= ~is_left
        return self._still_open(domains, ~proved)

    def _candidates_of_signs(self, domains: Domains) -> Tensor:
        """Neurons on which the arguments of decided neurons depend: where a decision has made the
        row a constant, only a contradiction between decisions can close the domain."""
        record: dict[str, Tensor] = {}
        network, bounds = self.guide.network, self.guide_bounds(domains)
        unit = replace(self.multipliers(domains), beta=torch.ones_like(domains.beta))
        backward = unit.backward(network, bounds, None, record)
        row_lines(
            network, self._goal(domains, self.rows(domains).to(network.dtype), 0.0)[0], backward
        )
        scores = triangle_scores(self.guide.layout, bounds, record, domains.split)
        return torch.cat([best_candidates(s, _CANDIDATES) for s in scores], dim=1)

    def _try_minimisers(self, rows: Rows, lines: Lines) -> None:
        """Where the bound of each domain is attained, and in the middle of a box that is its
        own."""
        points = claims.corner(lines.coefficient[:, 0], rows.x_lower, rows.x_upper)
        if self.root.clipper is not None:
            points = torch.cat([points, (rows.x_lower + rows.x_upper) / 2])
        self.trials.run(self.guide.network, rows, points)

    def _goal(self, domains: Domains, rows: Rows, gamma: float) -> tuple[Rows, Tensor | None]:
        """The one row per domain that is bounded, and the rounding error of forming it (None for a
        guide)."""
        if not self.has_joint_rows:
            return rows, None
        scales, dtype = self.root.enclosure.scales, rows.C.dtype
        outputs = torch.cat([scales[name].flatten() for name in self.root.proof.graph.outputs])
        mix = domains.mix.to(dtype)
        error = rows.mixing_error(mix, outputs.to(dtype), gamma) if gamma else None
        return rows.mixed(mix), error

    def _cut(self, domains: Domains, lines: Lines, value: Tensor) -> tuple[Domains, Tensor]:
        """Boxes and neuron bounds on the halfspaces where the rows' lines are at most zero;
        ``[B]`` says which domains stay feasible."""
        clipper = self.root.clipper
        assert clipper is not None
        yes = torch.ones(len(domains), dtype=torch.bool, device=value.device)
        region = Region(domains.x_lower, domains.x_upper, *self.neuron_bounds(domains), yes)
        if value.shape[1] == 1:  # before the boxes shrink: ``value`` is the least over them as is
            region = clipper.within_halfspace(region, lines.coefficient[:, 0], value[:, 0])
        region = clipper.cut_rows(region, lines.coefficient, value)
        return _narrowed(domains, region), region.feasible

    # -- guesses -----------------------------------------------------------------------------------

    def quick_bound(self, splits: Domains, parents: Bounds, width: int) -> Tensor:
        """Values ``[B K]`` of trial splits with the multipliers as they are; ``parents`` bound the
        ``B`` domains split, ``width`` = K trials each."""
        parts = []
        step = self.fitting(len(splits))
        network, layout = self.guide.climber, self.guide.layout
        with torch.no_grad():
            for where in torch.split(torch.arange(len(splits), device=splits.case.device), step):
                part = splits.select(where)
                bounds = layout.split_bounds(layout.gathered(parents, where // width), part.split)
                goal, _ = self._goal(part, self.rows(part).to(network.dtype), 0.0)
                backward = self.multipliers(part).backward(network, bounds)
                parts.append(bound_rows(network, goal, backward, 0.0).amax(dim=1))
        return torch.cat(parts)

    def seconds(self, domains: Domains) -> float:
        """What a few steps of ascent in the guide take, the better of two measurements."""
        rows, bounds = self.rows(domains), self.guide_bounds(domains)
        times = []
        for _ in range(2):
            watch = Stopwatch()
            ascend(self.guide.climber, rows, bounds, self.multipliers(domains), Ascent(3))
            times.append(watch.seconds)
        return min(times)


def bounder_of(
    root: Root, guide: Guide, trials: Trials, budget: Budget, recorder: Recorder | None = None
) -> DomainBounder:
    """A bounder with linear programs where they help: several rows over one hidden layer of few
    neurons. Raises ``ResourceError`` where those need a package that is not installed."""
    bounder = DomainBounder(root, guide, trials, budget, recorder)
    clipper = root.clipper
    if clipper is None or not bounder.has_joint_rows or guide.network is not root.proof:
        return bounder
    shallow = shallow_network(root.proof, root.layout, clipper.last, clipper.rest, root.rows.rhs)
    return bounder if shallow is None else replace(bounder, leaf_solver=LeafSolver(shallow))


def _narrowed(domains: Domains, region: Region) -> Domains:
    return replace(
        domains, x_lower=region.x_lower, x_upper=region.x_upper, low=region.low, up=region.up
    )
