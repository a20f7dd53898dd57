"""Proofs for images: plain CROWN for a batch of boxes, then the verifier's own search for what that
leaves open.

Nothing here bounds anything by itself. Layers are bounded by ``LayerBounder`` in float64 with
rounding error, many images in one pass where that is cheaper; the last rows, alpha-CROWN and branch
and bound are those of ``search``, which start from these bounds. An image is proved when every
other label is excluded on its box.

*Plain CROWN* means: interval and CROWN bounds of every layer with the default slopes, and nothing
else; so zonotopes, which the verifier would add for a single box, stay out of it.

Legend: ``B`` images, ``K`` classes, ``n`` flat network inputs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bitcrown.bounds.crown import relaxations_of
from bitcrown.bounds.intermediate import Enclosure, LayerBounder
from bitcrown.bounds.layout import Layout
from bitcrown.budget import Budget
from bitcrown.check.replay import RuntimeReplay
from bitcrown.errors import BudgetExpired, SettingsError
from bitcrown.evaluation.boxes import ImageBoxes
from bitcrown.model.execute import Network
from bitcrown.search.neuron_decision import decide_from_root
from bitcrown.search.neurons.guide import guide_network
from bitcrown.search.neurons.root import root_of, rows_of_cases
from bitcrown.search.strategy import Run
from bitcrown.settings import Settings
from bitcrown.verdict import Status, Verdict

NONE, CROWN, ALPHA, SEARCH = "none", "crown", "alpha", "bab"
LEVELS = (CROWN, ALPHA, SEARCH)
"""How far bounds go; each level begins with what the one before left open."""
NEURONS_A_PASS = {"cpu": 8192, "cuda": 1 << 19}
"""Neurons of all boxes of one pass. A pass bounds each neuron that is unstable in any box for all
boxes: that costs more than it saves as soon as single boxes fill the processor (measured: 1.5 times
as long for 4 images of 6,244 neurons on one core)."""
MOST_IMAGES = 64


@dataclass(frozen=True)
class Proof:
    """What became of one image: ``margin`` is the least CROWN bound of (label - other),
    ``proved_by`` a level or empty.

    Integer networks have no CROWN bound (None).

    ``witness [n]`` is a network input that the search found to violate, if it did.
    """

    margin: float | None
    proved_by: str
    seconds: dict[str, float]
    status: str = ""
    decided_by: str = ""
    detail: str = ""
    counters: dict[str, Any] = field(default_factory=dict)
    witness: np.ndarray | None = None


class ImageProver(Protocol):
    """What proves images, whatever the network is."""

    def images_a_pass(self) -> int: ...

    def prove(
        self, images: np.ndarray, labels: np.ndarray, is_broken: np.ndarray
    ) -> list[Proof]: ...


class Prover:
    """Bounds of one network on images; ``seconds`` is for all bounds of an image, on the wall or of
    computing.

    Plain CROWN and one ascent of alpha-CROWN always run to their end; the search has what they
    leave. ``replay``: an open one of the file, where there is one; else the first search opens it.
    """

    def __init__(
        self,
        proof: Network,
        boxes: ImageBoxes,
        path: Path,
        settings: Settings,
        levels: tuple[str, ...],
        seconds: float,
        counts_cpu: bool = False,
        replay: RuntimeReplay | None = None,
    ) -> None:
        self.replay = replay
        self.proof, self.boxes, self.path, self.settings = proof, boxes, path, settings
        self.levels, self.seconds, self.counts_cpu = levels, seconds, counts_cpu
        self.clock = time.process_time if counts_cpu else time.monotonic
        self.guide = guide_network(proof)
        self.memory = settings.memory_bytes()
        self.classes = proof.graph.n_outputs
        self.neurons = sum(proof.graph.nodes[name].size for name in Layout(proof).operands)

    def images_a_pass(self) -> int:
        """How many images are bounded together."""
        budget = NEURONS_A_PASS["cuda" if self.proof.device.type == "cuda" else "cpu"]
        return max(1, min(MOST_IMAGES, budget // max(1, self.neurons)))

    def prove(self, images: np.ndarray, labels: np.ndarray, is_broken: np.ndarray) -> list[Proof]:
        """One ``Proof`` an image ``[B, C, H, W]``; broken ones are only bounded by CROWN (for the
        check)."""
        lower, upper = self.boxes.outward(images)
        started = self.clock()
        with torch.no_grad():
            bounder = LayerBounder(self.proof, self.memory // 8)
            enclosure = bounder.run(self.proof.tensor(lower), self.proof.tensor(upper), known={})
        each = (self.clock() - started) / len(images)
        return [
            self._finish(
                images[k],
                int(labels[k]),
                bool(is_broken[k]),
                self._slice(enclosure, k),
                lower[k],
                upper[k],
                each,
            )
            for k in range(len(images))
        ]

    def _slice(self, enclosure: Enclosure, k: int) -> Enclosure:
        """The bounds of box ``k`` alone; magnitudes that serve all boxes serve one."""
        bounds = {
            name: (low[k : k + 1] if len(low) > 1 else low, up[k : k + 1] if len(up) > 1 else up)
            for name, (low, up) in enclosure.bounds.items()
        }
        return Enclosure(bounds, enclosure.scales, relaxations_of(self.proof, bounds))

    def _finish(
        self,
        image: np.ndarray,
        label: int,
        is_broken: bool,
        enclosure: Enclosure,
        lower: np.ndarray,
        upper: np.ndarray,
        root_seconds: float,
    ) -> Proof:
        started = self.clock()
        objective = self.boxes.objective(lower, upper, label, self.classes)
        rows = rows_of_cases(self.proof, objective)
        root = root_of(self.proof, self.guide, rows, enclosure, self.memory)
        margin = float(root.case_value.min())
        seconds = {CROWN: root_seconds + self.clock() - started}
        if not len(root.open_cases()):
            return Proof(margin, CROWN, seconds)
        if is_broken or self.levels == (CROWN,):
            return Proof(margin, "", seconds)
        started = self.clock()
        problem = self.boxes.problem(image, label, self.classes, self.path)
        limit = max(0.0, self.seconds - seconds[CROWN]) if SEARCH in self.levels else 0.0
        limited = Budget.of(limit, self.memory, self.counts_cpu)
        run = Run(problem, self.settings, limited, None, replay=self.replay)
        self.replay = run.replay
        try:
            verdict = decide_from_root(run, root, self.guide, objective, root_seconds)
        except BudgetExpired:
            verdict = run.timeout()
        seconds["search"] = self.clock() - started
        return proof_of(verdict, margin, seconds)


def proof_of(verdict: Verdict, margin: float | None, seconds: dict[str, float]) -> Proof:
    """What the search said about an image (that plain CROWN, with its ``margin``, left open)."""
    proved_by = ""
    if verdict.status is Status.UNSAT:
        proved_by = ALPHA if verdict.decided_by == "alpha-CROWN" else SEARCH
    witness = None
    if verdict.witness is not None:
        parts = [np.asarray(part, np.float64).ravel() for part in verdict.witness.inputs.values()]
        witness = np.concatenate(parts)
    counters = {
        key: value for key, value in verdict.counters.items() if isinstance(value, int | float)
    }
    return Proof(
        margin,
        proved_by,
        seconds,
        verdict.status.value,
        verdict.decided_by,
        verdict.detail or str(verdict.reason),
        counters,
        witness,
    )


def parse_levels(words: str) -> tuple[str, ...]:
    """``crown,alpha,bab`` to levels in order; naming one means all before it; ``none``. Raises
    ``SettingsError``."""
    if words.strip() == NONE:
        return ()
    names = [word.strip() for word in words.split(",") if word.strip()]
    unknown = [name for name in names if name not in LEVELS]
    if unknown or not names:
        raise SettingsError(
            f"--bounds takes none, or {', '.join(LEVELS)} separated by commas, not {words!r}"
        )
    return LEVELS[: 1 + max(LEVELS.index(name) for name in names)]
