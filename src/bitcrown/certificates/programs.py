"""Linear programs for leaves of certificates: exact multipliers where ascent does not reach them
(HiGHS).

With a variable ``h_j`` for every ReLU that is undecided at the root, all operands are affine in
``(x, h)``. In a domain the elastic program

    minimise s   subject to   row_k <= limit_k + s,   -sign_j z_j <= s for decided neurons,   h_j
    between its two lines

has a positive optimum exactly if no point of the relaxation violates the case. Its dual multipliers
are the weights of the rows, the betas, and through the two lower sides of each triangle the slopes
with which backward substitution reaches the same value (Salman et al., "A Convex Relaxation
Barrier", 2019); that substitution, in the checker, is what proves. So a linear program needs no
format of its own.

Legend: ``V`` variables (inputs, then ``h``), ``N`` neurons of a ReLU, ``S`` rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bitcrown.check.certificates.floats.bounds import Bounder, OperandBounds
from bitcrown.check.certificates.floats.nodes import FloatArray, InputNode, ReluNode
from bitcrown.check.certificates.floats.property import Group
from bitcrown.check.certificates.floats.steps import Leaves
from bitcrown.search.linear_program import LinearProgram

MAX_VARIABLES = 1000
_ELASTIC = 1e6
"""Bound on ``s``."""


class Solution(NamedTuple):
    """Choices for one domain, and by ReLU how far ``h`` is from the ReLU of its operand
    ``[1, N]``."""

    leaves: Leaves
    gaps: dict[int, FloatArray]


class Programs:
    """Solves domains of one case. Raises ``ResourceError`` if highspy is not installed."""

    def __init__(self, bounder: Bounder, group: Group, bounds: OperandBounds) -> None:
        self.program = LinearProgram()
        self.bounder, self.group, self.bounds = bounder, group, bounds
        self.open = {
            r: np.nonzero((low[0] < 0) & (up[0] > 0))[0] for r, (low, up) in bounds.items()
        }
        n = bounder.network.n_inputs
        self.start = dict(
            zip(self.open, np.cumsum([n, *map(len, self.open.values())])[:-1], strict=True)
        )
        self.variables = n + sum(map(len, self.open.values()))
        self.is_ready = False

    def _affine(self) -> None:
        """Operands of open neurons and the rows as affine functions of the variables: coefficients
        and constants."""
        values: list[FloatArray] = []
        count = self.variables + 1  # the last row carries the constants
        operands, offsets = [], []
        for number, node in enumerate(self.bounder.network.nodes):
            if isinstance(node, InputNode):
                values.append(np.eye(count, node.size))
            elif isinstance(node, ReluNode):
                z, index = values[node.sources[0]], self.open[number]
                result = np.where(self.bounds[number][0][0] >= 0, z, 0.0)
                result[:, index] = 0.0
                result[self.start[number] + np.arange(len(index)), index] = 1.0
                operands.append(z[:-1, index].T)
                offsets.append(z[-1, index])
                values.append(result)
            else:
                result = node.forward([values[source] for source in node.sources])
                result[-1] += node.bias
                values.append(result)
        self.is_ready = True
        self.z = np.concatenate([np.zeros((0, self.variables)), *operands])
        self.z_offset = np.concatenate([np.zeros(0), *offsets])
        y = values[self.bounder.network.output]
        rows = y @ self.group.C[0].T
        rows[: self.group.D.shape[2]] += self.group.D[0].T
        self.rows, self.limit = rows[:-1].T, self.group.limit[0] - rows[-1]

    def solve(self, leaves: Leaves) -> Solution | None:
        """The program of one domain (its signs are read); None without an optimum."""
        if not self.is_ready:
            self._affine()
        n, k = self.bounder.network.n_inputs, len(self.z)
        sign = np.concatenate(
            [np.zeros(0), *(leaves.signs[r][0, index] for r, index in self.open.items())]
        )
        low, up = (
            np.concatenate([np.zeros(0), *(self.bounds[r][e][0, i] for r, i in self.open.items())])
            for e in (0, 1)
        )
        done = np.nonzero(sign)[0]
        slope = up / (up - low)
        slope, shift = np.where(sign > 0, 1.0, slope), np.where(sign != 0, 0.0, -slope * low)
        eye = np.concatenate([np.zeros((k, n)), np.eye(k)], axis=1)
        matrix = np.concatenate(
            [
                self.rows,
                -sign[done, None] * self.z[done],
                self.z - eye,
                eye - slope[:, None] * self.z,
            ]
        )
        elastic = np.zeros((len(matrix), 1))
        elastic[: len(self.rows) + len(done)] = -1.0
        below = np.where(sign < 0, np.inf, -self.z_offset)
        upper = np.concatenate(
            [self.limit, sign[done] * self.z_offset[done], below, shift + slope * self.z_offset]
        )
        upper[len(self.rows) + len(done) + k :][sign < 0] = np.inf
        h_low, h_up = np.where(sign > 0, -np.inf, 0.0), np.where(sign < 0, 0.0, np.inf)
        box = self.group.box
        found = self.program.least(
            np.concatenate([matrix, elastic], axis=1),
            upper,
            np.concatenate([box.lower[0], h_low, [-_ELASTIC]]),
            np.concatenate([box.upper[0], h_up, [_ELASTIC]]),
        )
        return None if found is None else self._solution(leaves, found, sign, done)

    def _solution(
        self,
        leaves: Leaves,
        found: tuple[FloatArray, FloatArray, FloatArray],
        sign: FloatArray,
        done: Any,
    ) -> Solution:
        point, row_dual, col_dual = found
        n, k, s = self.bounder.network.n_inputs, len(self.z), len(self.rows)
        dual = np.maximum(-row_dual, 0.0)
        through, floor = (
            dual[s + len(done) : s + len(done) + k],
            np.maximum(col_dual[n : n + k], 0.0),
        )
        total = through + floor
        alpha = np.where(total > 1e-12, through / np.maximum(total, 1e-12), 0.5)
        beta = np.zeros(k)
        beta[done] = dual[s : s + len(done)] * sign[done]
        gap = point[n : n + k] - np.maximum(self.z @ point[:-1] + self.z_offset, 0.0)
        gap = np.where(sign == 0, np.abs(gap) + 1e-9, 0.0)
        slopes, betas, gaps = (
            {r: np.zeros_like(value) for r, value in leaves.signs.items()} for _ in range(3)
        )
        for r, index in self.open.items():
            where = slice(self.start[r] - n, self.start[r] - n + len(index))
            slopes[r][0, index], betas[r][0, index], gaps[r][0, index] = (
                alpha[where],
                beta[where],
                gap[where],
            )
        return Solution(Leaves(slopes, leaves.signs, betas, dual[None, :s]), gaps)
