"""One input and a set around it: does the network give every input of the set the same class?

The set is a box: each value ``v_i`` of the input may move by its own radius, within the limits that
values have,

    max(v_i - r_i, low) <= v'_i <= min(v_i + r_i, high),

so a radius for all, a map of radii and a mask (zero outside a patch) are the same thing. A ball in
L2 or L1 lies in the box of its radius: a proof for the box is one for the ball, and a
counterexample counts if it lies in the ball. What a network sees is ``(v' - mean) / std``; the box
of the proof is that of ``ImageBoxes``, with ends of fifteen decimals, so that a file of it asks the
very same.

Legend: ``C`` channels, ``H`` rows, ``W`` columns, ``n`` flat inputs, ``K`` classes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitcrown.budget import Budget
from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.witness import inward_box
from bitcrown.errors import ModelError, SettingsError
from bitcrown.evaluation.attacking import Judgement
from bitcrown.evaluation.boxes import ImageBoxes
from bitcrown.evaluation.exporting import exported, lit
from bitcrown.evaluation.integers import IntegerProver, IntegerSubject, is_keras
from bitcrown.evaluation.samples import Sample, channels_as_wanted
from bitcrown.model.classifier import ImageLayout, Shape, layout_for
from bitcrown.model.file import NetworkFile
from bitcrown.model.input_shape import image_extents, with_input_shape
from bitcrown.model.runtime_trial import require_runtime
from bitcrown.search.strategy import Report, Run, decide
from bitcrown.settings import Settings
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.query import Query
from bitcrown.spec.robustness import NETWORK, decimal_ends, other_label_query
from bitcrown.verdict import Reason, Status, Verdict, Witness

_FLOATS = ("float16", "float32", "float64")
_NARROW = ("uint8", "int8")
_TORCH = (".pt", ".pth", ".pt2", ".ckpt", ".safetensors")


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Radius ``eps`` in ``norm``; ``weights [C, H, W]`` multiply it for each value (1 everywhere
    where None).

    With ``light``, at most (brightness, contrast), it is another set in place of the box:
    ``m + (1 + c)(v - m) + b`` cut to the limits, ``m`` in their middle, ``|b|`` and ``|c|`` within
    the two."""

    eps: Fraction
    norm: str = "Linf"
    weights: tuple[Fraction, ...] | None = None
    light: tuple[Fraction, Fraction] | None = None

    def lit(self, light: tuple[Fraction, Fraction], is_more_asked: bool) -> Neighbourhood:
        """Brightness and contrast in place of the box. Raises ``SettingsError`` where something is
        asked that only a box has."""
        if is_more_asked or self.weights is not None:
            raise SettingsError(
                "brightness and contrast are asked by themselves: without radius, maps, masks and "
                "a property file"
            )
        return Neighbourhood(Fraction(0), light=light)

    def radii(self) -> list[Fraction] | None:
        if self.weights is None:
            return None
        # (Few different weights, many values: each product is made once.)
        products = {weight: weight * self.eps for weight in set(self.weights)}
        return [products[weight] for weight in self.weights]


@dataclass(frozen=True, eq=False)
class FileClassifier:
    """A network file with one input and one output, and how ``sample`` is fed to it."""

    file: NetworkFile
    sample: Sample
    layout: ImageLayout
    classes: int
    dtype: str
    replay: RuntimeReplay = field(repr=False)

    @classmethod
    def of(
        cls,
        file: NetworkFile,
        sample: Sample,
        mean: Sequence[Fraction] | None,
        std: Sequence[Fraction] | None,
        order: str,
    ) -> FileClassifier:
        """Raises ``ModelError`` for another kind of network, or one that ``sample`` does not
        fit."""
        require_runtime(file)
        if len(file.inputs) != 1 or len(file.outputs) != 1:
            names = (", ".join(one.name for one in ends) for ends in (file.inputs, file.outputs))
            raise ModelError(
                f"{file.path.name} has more than one input ({next(names)}) or output "
                f"({next(names)}); a classifier has one of each: choose the scores with --output, "
                "export them alone, or write a property and use verify"
            )
        found, dtype = file.inputs[0].shape, str(file.inputs[0].dtype)
        if found is None or dtype not in _FLOATS:
            raise ModelError(f"{file.path.name} takes {dtype}, so pixels cannot be fed to it")
        values = channels_as_wanted(sample.values, int(np.prod(found)))
        sample = Sample(sample.name, values, sample.limits, sample.is_image, sample.label)
        layout = layout_for(
            found, _shape_of(values), mean, std, order if sample.is_image else "chw"
        )
        inputs = _inputs_of(layout, values)
        name = file.inputs[0].name
        (output,) = file.session.run(None, {name: inputs.reshape(found).astype(dtype)})
        classes = int(np.size(output))
        if classes < 2:
            raise ModelError(
                f"{file.path.name} has one output; a classifier has one for each class: write a "
                "property and use verify"
            )
        zero = [Fraction(0)] * len(inputs)
        query = other_label_query(zero, zero, 0, classes)
        replay = RuntimeReplay(query, {NETWORK: file.path})
        return cls(file, sample, layout, classes, dtype, replay)

    def judge(self, values: np.ndarray, label: int = 0) -> Judgement:
        """What onnxruntime makes of ``values [C, H, W]``."""
        _, outputs = self.replay.run(_inputs_of(self.layout, values))
        return Judgement(outputs[0].astype(np.float64), label, self.file.is_quantized)

    def query(self, around: Neighbourhood, label: int, target: int | None) -> Query:
        """What a counterexample is: an input of the box with another class, or with ``target`` at
        least as large as ``label``."""
        boxes = ImageBoxes(self.layout, around.eps, self.dtype, self.sample.limits)
        ends = decimal_ends(*boxes.exact(self.sample.values, around.radii()))
        return other_label_query(*ends, label, self.classes, self.file.is_quantized, target)

    def decide(
        self,
        around: Neighbourhood,
        label: int,
        target: int | None,
        settings: Settings,
        budget: Budget,
        report: Report | None,
    ) -> tuple[Verdict, np.ndarray | None]:
        """The verdict on the box, and its counterexample as values, moved into the exact set."""
        if around.light is not None:
            return self._decide_light(around.light, label, target, settings, budget, report)
        query = self.query(around, label, target)
        problem = problem_from_query(query, {NETWORK: self.file.path})
        verdict = decide(Run(problem, settings, budget, report, replay=self.replay))
        if verdict.witness is None:
            return verdict, None
        parts = [np.asarray(part, np.float64).ravel() for part in verdict.witness.inputs.values()]
        return verdict, self.values_of(np.concatenate(parts), around)

    def _decide_light(
        self,
        light: tuple[Fraction, Fraction],
        label: int,
        target: int | None,
        settings: Settings,
        budget: Budget,
        report: Report | None,
    ) -> tuple[Verdict, np.ndarray | None]:
        """The same about brightness and contrast: a network of two inputs, whose box is split."""
        if self.dtype != "float32":
            raise ModelError("brightness and contrast need a network that takes float32")
        values, limits = self.sample.values, self.sample.limits
        slopes = np.stack([np.ones_like(values), values - self._middle()])
        ends = () if limits is None else limits
        shape = (*values.shape,)
        channels = (
            np.broadcast_to(np.array([float(one) for one in row], np.float32)[:, None, None], shape)
            for row in (self.layout.mean, self.layout.std)
        )
        low, high = (np.float32(float(end)) for end in ends) if ends else (None, None)
        mean, std = (self._flat(one) for one in channels)
        with tempfile.TemporaryDirectory(prefix="bitcrown-light-") as folder:
            file = lit(
                self.file,
                np.stack([self._flat(one) for one in slopes]),
                self._flat(values),
                Path(folder),
                mean=mean,
                std=std,
                low=low,
                high=high,
            )
            box = decimal_ends([-end for end in light], light)
            first_wins = self.file.is_quantized
            query = other_label_query(*box, label, self.classes, first_wins, target)
            problem = problem_from_query(query, {NETWORK: file.path})
            verdict = decide(Run(problem, settings, budget, report))
        if verdict.witness is None:
            return verdict, None
        parts = [np.asarray(part).ravel() for part in verdict.witness.inputs.values()]
        move = np.concatenate(parts).astype(np.float32)
        found = values + move[0] * slopes[0] + move[1] * slopes[1]
        return verdict, found if low is None else np.clip(found, low, high)

    def _middle(self) -> np.float32:
        limits = self.sample.limits
        return np.float32(0 if limits is None else float((limits[0] + limits[1]) / 2))

    def _flat(self, values: np.ndarray) -> np.ndarray:
        contiguous = torch.from_numpy(np.ascontiguousarray(values)[None])
        result: np.ndarray = self.layout.flat(contiguous).numpy()[0]
        return result

    @property
    def has_gradients(self) -> bool:
        return not self.file.is_quantized

    def values_of(self, inputs: np.ndarray, around: Neighbourhood) -> np.ndarray:
        """The point ``inputs [n]`` of the box as values ``[C, H, W]`` float32, moved into the exact
        set where rounding had led out of it."""
        values = self.sample.values
        point = self.layout.to_images(torch.from_numpy(np.asarray(inputs, np.float64)[None]))[0]
        radii = around.radii() or [around.eps] * values.size
        limits = self.sample.limits
        lower, upper = [], []
        for value, radius in zip(values.ravel().tolist(), radii, strict=True):
            low, high = Fraction(value) - radius, Fraction(value) + radius
            lower.append(low if limits is None else max(low, limits[0]))
            upper.append(high if limits is None else min(high, limits[1]))
        least, most, _ = inward_box(lower, upper, [np.float32] * values.size)
        moved: np.ndarray = np.clip(point.numpy().ravel(), least, most).astype(np.float32)
        return moved.reshape(values.shape)


def _shape_of(values: np.ndarray) -> Shape:
    channels, rows, columns = values.shape
    return channels, rows, columns


def _inputs_of(layout: ImageLayout, values: np.ndarray) -> np.ndarray:
    result: np.ndarray = layout.to_inputs(torch.from_numpy(values[None])).numpy()[0]
    return result


def weights_of(
    sample: Sample, eps_map: np.ndarray | None, mask: np.ndarray | None
) -> tuple[Fraction, ...] | None:
    """A map of radii (relative to ``eps``) and a mask as one weight for each value: ``[H, W]`` for
    all channels, or the shape of the input. Raises ``SettingsError``."""
    if eps_map is None and mask is None:
        return None
    product = np.ones(sample.values.shape)
    for name, array in (("eps-map", eps_map), ("mask", mask)):
        if array is None:
            continue
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all() or (array < 0).any():
            raise SettingsError(f"--{name} needs finite numbers that are not negative")
        try:
            factor = np.broadcast_to(array, sample.values.shape)
        except ValueError as error:
            raise SettingsError(
                f"--{name} has the shape {list(array.shape)}, which does not fit an input of "
                f"shape {list(sample.values.shape)}"
            ) from error
        product = product * (factor != 0 if name == "mask" else factor)
    numbers = {value: Fraction(value) for value in set(product.ravel().tolist())}
    return tuple(numbers[value] for value in product.ravel().tolist())


class LevelClassifier:
    """A network whose input is whole levels of pixels (``.h5`` of the QNN benchmark, integer ONNX
    files): decided on the lattice."""

    has_gradients = False

    def __init__(self, file: NetworkFile, sample: Sample, order: str) -> None:
        if sample.limits is None:
            raise ModelError(f"{file.path.name} takes levels of pixels: give values in [0, 1]")
        self.file = file
        self.subject = IntegerSubject(file, _shape_of(sample.values), None, None, order)
        self.sample, self.classes = sample, self.subject.classes

    def judge(self, values: np.ndarray, label: int = 0) -> Judgement:
        return self.subject.judge(values[None], np.array([label]))[0]

    def query(self, around: Neighbourhood, label: int, target: int | None) -> Query:
        raise SettingsError("--vnnlib is for networks that take floats")

    def decide(
        self,
        around: Neighbourhood,
        label: int,
        target: int | None,
        settings: Settings,
        budget: Budget,
        report: Report | None,
    ) -> tuple[Verdict, np.ndarray | None]:
        if (around.weights, around.light, target) != (None, None, None):
            raise SettingsError(
                "networks that take whole levels are asked with one radius, and no target"
            )
        prover = IntegerProver(
            self.subject,
            around.eps,
            budget.remaining(),
            settings.seed,
            math.isfinite(budget.cpu_deadline),
        )
        values = self.sample.values
        (proof,) = prover.prove(values[None], np.array([label]), np.array([False]))
        facts: dict[str, Any] = {
            "decided_by": f"integers: {proof.decided_by}",
            "phases": proof.seconds,
            "counters": proof.counters,
        }
        if proof.witness is None:
            status = Status(proof.status)
            detail = "" if status is Status.UNSAT else proof.detail
            reason = {Status.TIMEOUT: Reason.DEADLINE, Status.UNKNOWN: Reason.INCOMPLETE}
            return Verdict(status, reason.get(status, Reason.NONE), detail, **facts), None
        found = self.subject.layout.to_images(torch.from_numpy(proof.witness[None])).numpy()[0]
        pixels = self.subject.space.pixels(self.subject.space.nearest(found[None]))[0]
        logits = self.judge(pixels).logits
        witness = Witness({"X": pixels.ravel()}, {"Y": logits})
        return Verdict(Status.SAT, witness=witness, **facts), pixels


def open_classifier(
    model: Any,
    sample: Sample,
    mean: tuple[Fraction, ...] | None,
    std: tuple[Fraction, ...] | None,
    order: str,
    folder: Path,
) -> FileClassifier | LevelClassifier:
    """The path of a file, or a torch network, for ``sample``; files that have to be made are in
    ``folder``. Raises ``ModelError``, or ``SettingsError`` for a normalisation of whole levels."""
    shape = sample.values.shape if sample.is_image else sample.values.shape[2:]
    if isinstance(model, str | Path):
        file = NetworkFile(Path(model))
        if file.path.suffix in _TORCH:
            raise ModelError(
                f"{file.path.name} is a torch file, which is a program and not opened: write it "
                "with torch.onnx.export, or give the module to bitcrown.robust"
            )
        if not is_keras(file.path):
            wanted = image_extents(file, shape, order) if sample.is_image else shape
            file = with_input_shape(file, wanted, folder)
    else:
        # (A torch network takes axes as the sample has them, behind one for the batch.)
        layout = ImageLayout.of(_shape_of(sample.values), mean, std)
        inputs = np.asarray(_inputs_of(layout, sample.values).reshape(1, *shape), np.float32)
        path = folder / f"{type(model).__name__}.onnx"
        file = NetworkFile(exported(model, [[inputs]], path))
    if not is_keras(file.path) and (
        len(file.inputs) != 1 or str(file.inputs[0].dtype) not in _NARROW
    ):
        return FileClassifier.of(file, sample, mean, std, order)
    if mean is not None or std is not None:
        raise SettingsError(f"{file.path.name} takes levels of pixels: leave mean and std out")
    return LevelClassifier(file, sample, order)
