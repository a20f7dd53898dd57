"""Exact integer networks under attack and proof: every number is an integer, and the image moves on
the lattice.

A network whose input is integers (``.h5`` files of the AAAI 2021 benchmark, integer ONNX files) is
attacked in whole levels: the ball of radius eps around an 8-bit image is the levels at most
``floor(255 eps)`` away, and whatever point an attack proposes is rounded to a whole one, which
stays inside. A network that quantizes its own float input (QDQ) is attacked on pixels, as a float
network is, with the gradients of its reading as floats, and evaluated in its integers; its proofs
are the verifier's own verdicts. Whole inputs have no gradients: suites fall back to their attacks
without.

A label is right if it is the first of the largest outputs, the rule of the benchmark and of argmax.
With equal output scales the logits given to attacks are ``K o_k - k``: their order is that rule,
ties included.

Legend: ``B`` images, ``N`` flat inputs, ``K`` classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitcrown.attacks.images.bpda import SubstituteGradient, bpda
from bitcrown.attacks.images.victim import Classifier
from bitcrown.budget import Budget
from bitcrown.errors import ModelError, SettingsError, UnsupportedError
from bitcrown.evaluation.attacking import Judgement
from bitcrown.evaluation.proving import SEARCH, Proof
from bitcrown.evaluation.subjects import Space
from bitcrown.model.classifier import GraphClassifier, ImageLayout, Shape, read_classifier
from bitcrown.model.file import NetworkFile
from bitcrown.quant.bounds.intervals import Program
from bitcrown.quant.formats.fixed_point import read_h5
from bitcrown.quant.formats.onnx_file import read_onnx
from bitcrown.quant.network.entry import EvenlySpaced, WholeEntry
from bitcrown.quant.network.graph import Conv as IntegerConv
from bitcrown.quant.network.graph import Dense, IntegerNetwork, Ints
from bitcrown.quant.query import robustness_query
from bitcrown.quant.search.decide import decide_query
from bitcrown.verdict import Status

_EXACT_FLOAT32 = 1 << 24
_MEMORY = 4 << 30
_CHECK_SECONDS = 1.0
"""For a proof about an image that is broken already: it must fail, which is usually seen at
once."""


def is_keras(path: Path) -> bool:
    """Whether the file is a fixed-point perceptron in Keras' format, which no other tool runs."""
    return path.suffix in (".h5", ".hdf5")


def is_integer_file(file: NetworkFile) -> bool:
    """Whether the file is read as an exact integer network."""
    return is_keras(file.path) or file.is_quantized


def _input_layout(
    network: IntegerNetwork,
    shape: Shape,
    mean: Sequence[Fraction] | None,
    std: Sequence[Fraction] | None,
    order: str,
) -> ImageLayout:
    """How images become the flat input of ``network``. Raises ``ModelError`` where they do not
    fit."""
    found = network.nodes[0].shape
    channels, rows, columns = shape
    if int(np.prod(found)) != channels * rows * columns:
        raise ModelError(
            f"images of {channels}x{rows}x{columns} do not fit a network input of shape "
            f"{list(found)}"
        )
    if order == "auto":
        order = "hwc" if channels > 1 and tuple(found) == (rows, columns, channels) else "chw"
    return ImageLayout.of(shape, mean, std, order)


class IntegerSubject:
    """An exact integer network; see ``subjects`` for what the methods mean."""

    kind, is_grouped = "integer", False
    device = torch.device("cpu")

    def __init__(
        self,
        file: NetworkFile,
        shape: Shape,
        mean: tuple[Fraction, ...] | None = None,
        std: tuple[Fraction, ...] | None = None,
        order: str = "auto",
    ) -> None:
        path = file.path
        self.file, self.name, self.digest = file, path.stem, file.digest
        self.network = read_h5(path) if is_keras(path) else read_onnx(file)
        self.layout = _input_layout(self.network, shape, mean, std, order)
        self.program = Program(self.network)
        self.classes = len(self.network.exit.low)
        self.space, self.low = Space(), 0
        self.obstacle, self._slopes = "", None
        entry = self.network.entry
        if isinstance(entry, WholeEntry):
            if mean is not None or std is not None:
                raise SettingsError(
                    f"{path.name} takes the whole levels of pixels: leave --mean and --std out"
                )
            self.low = int(entry.low.min())
            self.space = Space(int(entry.high.max()) - self.low)
        else:
            self._slopes = self._float_reading(shape, mean, std)
        self._ranks = self._has_one_scale()

    def _float_reading(
        self, shape: Shape, mean: Sequence[Fraction] | None, std: Sequence[Fraction] | None
    ) -> GraphClassifier | None:
        """The network with floats between its quantizers, which has gradients; None where there is
        no such reading."""
        try:
            return read_classifier(self.file, shape, mean, std, self.layout.order)
        except (ModelError, UnsupportedError):
            return None

    def _has_one_scale(self) -> bool:
        """Whether output integers can be compared with each other, exactly in float32 with room for
        their places."""
        values, low = self.network.exit.values, self.network.exit.low
        first = values[0]
        same = isinstance(first, EvenlySpaced) and all(each == first for each in values)
        reach = max(abs(int(low[0])), abs(int(low[0]) + len(first))) + 1
        return same and bool((low == low[0]).all()) and reach * self.classes < _EXACT_FLOAT32

    @property
    def has_gradients(self) -> bool:
        return self._slopes is not None

    @property
    def is_whole(self) -> bool:
        """Whether the input is integers, so that images move in whole levels."""
        return isinstance(self.network.entry, WholeEntry)

    def integers(self, points: Tensor) -> Ints:
        """``points [B, C, H, W]`` to input integers ``[B, N]``."""
        if not self.space.levels:
            return self.network.entry.integers(self.layout.to_inputs(points.cpu()).numpy())
        whole: Ints = np.rint(self.layout.flat(points.cpu()).numpy()).astype(np.int64)
        return whole + self.low

    def classifier(self, rule: str) -> Classifier:
        if self._slopes is not None:
            return SubstituteGradient(self._logits, bpda(self._slopes, rule or "straight-through"))
        if rule:
            raise SettingsError(
                "an exact integer network has no gradients, so there is no BPDA rule for it"
            )
        return self._logits

    def _logits(self, points: Tensor) -> Tensor:
        outputs = self.program.values(self.integers(points.detach()))[self.program.output]
        if self._ranks:
            return torch.from_numpy(
                (outputs * self.classes - np.arange(self.classes)).astype(np.float32)
            )
        return torch.from_numpy(self._values(outputs).astype(np.float32))

    def _values(self, outputs: Ints) -> np.ndarray:
        """Real values ``[B, K]`` of output integers."""
        columns = []
        for k, (values, low) in enumerate(
            zip(self.network.exit.values, self.network.exit.low.tolist(), strict=True)
        ):
            columns.append([float(values[place]) for place in (outputs[:, k] - low).tolist()])
        return np.array(columns, dtype=np.float64).T

    def judge(self, images: np.ndarray, labels: np.ndarray) -> list[Judgement]:
        """By the original file in onnxruntime where there is one, else by the integers
        themselves."""
        points = self.space.points(images)
        if self.network.runtime is None:
            rows = self._values(self.network.evaluate(self.integers(points)))
        else:
            levels = self.space.levels
            inputs = self.integers(points) if levels else self.layout.to_inputs(points).numpy()
            rows = self.network.runtime(inputs).astype(np.float64)
        return [
            Judgement(row, int(label), first_wins=True)
            for row, label in zip(rows, labels, strict=True)
        ]

    def facts(self) -> Mapping[str, Any]:
        layers = [node for node in self.network.nodes if isinstance(node, Dense | IntegerConv)]
        return {
            "parameters": sum(node.weight.size + node.bias.size for node in layers),
            "layers": len(layers),
            **{
                name.replace(" ", "_"): value
                for name, value in self.network.facts.items()
                if name != "layers"
            },
        }


class IntegerProver:
    """Decides robustness of images on the lattice: staircase bounds and branch and bound, all in
    integers."""

    def __init__(
        self,
        subject: IntegerSubject,
        eps: Fraction,
        seconds: float,
        seed: int,
        counts_cpu: bool = False,
    ) -> None:
        self.subject, self.seconds, self.seed, self.counts_cpu = subject, seconds, seed, counts_cpu
        self.radius = int(eps * subject.space.levels)

    def images_a_pass(self) -> int:
        return 1

    def prove(self, images: np.ndarray, labels: np.ndarray, is_broken: np.ndarray) -> list[Proof]:
        """One ``Proof`` an image; broken ones get a moment only (for the check)."""
        points = self.subject.space.points(images)
        rows = self.subject.integers(points)
        return [
            self._prove(row, int(label), bool(gone))
            for row, label, gone in zip(rows, labels, is_broken, strict=True)
        ]

    def _prove(self, row: Ints, label: int, is_broken: bool) -> Proof:
        started = time.monotonic()
        limit = min(_CHECK_SECONDS, self.seconds) if is_broken else self.seconds
        query = robustness_query(self.subject.network, row, label, self.radius)
        budget = Budget.of(limit, _MEMORY, self.counts_cpu)
        found = decide_query(query, budget, self.seed, program=self.subject.program)
        proved_by = SEARCH if found.status is Status.UNSAT else ""
        witness = None
        if found.witness is not None:
            levels = (found.witness - self.subject.low).astype(np.float64)
            witness = levels / self.subject.space.levels
        counters = {
            key: value for key, value in found.counters.items() if isinstance(value, int | float)
        }
        seconds = {"search": time.monotonic() - started}
        status, detail = found.status.value, found.detail or str(found.reason)
        return Proof(None, proved_by, seconds, status, found.decided_by, detail, counters, witness)
