"""Linear programs over variables of which the last one is minimised (HiGHS, one thread).

Both users ask how far a set of rows must give way, ``min s``: leaves of the neuron search, and
leaves of certificates. What comes back are floats that propose multipliers; nobody believes them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bitcrown.errors import ResourceError


class Optimum(NamedTuple):
    """``point [n]``, and duals of the rows ``[R]`` and of the columns ``[n]``."""

    point: np.ndarray
    row_dual: np.ndarray
    col_dual: np.ndarray


class LinearProgram:
    """A solver that is used again. Raises ``ResourceError`` if highspy is not installed."""

    def __init__(self) -> None:
        try:
            import highspy
        except ImportError as error:
            raise ResourceError(
                "linear programs need the package highspy; install_tool.sh installs it"
            ) from error
        self.highspy = highspy
        self.solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
        self.solver.setOptionValue("output_flag", False)
        self.solver.setOptionValue("threads", 1)

    def least(
        self, matrix: np.ndarray, upper: np.ndarray, low: np.ndarray, up: np.ndarray
    ) -> Optimum | None:
        """Minimise the last of ``x [n]`` where ``matrix x <= upper [R]`` and ``low <= x <= up``;
        None where there is no optimum. Rows without a finite limit say nothing."""
        highspy, kept = self.highspy, np.isfinite(upper)
        part, lp = matrix[kept], highspy.HighsLp()
        lp.num_row_, lp.num_col_ = part.shape
        cost = np.zeros(part.shape[1])
        cost[-1] = 1.0
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, low, up
        lp.row_lower_, lp.row_upper_ = np.full(len(part), -highspy.kHighsInf), upper[kept]
        row, column = np.nonzero(part)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        ends = np.cumsum(np.bincount(row, minlength=len(part)))
        lp.a_matrix_.start_ = np.concatenate([[0], ends]).astype(np.int32)
        lp.a_matrix_.index_, lp.a_matrix_.value_ = column.astype(np.int32), part[row, column]
        self.solver.passModel(lp)
        self.solver.run()
        if self.solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        found = self.solver.getSolution()
        duals = np.zeros(len(matrix))
        duals[kept] = np.array(found.row_dual)
        return Optimum(np.array(found.col_value), duals, np.array(found.col_dual))
