"""What is asked of an evaluation, and the network and the bounds that answer it.

A plan names its network by words, so that it can be written to a record, compared with an earlier
one and handed to other processes; ``open_subject`` and ``make_prover`` turn the words into the
things they name.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from bitcrown.attacks.images.ball import NORMS
from bitcrown.attacks.images.bpda import RULES
from bitcrown.attacks.images.components import SUITES
from bitcrown.errors import ModelError, SettingsError, UnsupportedError
from bitcrown.evaluation.boxes import ImageBoxes
from bitcrown.evaluation.integers import IntegerProver, IntegerSubject, is_integer_file, is_keras
from bitcrown.evaluation.proving import LEVELS, SEARCH, ImageProver, Prover
from bitcrown.evaluation.subjects import ZOO, FileSubject, Subject, read_zoo
from bitcrown.evaluation.verdicts import VerdictProver
from bitcrown.model.classifier import Shape, layout_of
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.input_shape import free_extents, image_extents, with_input_shape
from bitcrown.model.onnx_reader import read_graph
from bitcrown.model.runtime_trial import require_runtime
from bitcrown.quant.formats.agreement import executable
from bitcrown.quant.network.graph import QuantError
from bitcrown.search.device import device_of
from bitcrown.settings import Settings

LINF = "Linf"
PGD = "pgd"
_ATTACKS = ("none", PGD, *SUITES)


@dataclass(frozen=True)
class Plan:
    """What to evaluate. ``seconds`` is the time for alpha-CROWN and branch and bound of one image,
    on the wall, or of computing (``counts_cpu``), which does not depend on what else the machine
    does.

    ``network``: a file, ``zoo:NAME``, or the name of a torch network; ``weights``: of a zoo
    network. ``attack``: a suite, ``pgd`` (then ``steps`` and ``restarts``) or ``none``; ``bpda``:
    rule of its gradients, empty for the network's own. ``batch`` images are attacked at a time,
    ``jobs`` processes bound images; neither changes what is asked, except of a network whose logits
    depend on the batch.
    """

    network: Path | str
    eps: Fraction
    mean: tuple[Fraction, ...] | None = None
    std: tuple[Fraction, ...] | None = None
    order: str = "auto"
    steps: int = 100
    restarts: int = 20
    levels: tuple[str, ...] = ()
    seconds: float = 5.0
    batch: int = 100
    jobs: int = 1
    settings: Settings = field(default_factory=Settings)
    norm: str = LINF
    attack: str = PGD
    bpda: str = ""
    weights: Path | None = None
    counts_cpu: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (("norm", self.norm, NORMS), ("attack", self.attack, _ATTACKS)):
            if value not in known:
                raise SettingsError(f"{name} {value!r} is not known; use one of {', '.join(known)}")
        if self.bpda and (self.bpda not in RULES or not self.has_suite):
            raise SettingsError(
                f"BPDA takes {', '.join(('none', *RULES))} and a suite of attacks "
                f"({', '.join(SUITES)}), not "
                f"{self.bpda!r} with {self.attack}"
            )
        if self.eps < 0 or (self.norm == LINF and self.eps > 1):
            raise SettingsError(
                f"eps must lie in [0, 1] (in L2 and L1: not below 0), but is {self.eps}"
            )
        for name, least in (("steps", 0), ("restarts", 0), ("batch", 1), ("jobs", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must not be {getattr(self, name)}")
        if not 0 <= self.seconds < float("inf"):
            raise SettingsError(
                f"the seconds per image must be a number from 0, but are {self.seconds}"
            )
        if self.levels != LEVELS[: len(self.levels)]:
            raise SettingsError(
                f"bounds are done in the order {', '.join(LEVELS)}, not {', '.join(self.levels)}"
            )
        if self.levels and self.norm != LINF:
            raise SettingsError(
                f"images are proved in L-infinity only, not in {self.norm}: leave the bounds out"
            )

    @property
    def has_suite(self) -> bool:
        return self.attack in SUITES

    @property
    def has_attack(self) -> bool:
        return self.has_suite or (self.attack == PGD and self.steps > 0 and self.restarts > 0)

    @property
    def is_zoo(self) -> bool:
        return str(self.network).startswith(ZOO)

    @property
    def label(self) -> str:
        """The network's name in tables."""
        return str(self.network).removeprefix(ZOO) if self.is_zoo else Path(self.network).stem

    def identity(self, digest: str) -> dict[str, Any]:
        """What must be equal for findings to belong to the same evaluation; more images or levels
        may follow. ``digest``: of the network's file (see ``Subject``)."""
        attack: dict[str, Any] | None = {"name": self.attack}
        if not self.has_attack:
            attack = None
        elif self.attack == PGD:
            attack = {"name": PGD, "steps": self.steps, "restarts": self.restarts}
        found = {
            "network": str(self.network) if self.is_zoo else Path(self.network).name,
            "network_sha256": digest,
            "eps": str(self.eps),
            "mean": [str(value) for value in self.mean or ()],
            "std": [str(value) for value in self.std or ()],
            "order": self.order,
            "attack": attack,
            "seconds_per_image": self.seconds,
            "seed": self.settings.seed,
        }
        if self.counts_cpu:
            found["counts_cpu"] = True
        if self.norm != LINF:
            found["norm"] = self.norm
        if self.bpda:
            found["bpda"] = self.bpda
        if self.is_zoo:
            found["batch"] = self.batch
        return found


def open_subject(plan: Plan, shape: Shape) -> Subject:
    """The network of ``plan`` for images of ``shape``. Raises ``SettingsError`` for what cannot be
    asked of it, ``ModelError`` for an ONNX file that onnxruntime cannot run, or that ends the
    process which opens it."""
    device = device_of(plan.settings.device)
    if plan.is_zoo:
        return read_zoo(str(plan.network), plan.weights, plan.batch, shape, device)
    file = NetworkFile(Path(plan.network))
    if not is_keras(file.path):
        file = _settled(file, shape, plan.order)
        content, _ = executable(file)
        if content:
            require_runtime(file, content)
    subject = _in_integers(file, shape, plan) or FileSubject(
        file, shape, plan.mean, plan.std, plan.order, device
    )
    file.release()
    return subject


def _settled(file: NetworkFile, shape: Shape, order: str) -> NetworkFile:
    """``file`` for images of ``shape``, where it leaves extents of its input free: a copy, which
    lies in a folder that goes when the result does."""
    if not free_extents(file):
        return file
    folder = Path(tempfile.mkdtemp(prefix="bitcrown-evaluate-"))
    copy = with_input_shape(file, image_extents(file, shape, order), folder)
    weakref.finalize(copy, shutil.rmtree, folder, ignore_errors=True)
    return copy


def _in_integers(file: NetworkFile, shape: Shape, plan: Plan) -> IntegerSubject | None:
    """A network of integers from end to end; None where the file has floats between them. Raises
    ``ModelError`` for a file that only integers could read."""
    if not is_integer_file(file):
        return None
    try:
        return IntegerSubject(file, shape, plan.mean, plan.std, plan.order)
    except QuantError as reason:
        if is_keras(file.path):
            raise
        try:
            read_graph(file, plan.settings.semantics)
        except UnsupportedError as error:
            raise ModelError(f"{reason}; as floats: {error}") from error
        return None


def check_subject(plan: Plan, subject: Subject) -> None:
    """Raises ``SettingsError`` where the plan asks what this kind of network cannot answer."""
    if plan.is_zoo and (plan.mean is not None or plan.std is not None):
        raise SettingsError(
            "networks of the zoo take pixels as they are: leave --mean and --std out"
        )
    if plan.attack == PGD and plan.has_attack and not subject.has_gradients:
        raise SettingsError(
            "pgd is for networks in ONNX files that are read with floats; choose a suite: "
            f"{', '.join(SUITES)}"
        )
    if plan.levels and subject.obstacle:
        raise SettingsError(f"{subject.name} cannot be verified: {subject.obstacle}")
    if plan.levels and subject.kind == "integer" and SEARCH not in plan.levels:
        raise SettingsError(
            f"exact integer networks are decided by branch and bound: --bounds {SEARCH}, or none"
        )


def make_prover(
    plan: Plan, file: NetworkFile, shape: Shape, settings: Settings, subject: Subject | None = None
) -> ImageProver:
    """The bounds of ``plan`` on images of ``shape``; what ``subject``, the opened network, has
    already is used again. Another process has the file's bytes alone."""
    given = isinstance(subject, IntegerSubject)
    integers = subject if given else None if subject else _in_integers(file, shape, plan)
    if isinstance(integers, IntegerSubject) and integers.is_whole:
        return IntegerProver(integers, plan.eps, plan.seconds, settings.seed, plan.counts_cpu)
    if isinstance(integers, IntegerSubject):
        boxes = ImageBoxes(integers.layout, plan.eps)
        return VerdictProver(integers, boxes, settings, plan.seconds, plan.counts_cpu)
    opened = subject if isinstance(subject, FileSubject) else None
    has_graph = opened is not None and settings.semantics == "real"
    graph = opened.graph if opened and has_graph else read_graph(file, settings.semantics)
    dtype = "float16" if "float16" in graph.input_dtypes else "float32"
    boxes = ImageBoxes(layout_of(graph, shape, plan.mean, plan.std, plan.order), plan.eps, dtype)
    proof = Network(graph, torch.float64, device_of(settings.device))
    return Prover(
        proof,
        boxes,
        file.path,
        settings,
        plan.levels,
        plan.seconds,
        plan.counts_cpu,
        opened.replay if opened else None,
    )
