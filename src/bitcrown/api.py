"""The library: what a notebook, the command line and the competition's worker call.

problem = bitcrown.load("net.onnx", "property.vnnlib")
verdict = bitcrown.verify(problem)
lower, upper = bitcrown.bound(problem)
found = bitcrown.attack("net.onnx", images, labels, "8/255")
evaluation = bitcrown.evaluate("net.onnx", images, labels, ["1/255", "2/255"], bounds="bab")
answer = bitcrown.robust(torch_module, image, "2/255")

Legend: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.budget import Budget
from bitcrown.errors import PropertyError, SettingsError, UnsupportedError
from bitcrown.evaluation.modules import load
from bitcrown.settings import Settings
from bitcrown.spec.kept import kept_problem
from bitcrown.spec.problem import Problem
from bitcrown.spec.property import Property
from bitcrown.verdict import Status, Verdict

if TYPE_CHECKING:
    import numpy as np

    from bitcrown.attacks.images.suite import SuiteResult
    from bitcrown.evaluation.around import Robustness
    from bitcrown.evaluation.data.sets import ImageSet
    from bitcrown.evaluation.plan import Plan
    from bitcrown.evaluation.runs import Evaluation
    from bitcrown.evaluation.subjects import Subject
    from bitcrown.search.outlook import Outlook

ExactNumber = str | float | Fraction
"""In pixels of [0, 1]; words such as "8/255" are exact, a float near a short fraction is taken for
it."""

_DEFAULT_SECONDS = 300.0


def verify(
    problem: Problem,
    settings: Settings | None = None,
    seconds: float = _DEFAULT_SECONDS,
    budget: Budget | None = None,
    report: Callable[[str, dict[str, Any]], None] | None = None,
    want_certificate: bool = False,
    cpu_seconds: float | None = None,
) -> Verdict:
    """Decide ``problem`` within ``seconds``, or ``cpu_seconds`` of computing (of all threads), or
    ``budget``.

    Returns ``sat`` with a witness replayed on the original files, ``unsat`` after a finished proof,
    ``unknown`` with a reason, or ``timeout``. ``report(phase, facts)`` is called as the search goes
    on. With ``want_certificate``, an ``unsat`` carries the proof that ``check-certificate`` checks,
    or the counter ``no_certificate`` says why not. Raises ``ModelError`` and ``PropertyError`` for
    input that cannot be used.
    """
    from bitcrown.search.strategy import Run, decide

    _require_problem(problem, "verify")
    settings = settings or Settings()
    if budget is None:
        limit = seconds if cpu_seconds is None else cpu_seconds
        budget = Budget.of(limit, settings.memory_bytes(), cpu_seconds is not None)
    run = Run(problem, settings, budget, report, want_certificate)
    verdict = decide(run)
    if want_certificate and verdict.status is Status.UNSAT and "is_exact" not in run.counters:
        from bitcrown.certificates.writer import certified

        return certified(run, verdict)
    return verdict


def outlook(problem: Problem, settings: Settings | None = None) -> Outlook:
    """What ``verify`` will do with ``problem``, in which engine, how loose its bounds are, and
    every reason for ``unknown`` that is known before the search."""
    from bitcrown.search.outlook import outlook_of

    _require_problem(problem, "outlook")
    return outlook_of(problem, settings)


def _require_problem(problem: object, function: str) -> None:
    if not isinstance(problem, Problem):
        raise PropertyError(
            f"{function} takes a problem, bitcrown.{function}(bitcrown.load('net.onnx', "
            f"'property.vnnlib')), but a {type(problem).__name__} was given"
        )


def bound(
    problem: Problem, tensor: str | None = None, case: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Sound lower and upper bounds of ``tensor`` (an output if None) over the input box of one
    case.

    Arrays have the tensor's ONNX shape; float64, rounded outward. ``tensor`` is a name as
    ``bitcrown inspect`` prints it. Raises ``UnsupportedError`` if the network has an operation
    without a rule, ``PropertyError`` for an unknown tensor name or case number.
    """
    from bitcrown.search.tensor_bounds import tensor_bounds

    _require_problem(problem, "bound")
    if not 0 <= case < len(problem.cases):
        raise PropertyError(
            f"case {case} does not exist: the property has {len(problem.cases)} cases"
        )
    return tensor_bounds(problem, tensor, case)


def network_in_words(onnx: str | Path, problem: Problem | None = None, name: str = "") -> str:
    """What the network in a file consists of, as the engine that decides it reads it; with
    ``problem``, of the shape that its property gives the network ``name`` (any where empty).

    Raises ``ModelError``, and ``UnsupportedError`` with the reasons of both engines where neither
    reads it.
    """
    from bitcrown.model.file import NetworkFile
    from bitcrown.search.readings import reading_in_words

    if problem is None:
        return reading_in_words(NetworkFile(Path(onnx)))
    from bitcrown.search.strategy import opened_files

    files = opened_files(problem)
    return reading_in_words(files[name or next(iter(files))])


def attack(
    model: Any,
    images: np.ndarray,
    labels: np.ndarray,
    eps: ExactNumber,
    *,
    suite: str = "standard",
    norm: str = "Linf",
    bpda: str = "",
    batch: int = 100,
    mean: Sequence[ExactNumber] | None = None,
    std: Sequence[ExactNumber] | None = None,
    weights: str | Path | None = None,
    settings: Settings | None = None,
    resume: Path | None = None,
) -> SuiteResult:
    """Attack ``images [B, C, H, W]`` (8-bit levels, or float32 in [0, 1]) of classes
    ``labels [B]``.

    ``model``: a path, ``zoo:NAME`` (with ``weights``), or a torch function from pixels to logits.
    ``suite``: ``standard``, ``plus``, ``rand`` or ``black-box``. The result's images are pixels in
    [0, 1]; networks in files are judged as bitcrown computes them (``evaluate`` asks onnxruntime as
    well). Raises ``SettingsError``, ``DataError`` or ``ModelError`` for what cannot be used.
    """
    import torch

    from bitcrown.attacks.images.suite import run_suite

    plan = _plan(
        model,
        eps,
        mean,
        std,
        weights,
        batch=batch,
        norm=norm,
        attack=suite,
        bpda=bpda,
        settings=settings,
    )
    subject, pixels = _opened(plan, model, images, labels)
    found = run_suite(
        subject.classifier(plan.bpda),
        subject.space.points(pixels.images).to(subject.device),
        torch.from_numpy(pixels.labels).to(subject.device),
        subject.space.ball(norm, plan.eps),
        suite=suite,
        seed=plan.settings.seed,
        batch=batch,
        resume=resume,
    )
    return replace(found, adversarial=torch.from_numpy(subject.space.pixels(found.adversarial)))


def evaluate(
    model: Any,
    images: np.ndarray,
    labels: np.ndarray,
    eps: ExactNumber | Sequence[ExactNumber],
    *,
    attack: str = "standard",
    bounds: str = "none",
    norm: str = "Linf",
    bpda: Sequence[str] = ("",),
    batch: int = 100,
    mean: Sequence[ExactNumber] | None = None,
    std: Sequence[ExactNumber] | None = None,
    weights: str | Path | None = None,
    settings: Settings | None = None,
    out: Path | None = None,
    seconds: float = 5.0,
    cpu_seconds: float | None = None,
) -> Evaluation:
    """Clean, attacked and verified accuracy at every radius of ``eps``, under every rule of
    ``bpda``.

    ``attack``: a suite as in ``attack``, ``pgd`` or ``none``; ``bounds``: ``none``, ``crown``,
    ``alpha`` or ``bab``; ``out``: folder in which an interrupted evaluation goes on; ``seconds``,
    or ``cpu_seconds`` of computing, are for the bounds of one image. The result has a ``record``,
    ``table()`` and ``html()``.
    """
    from bitcrown.evaluation.proving import parse_levels
    from bitcrown.evaluation.runs import evaluate_runs

    radii = [eps] if isinstance(eps, str | float | int | Fraction) else list(eps)
    levels = parse_levels(bounds)
    plan = _plan(
        model,
        radii[0],
        mean,
        std,
        weights,
        batch=batch,
        norm=norm,
        attack=attack,
        levels=levels,
        settings=settings,
        seconds=seconds if cpu_seconds is None else cpu_seconds,
        counts_cpu=cpu_seconds is not None,
    )
    subject, pixels = _opened(plan, model, images, labels)
    return evaluate_runs(
        plan, [exact_radius(radius) for radius in radii], bpda, pixels, out, subject=subject
    )


def _plan(
    model: Any,
    eps: ExactNumber,
    mean: Sequence[ExactNumber] | None,
    std: Sequence[ExactNumber] | None,
    weights: str | Path | None,
    settings: Settings | None,
    **others: Any,
) -> Plan:
    """What a caller asks, in exact numbers."""
    from bitcrown.evaluation.plan import Plan
    from bitcrown.evaluation.subjects import ZOO

    name = type(model).__name__ if callable(model) else str(model)
    return Plan(
        name if callable(model) or name.startswith(ZOO) else Path(name),
        exact_radius(eps),
        _exact_row(mean),
        _exact_row(std),
        weights=None if weights is None else Path(weights),
        settings=settings or Settings(),
        **others,
    )


def _opened(
    plan: Plan, model: Any, images: np.ndarray, labels: np.ndarray
) -> tuple[Subject, ImageSet]:
    import numpy as np

    from bitcrown.evaluation.data.sets import ImageSet, unit_pixels
    from bitcrown.evaluation.plan import open_subject
    from bitcrown.evaluation.subjects import TorchSubject
    from bitcrown.search.device import device_of

    pixels = ImageSet("images", unit_pixels(np.asarray(images)), np.asarray(labels, dtype=np.int64))
    if callable(model):
        device = device_of(plan.settings.device)
        return TorchSubject(model, str(plan.network), pixels.shape, plan.batch, device), pixels
    return open_subject(plan, pixels.shape), pixels


def _exact_row(row: Sequence[ExactNumber] | None) -> tuple[Fraction, ...] | None:
    return None if row is None else tuple(exact_radius(value) for value in row)


def exact_radius(value: ExactNumber) -> Fraction:
    """The number meant: words exactly, a float as the short fraction it is nearest to. Raises
    ``SettingsError``."""
    try:
        exact = Fraction(value)
    except (ValueError, OverflowError, ZeroDivisionError, TypeError) as error:
        raise SettingsError(f"a number such as 0.03 or '8/255' is needed, not {value!r}") from error
    short = exact.limit_denominator(100_000)
    return short if isinstance(value, float) and float(short) == value else exact


def load_and_verify(
    onnx: str,
    vnnlib: str,
    seconds: float,
    settings: Settings,
    report: Callable[..., None],
    want_certificate: bool = False,
    cpu_seconds: float | None = None,
    kept: Path | None = None,
) -> tuple[Verdict, Problem]:
    """What the competition's worker runs: load and verify with one deadline over both.

    ``cpu_seconds`` limits the computing of the verification as well. In the folder ``kept`` the
    property may have been read before (``prepare``).
    """
    started = time.monotonic()
    problem = None if kept is None else kept_problem(kept, onnx, Path(vnnlib))
    problem = problem or load(onnx, vnnlib)
    left = seconds - (time.monotonic() - started)
    budget = Budget.of_seconds(left, settings.memory_bytes())
    if cpu_seconds is not None:
        budget = replace(budget, cpu_deadline=Budget.of_cpu_seconds(cpu_seconds).cpu_deadline)
    return verify(
        problem, settings, budget=budget, report=report, want_certificate=want_certificate
    ), problem


def robust(
    model: Any,
    x: Any,
    eps: ExactNumber,
    *,
    label: int | None = None,
    target: int | None = None,
    norm: str = "Linf",
    eps_map: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    brightness: ExactNumber = 0,
    contrast: ExactNumber = 0,
    limits: tuple[ExactNumber, ExactNumber] | str | None = "auto",
    mean: Sequence[ExactNumber] | None = None,
    std: Sequence[ExactNumber] | None = None,
    order: str = "auto",
    radius: bool = False,
    seconds: float = 60.0,
    cpu_seconds: float | None = None,
    settings: Settings | None = None,
    report: Callable[[str, dict[str, Any]], None] | None = None,
    vnnlib: str | Path | None = None,
) -> Robustness:
    """Does every input within ``eps`` of ``x`` keep its class? With ``radius``: within how much?

    ``model``: the path of an ONNX file (also a quantized one) or ``.h5``, a torch module, or an
    exported program; torch networks are exported to a temporary folder and compared there. ``x``:
    an array or tensor ``[C, H, W]``, ``[H, W, C]`` or of the network's own shape, or a word as the
    command takes it (picture, ``.npy``, ``SET:INDEX``). ``label``: default the network's own;
    ``target``: only this class counts. ``eps_map`` and ``mask`` multiply ``eps`` for each value.
    ``brightness`` and ``contrast``, where one is not 0, are asked in place of ``eps``: images
    ``m + (1 + c)(x - m) + b`` with ``m`` the middle of the limits, ``|b|`` and ``|c|`` within them.
    ``limits``: of values; ``auto`` is [0, 1] for pictures and for arrays within it. ``vnnlib``: a
    file for the property.

    The result has ``status``, ``sentence()``, ``adversarial``. Raises a ``BitcrownError``.
    """
    import tempfile

    from bitcrown.evaluation.around import Asker
    from bitcrown.evaluation.question import Neighbourhood, open_classifier, weights_of
    from bitcrown.evaluation.samples import sample_from
    from bitcrown.files import write_whole

    settings = settings or Settings()
    limit = seconds if cpu_seconds is None else cpu_seconds
    budget = Budget.of(limit, settings.memory_bytes(), cpu_seconds is not None)
    with tempfile.TemporaryDirectory(prefix="bitcrown-robust-") as folder:
        kept = tuple(exact_radius(end) for end in limits) if isinstance(limits, tuple) else limits
        sample = sample_from(x, kept)
        means, stds = _exact_row(mean), _exact_row(std)
        network = open_classifier(model, sample, means, stds, order, Path(folder))
        around = Neighbourhood(exact_radius(eps), norm, weights_of(network.sample, eps_map, mask))
        light = exact_radius(brightness), exact_radius(contrast)
        if any(light):
            around = around.lit(light, radius or vnnlib is not None)
        asker = Asker(network, label, target, settings, report)
        if vnnlib is not None:
            write_whole(Path(vnnlib), asker.property_text(around))
        return asker.radius(around, budget) if radius else asker.ask(around, budget)


__all__ = [
    "Property",
    "UnsupportedError",
    "attack",
    "bound",
    "evaluate",
    "load",
    "load_and_verify",
    "robust",
    "verify",
]
