"""What is evaluated: a network file, a network of the zoo, or any torch function, all behind the
same few methods.

A *subject* has a classifier for the attacks and a judge for the verdicts. They are different
things: attacks run on the network as bitcrown computes it, and what they find counts only if the
judge agrees. For a network file the judge is onnxruntime on the original file, image by image; for
an exact integer network its integers are the definition; a torch network is its own judge, in the
groups in which the data come where its logits depend on them.

Attacks move in *points*: pixels in [0, 1], or whole levels where the input of a network is integers
(``Space``).

Legend: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns, ``K`` classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bitcrown.attacks.images.ball import Ball
from bitcrown.attacks.images.bpda import bpda
from bitcrown.attacks.images.victim import Classifier
from bitcrown.check.replay import RuntimeReplay
from bitcrown.errors import DataError, SettingsError
from bitcrown.evaluation.attacking import Judge, Judgement, ball_of
from bitcrown.evaluation.data.sets import unit_pixels
from bitcrown.model.classifier import GraphClassifier, ImageLayout, Shape, read_classifier
from bitcrown.model.file import NetworkFile
from bitcrown.model.graph import Graph

ZOO = "zoo:"
_VARIANTS = ("no-blocks", "per-image")
_LAYER_OPS = ("Conv", "ConvTranspose", "Linear", "MatMulLeft")


@dataclass(frozen=True)
class Space:
    """Where attacks move: pixels in [0, 1] (``levels`` 0), or whole numbers from 0 to ``levels``.

    On whole numbers an L-infinity ball has whole ends, so rounding a point of it to whole numbers
    stays inside.
    """

    levels: int = 0

    def points(self, images: np.ndarray) -> Tensor:
        """``images [B, C, H, W]`` in [0, 1] as points. Raises ``DataError`` where pixels are no
        whole levels."""
        points = self.nearest(images)
        if self.levels and (self._pixels(points.numpy()) != images).any():
            raise DataError(
                f"the network takes whole numbers, but pixels are no multiples of 1/{self.levels}"
            )
        return points

    def nearest(self, images: np.ndarray) -> Tensor:
        """As ``points``, rounded where pixels lie between two levels."""
        if self.levels:
            images = np.rint(images.astype(np.float64) * self.levels)
        return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))

    def pixels(self, points: Tensor) -> np.ndarray:
        """The inverse of ``points``; what lies between two levels goes to the nearest."""
        values: np.ndarray = points.cpu().numpy()
        return self._pixels(np.rint(values)) if self.levels else values

    def _pixels(self, levels: np.ndarray) -> np.ndarray:
        return (
            unit_pixels(levels.astype(np.uint8))
            if self.levels == 255
            else levels / np.float32(self.levels)
        )

    def ball(self, norm: str, eps: Fraction) -> Ball:
        """The ball of radius ``eps`` (in pixels of [0, 1]) in points, never larger than it."""
        if not self.levels:
            return ball_of(eps, norm)
        if norm != "Linf":
            raise SettingsError(f"attacks on whole numbers move in L-infinity only, not in {norm}")
        return Ball(norm, float(int(eps * self.levels)), 0.0, float(self.levels))


class Subject(Protocol):
    """``classifier``: points to logits. ``obstacle``: why it cannot be bounded, empty where it can.
    ``digest``: SHA-256 of the file that holds the weights, empty for a torch network.

    ``has_gradients``: a network in a file that is read with floats, which plain PGD attacks.
    ``is_grouped``: judged in groups of neighbours, because logits may depend on them.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def classes(self) -> int: ...
    @property
    def space(self) -> Space: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def is_grouped(self) -> bool: ...
    @property
    def has_gradients(self) -> bool: ...
    @property
    def obstacle(self) -> str: ...
    @property
    def layout(self) -> ImageLayout: ...

    def classifier(self, rule: str) -> Classifier:
        """The classifier with its own gradient (``rule`` empty) or that of a BPDA rule."""

    def judge(self, images: np.ndarray, labels: np.ndarray) -> list[Judgement]:
        """Verdicts on pixels ``[B, C, H, W]``; where ``is_grouped``, on all images of the data set
        together."""

    def facts(self) -> Mapping[str, Any]:
        """What a record says of the network: parameters, megabytes, layers ..."""


class FileSubject:
    """A float network in an ONNX file."""

    kind, is_grouped, has_gradients, obstacle, space = "onnx", False, True, "", Space()

    def __init__(
        self,
        file: NetworkFile,
        shape: Shape,
        mean: tuple[Fraction, ...] | None,
        std: tuple[Fraction, ...] | None,
        order: str,
        device: torch.device,
    ) -> None:
        self.file, self.name, self.digest = file, file.path.stem, file.digest
        self.device, self.parameters = device, parameter_count(file)
        self.model: GraphClassifier = read_classifier(
            file, shape, mean, std, order, torch.float32, device
        )
        self.layout, self.classes = self.model.layout, self.model.classes
        self._judge = Judge(file.path, self.layout, self.classes)

    @property
    def graph(self) -> Graph:
        """The network as read in real arithmetic."""
        return self.model.network.graph

    @property
    def replay(self) -> RuntimeReplay:
        """The original file in onnxruntime, open for queries about one image."""
        return self._judge.replay

    def classifier(self, rule: str) -> Classifier:
        """Where the network has steps, its own gradient is zero: then straight through them."""
        has_jumps = any(row.has_jumps for row in self.model.network.rows.values())
        rule = rule or ("straight-through" if has_jumps else "")
        return bpda(self.model, rule) if rule else self.model

    def judge(self, images: np.ndarray, labels: np.ndarray) -> list[Judgement]:
        return [self._judge(image, int(label)) for image, label in zip(images, labels, strict=True)]

    def facts(self) -> Mapping[str, Any]:
        layers = layer_count(self.graph)
        return {**_size_facts(self.parameters), "layers": layers}


class TorchSubject:
    """Any function from pixels to logits; ``batch`` images are judged at a time, in their order."""

    kind, is_grouped, has_gradients, space = "torch", True, False, Space()
    obstacle = "only networks in ONNX files and exact integer networks can be bounded"

    def __init__(
        self,
        model: Classifier,
        name: str,
        shape: Shape,
        batch: int,
        device: torch.device,
        digest: str = "",
    ) -> None:
        self.name, self.batch, self.device, self.digest = name, batch, device, digest
        if isinstance(model, nn.Module):
            model = model.to(device).eval()
            model.requires_grad_(False)
        self.model = model
        self.layout = ImageLayout.of(shape)
        self.classes = self._logits(np.zeros((1, *shape), np.float32)).shape[1]

    def classifier(self, rule: str) -> Classifier:
        return bpda(self.model, rule) if rule else self.model

    def _logits(self, images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found = self.model(torch.from_numpy(np.ascontiguousarray(images)).to(self.device))
        if found.dim() != 2:
            raise SettingsError(
                f"the network must give a row of logits for each image, not {list(found.shape)}"
            )
        result: np.ndarray = found.double().cpu().numpy()
        return result

    def judge(self, images: np.ndarray, labels: np.ndarray) -> list[Judgement]:
        groups = range(0, len(images), self.batch)
        logits = np.concatenate(
            [self._logits(images[first : first + self.batch]) for first in groups]
        )
        return [Judgement(row, int(label)) for row, label in zip(logits, labels, strict=True)]

    def facts(self) -> Mapping[str, Any]:
        if not isinstance(self.model, nn.Module):
            return {}
        return _size_facts(sum(parameter.numel() for parameter in self.model.parameters()))


def _size_facts(parameters: int) -> dict[str, Any]:
    """Of a network whose parameters take four bytes each."""
    return {"parameters": parameters, "megabytes": 4e-6 * parameters}


def read_zoo(
    word: str, weights: Path | None, batch: int, shape: Shape, device: torch.device
) -> TorchSubject:
    """``zoo:NAME``, perhaps with ``:no-blocks`` or ``:per-image`` behind it. Raises
    ``SettingsError``."""
    from bitcrown.zoo.networks import PLANS, build_network
    from bitcrown.zoo.weights import load_weights

    name, *variants = word.removeprefix(ZOO).split(":")
    if name not in PLANS or set(variants) - set(_VARIANTS):
        raise SettingsError(
            f"{word!r} is no network of the zoo: give {ZOO}NAME with NAME one of "
            f"{', '.join(PLANS)}, perhaps with "
            f":{' or :'.join(_VARIANTS)} behind it"
        )
    if weights is None:
        raise SettingsError(
            f"{word} needs its weights: --weights FILE (a TensorFlow checkpoint or an .npz)"
        )
    network = build_network(
        name, quantized="no-blocks" not in variants, per_image="per-image" in variants
    )
    load_weights(network, weights)
    index = weights.with_name(weights.name + ".index")
    stored = index if index.is_file() else weights
    digest = hashlib.sha256(stored.read_bytes()).hexdigest() if stored.is_file() else ""
    return TorchSubject(network, word.removeprefix(ZOO), shape, batch, device, digest)


def parameter_count(file: NetworkFile) -> int:
    """Floating-point numbers stored in an ONNX file, batch normalisation included."""
    import onnx

    tensors = list(file.proto.graph.initializer)
    for node in file.proto.graph.node:
        if node.op_type == "Constant":
            tensors += [
                attribute.t
                for attribute in node.attribute
                if attribute.name == "value" and attribute.t.dims
            ]
    floats = {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    }
    return sum(int(np.prod(list(tensor.dims))) for tensor in tensors if tensor.data_type in floats)


def layer_count(graph: Graph) -> int:
    """Most layers with weights on any path from input to output, so that shortcuts do not count."""
    depth: dict[str, int] = {}
    for node in graph.nodes.values():
        before = max([depth[name] for name in node.inputs], default=0)
        depth[node.name] = before + (node.op in _LAYER_OPS)
    return max(depth[name] for name in graph.outputs)
