"""Exact linear programs for domains of networks with one hidden ReLU layer (HiGHS).

In a domain the violation set is relaxed to ``x`` in the box, ``z_j`` in the triangle of its ReLU,
all rows and all split constraints. The elastic program

    minimise s   subject to   row_k(z, x) <= s  for every row,   -sign_j a_j(x) <= s  for every
    split,   triangles

has a positive optimum exactly when that relaxation is empty. Its dual multipliers are the mixture
of rows, the betas and (through the two lower sides of each triangle) the alphas with which the
backward pass reaches the same value. So the program only *finds* parameters: what excludes a domain
is still the float64 pass with rounding error. Its primal point is a candidate for a counterexample.

Legend: ``N`` neurons, ``S`` rows, ``n`` inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bitcrown.bounds.claims import is_active, is_unstable
from bitcrown.bounds.crown import Backward
from bitcrown.bounds.layout import Layout
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.search.linear_program import LinearProgram
from bitcrown.search.neurons.domains import Domains

_PROGRAMS = 16
"""Programs solved per batch of domains: a program costs a millisecond, propagation of a domain a
fraction of that."""


@dataclass(frozen=True)
class ShallowNetwork:
    """``a = W x + b [N]`` and rows ``c relu(a) + d x <= limit``: ``c [P, S, N]``, ``d [P, S, n]``,
    ``limit [P, S]``."""

    W: np.ndarray
    b: np.ndarray
    c: np.ndarray
    d: np.ndarray
    limit: np.ndarray


@dataclass(frozen=True)
class LeafSolution:
    """Multipliers found for one domain, the point where the program ends, and the neuron it
    violates most (or -1)."""

    alpha: np.ndarray
    beta: np.ndarray
    mix: np.ndarray
    x: np.ndarray
    neuron: int
    optimum: float


def shallow_network(
    network: Network, layout: Layout, last: Tensor | None, rest: Tensor | None, rhs: Tensor
) -> ShallowNetwork | None:
    """The explicit form, or None where a ReLU operand is not affine in the inputs or the rows see
    anything else."""
    if last is None or rest is None or layout.n_alphas != layout.n_neurons:
        return None
    weights, offsets = [], []
    for name in layout.neuron_at:
        node = network.graph.nodes[name]
        seed = torch.eye(node.size, dtype=network.dtype, device=network.device).reshape(
            1, node.size, *node.shape
        )
        try:
            lines = Backward(network, {}).run({name: seed})
        except KeyError:  # a nonlinear node on the way: no relaxation was given for any
            return None
        weights.append(lines.coefficient[0])
        offsets.append(lines.constant[0])
    zeros = np.zeros((*rhs.shape, network.graph.n_inputs))
    limit = (rhs - rest).cpu().numpy()
    return ShallowNetwork(
        torch.cat(weights).cpu().numpy(),
        torch.cat(offsets).cpu().numpy(),
        last.cpu().numpy(),
        zeros,
        limit,
    )


def snapped(x: np.ndarray, low: np.ndarray, up: np.ndarray) -> np.ndarray:
    """``x`` with coordinates that all but touch an end of the box put on it."""
    near = 1e-6 * (up - low)
    to_low, to_up = x - low, up - x
    return np.where(to_low < near, low, np.where(to_up < near, up, x))


class LeafSolver:
    """Solves the elastic program of one domain at a time. Raises ``ResourceError`` if highspy is
    not installed."""

    def __init__(self, net: ShallowNetwork) -> None:
        self.net, self.program = net, LinearProgram()

    def assign(
        self, domains: Domains, low: np.ndarray, up: np.ndarray, budget: Budget
    ) -> tuple[Domains, list[np.ndarray]]:
        """``domains`` with multipliers and branching neuron as the programs say, and points where a
        violation is possible. ``low``/``up [B or 1, N]`` are the neuron bounds.

        Domains beyond ``_PROGRAMS``, or left when time is up, stay as they are.
        """
        points = []
        alpha, beta, mix = (part.clone() for part in (domains.alpha, domains.beta, domains.mix))
        candidates = domains.candidates.clone()
        for i in range(min(len(domains), _PROGRAMS)):
            if budget.is_expired():
                break
            box = domains.x_lower[i].cpu().numpy(), domains.x_upper[i].cpu().numpy()
            row = min(i, len(low) - 1)
            found = self.solve(
                int(domains.case[i]), *box, low[row], up[row], domains.split[i].cpu().numpy()
            )
            if found is None:
                continue
            alpha[i, 0] = torch.from_numpy(found.alpha)
            beta[i] = torch.from_numpy(found.beta)
            mix[i] = torch.from_numpy(found.mix)
            candidates[i] = -1
            candidates[i, 0] = found.neuron
            if found.optimum <= 1e-6:
                points.append(found.x)
        found_all = replace(domains, alpha=alpha, beta=beta, mix=mix, candidates=candidates)
        return found_all, points

    def solve(
        self,
        case: int,
        x_lower: np.ndarray,
        x_upper: np.ndarray,
        low: np.ndarray,
        up: np.ndarray,
        split: np.ndarray,
    ) -> LeafSolution | None:
        """The program of one domain; ``low``/``up [N]`` are its neuron bounds. None without
        optimum."""
        matrix, upper, unstable, decided, used = self._program(case, low, up, split)
        n, k = len(x_lower), len(unstable)
        lower_col = np.concatenate([x_lower, np.zeros(k), [-1e6]])
        upper_col = np.concatenate([x_upper, up[unstable], [1e6]])
        found = self.program.least(matrix, upper, lower_col, upper_col)
        if found is None:
            return None
        point, row_dual, col_dual = found
        row_dual = np.maximum(-row_dual, 0)
        counts = np.cumsum([used.sum(), len(decided), k])
        mix, beta, alpha = np.zeros(len(used)), np.zeros(len(low)), np.zeros(len(low))
        mix[used] = row_dual[: counts[0]]
        beta[decided] = row_dual[counts[0] : counts[1]]
        through, floor = row_dual[counts[1] : counts[2]], np.maximum(col_dual[n : n + k], 0)
        total = through + floor
        alpha[unstable] = np.divide(through, total, out=np.full(k, 0.5), where=total > 1e-12)
        x = point[:n]
        gap = point[n : n + k] - np.maximum(self.net.W[unstable] @ x + self.net.b[unstable], 0)
        neuron = int(unstable[gap.argmax()]) if k else -1
        return LeafSolution(alpha, beta, mix, x, neuron, float(point[-1]))

    def _program(
        self, case: int, low: np.ndarray, up: np.ndarray, split: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """``matrix (x, z, s) <= upper``, the unstable and the split neurons, and which rows are
        used."""
        # Stable neurons are no variables: active ones are W x + b, inactive ones 0.
        net = self.net
        unstable = np.nonzero(is_unstable(torch.from_numpy(low), torch.from_numpy(up)).numpy())[0]
        active = np.nonzero(is_active(torch.from_numpy(low)).numpy())[0]
        k = len(unstable)
        c = net.c[case]
        used = np.isfinite(net.limit[case])
        # c z + d x <= limit + s
        rows_x = net.d[case] + c[:, active] @ net.W[active]
        rows = np.concatenate([rows_x, c[:, unstable], -np.ones((len(c), 1))], axis=1)[used]
        rows_up = (net.limit[case] - c[:, active] @ net.b[active])[used]
        # -sign (W x + b) <= s
        decided = np.nonzero(split)[0]
        sign = split[decided].astype(np.float64)[:, None]
        splits = np.concatenate(
            [-sign * net.W[decided], np.zeros((len(decided), k)), -np.ones((len(decided), 1))], 1
        )
        splits_up = (sign[:, 0]) * net.b[decided]
        eye, zero = np.eye(k), np.zeros((k, 1))
        above = np.concatenate([net.W[unstable], -eye, zero], axis=1)  # a - z <= 0
        slope = up[unstable] / (up[unstable] - low[unstable])
        chord = np.concatenate(
            [-slope[:, None] * net.W[unstable], eye, zero], axis=1
        )  # z <= slope (a - low)
        chord_up = slope * (net.b[unstable] - low[unstable])
        matrix = np.concatenate([rows, splits, above, chord])
        upper = np.concatenate([rows_up, splits_up, -net.b[unstable], chord_up])
        return matrix, upper, unstable, decided, used
