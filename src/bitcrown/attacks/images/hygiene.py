"""What a robust accuracy is worth: measurements that tell a robust network from one that only hides
its gradients.

After Carlini et al., "On evaluating adversarial robustness" (2019), Athalye et al., "Obfuscated
gradients give a false sense of security" (2018), and the flags of Croce & Hein (2020). Each check
measures something on a few images or on what the attacks met, and speaks only where a threshold is
passed; the measurement goes with the sentence.

The checks before the attack (``inspect``) ask: do logits depend on the other images of a batch,
does the loss of one image have a gradient in another, does the same input give the same logits
twice, does the forward pass differentiate by itself, are the outputs probabilities, are gradients
zero, NaN or absurdly steep. Those afterwards (``afterwards``) compare the attacks with each other.

Legend: ``B`` images, ``K`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bitcrown.attacks.images.ball import Ball
from bitcrown.attacks.images.losses import lead
from bitcrown.attacks.images.trace import Trace
from bitcrown.attacks.images.victim import Classifier

_SAMPLE = 16
_DIFFERENCE = 1e-4
"""Logits that differ by more than this share of the largest one do not differ by rounding."""
_STEEP = 1e3
"""A first-order change over the ball this many times the spread of the logits describes no
function."""
_FLAT_SHARE, _ZERO_SHARE, _SQUARE_SHARE, _GAP_SHARE = 0.1, 0.01, 0.002, 0.01
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Finding:
    """One reason to doubt the number: for programs, for readers, and what was measured."""

    name: str
    sentence: str
    measured: Mapping[str, float]


@dataclass(frozen=True)
class Inspection:
    """What ``inspect`` learned; the two flags decide how the attacks run."""

    findings: tuple[Finding, ...]
    is_batch_dependent: bool
    is_differentiable: bool


def inspect(model: Classifier, images: Tensor, labels: Tensor, ball: Ball) -> Inspection:
    """Check the network on the first ``_SAMPLE`` of ``images [B, C, H, W]``."""
    x, y = images[:_SAMPLE], labels[:_SAMPLE]
    with torch.no_grad():
        logits = model(x)
    randomness = _randomised_forward(model, x, logits)
    dependence = None if randomness else _batch_dependence(model, x, logits)
    is_differentiable = _has_gradient(model, x)
    findings = [randomness, dependence, _softmax_output(logits)]
    if is_differentiable:
        findings += [
            _dynamic_forward(model, x),
            _cross_gradient(model, x, y),
            *_gradient_size(model, x, y, ball),
        ]
    return Inspection(
        tuple(f for f in findings if f is not None), dependence is not None, is_differentiable
    )


def _has_gradient(model: Classifier, x: Tensor) -> bool:
    with torch.enable_grad():
        return bool(model(x.detach().clone().requires_grad_(True)).requires_grad)


def _difference(first: Tensor, second: Tensor) -> float:
    """Largest difference of logits as a share of the largest; NaN against a number: infinite."""
    gap = torch.where(torch.isnan(first) & torch.isnan(second), 0.0, (first - second).abs())
    scale = first.abs().nan_to_num(0.0, 0.0, 0.0).max().clamp(min=1e-12)
    return float((gap / scale).nan_to_num(torch.inf).max())


def _randomised_forward(model: Classifier, x: Tensor, logits: Tensor) -> Finding | None:
    """The same batch several times."""
    with torch.no_grad():
        worst = max(_difference(logits, model(x)) for _ in range(4))
    if worst <= _DIFFERENCE:
        return None
    return Finding(
        "randomised",
        f"the same images give logits that differ by {worst:.2g} of the largest one: gradients "
        "and decisions are random; use the suite rand, which averages gradients",
        {"difference": worst},
    )


def _batch_dependence(model: Classifier, x: Tensor, logits: Tensor) -> Finding | None:
    """Each image alone, with half of its batch, and with all black or all white companions."""
    half = max(1, len(x) // 2)
    with torch.no_grad():
        alone = torch.cat([model(x[k : k + 1]) for k in range(len(x))])
        others = [
            model(torch.cat([x[:half], torch.full_like(x[:half], value)]))[:half]
            for value in (0.0, 1.0)
        ]
        halved = model(x[:half])
    worst = max(
        _difference(logits, alone),
        *(_difference(logits[:half], other) for other in (*others, halved)),
    )
    if worst <= _DIFFERENCE:
        return None
    changed = int((alone.argmax(dim=1) != logits.argmax(dim=1)).sum())
    return Finding(
        "batch-dependent",
        f"logits of an image change by {worst:.2g} of the largest one with the images beside it; "
        f"{changed} of {len(x)} decisions differ when alone: robustness of a single image has no "
        "meaning here, and every number depends on batch size and order",
        {"difference": worst, "decisions_changed": float(changed), "images": float(len(x))},
    )


def _cross_gradient(model: Classifier, x: Tensor, labels: Tensor) -> Finding | None:
    """The gradient of the losses of the first half of a batch in the images of the second half."""
    half = len(x) // 2
    if not half:
        return None
    slope = _slope(model, x, labels, half)
    own, other = (
        float(part.abs().nan_to_num(0.0, 0.0, 0.0).max()) for part in (slope[:half], slope[half:])
    )
    if other <= 1e-6 * own:
        return None
    return Finding(
        "cross-sample-gradient",
        f"the loss of one image has a gradient of {other:.2g} in the pixels of others (own "
        f"pixels: {own:.2g})",
        {"other": other, "own": own},
    )


def _gradient_size(model: Classifier, x: Tensor, labels: Tensor, ball: Ball) -> list[Finding]:
    """NaN, zero and exploding gradients at the images themselves."""
    slope = _slope(model, x, labels, len(x)).flatten(1)
    with torch.no_grad():
        logits = model(x)
    largest = slope.abs().amax(dim=1)
    broken, zero = int((~torch.isfinite(largest)).sum()), int((largest == 0).sum())
    order = {"Linf": 1.0, "L2": 2.0, "L1": math.inf}[ball.norm]
    spread = (logits.amax(dim=1) - logits.amin(dim=1)).clamp(min=1e-12)
    steep = ball.eps * torch.linalg.vector_norm(slope.double(), ord=order, dim=1) / spread
    steepest = float(steep.nan_to_num(0.0, 0.0, 0.0).max())
    found = []
    if broken:
        what = "have gradients that are NaN or infinite"
        found.append(_share("nan-gradient", broken, len(x), what))
    if zero:
        found.append(_share("zero-gradient", zero, len(x), "have gradients that are exactly zero"))
    if steepest > _STEEP:
        found.append(
            Finding(
                "exploding-gradient",
                f"by its gradient the lead would change by {steepest:.2g} times the spread of the "
                "logits within the ball: the gradient does not describe the network",
                {"ratio": steepest},
            )
        )
    return found


def _slope(model: Classifier, x: Tensor, labels: Tensor, losses: int) -> Tensor:
    x = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        total = lead(model(x)[:losses], labels[:losses]).sum()
        (slope,) = torch.autograd.grad(total, x)
    return slope


def _share(name: str, count: int, images: int, what: str) -> Finding:
    sentence = f"{count} of {images} images {what}: attacks that follow gradients do not move there"
    return Finding(name, sentence, {"count": float(count), "images": float(images)})


class _GradientCalls(TorchFunctionMode):
    """Counts calls of autograd while it is entered; nothing of torch is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
        return func(*args, **(kwargs or {}))


def _dynamic_forward(model: Classifier, x: Tensor) -> Finding | None:
    """A forward pass that calls autograd optimises something at test time."""
    with torch.no_grad(), _GradientCalls() as calls:
        model(x)
    if not calls.count:
        return None
    return Finding(
        "dynamic",
        f"the forward pass calls autograd {calls.count} times: the network optimises at test "
        "time, which these attacks do not see through",
        {"calls": float(calls.count)},
    )


def _softmax_output(logits: Tensor) -> Finding | None:
    """Outputs between 0 and 1 that sum to 1."""
    off = float((logits.sum(dim=1) - 1.0).abs().max())
    if not (float(logits.min()) >= 0.0 and float(logits.max()) <= 1.0 and off <= 1e-5):
        return None
    return Finding(
        "softmax-output",
        f"the outputs lie between 0 and 1 and sum to 1 within {off:.1g}: they look like "
        "probabilities, whose gradients vanish; attack the logits before the softmax",
        {"sum_off": off},
    )


def gradients_met(name: str, attempted: int, broken: int, zero: int, flat: int) -> list[Finding]:
    """What a gradient attack met on ``attempted`` images: see the counts of ``notice``."""
    found = []
    if broken:
        what = f"met NaN or infinite gradients under {name}"
        found.append(_share(f"nan-gradient:{name}", broken, attempted, what))
    if zero > _ZERO_SHARE * attempted:
        what = f"began {name} with a gradient of exactly zero"
        found.append(_share(f"zero-gradient:{name}", zero, attempted, what))
    if name.startswith("apgd") and flat > _FLAT_SHARE * attempted:
        sentence = f"the loss of {flat} of {attempted} images never rose above where {name} began"
        measured = {"count": float(flat), "images": float(attempted)}
        found.append(Finding(f"flat-loss:{name}", sentence, measured))
    return found


def black_box_ahead(images: int, before: int, name: str, broken: int) -> Finding | None:
    """Random search broke ``broken`` images that ``before`` gradient attacks had left."""
    if not before or broken <= _SQUARE_SHARE * images:
        return None
    return Finding(
        "black-box-ahead",
        f"{name} broke {broken} images ({100 * broken / images:.1f} % of all) that the {before} "
        "attacks with gradients before it could not: their gradients mislead",
        {"broken": float(broken), "images": float(images)},
    )


def substitute_gap(images: int, without: int, with_substitute: int) -> Finding | None:
    """Images standing ``without`` and with substitute gradients: a gap means hidden ones."""
    gap = without - with_substitute
    if gap <= _GAP_SHARE * images:
        return None
    return Finding(
        "substitute-gradient-gap",
        f"with substitute gradients {100 * with_substitute / images:.1f} % stand, with the "
        f"network's own {100 * without / images:.1f} %: it hides its gradients; only the smaller "
        "number means anything",
        {"without": without / images, "with": with_substitute / images, "images": float(images)},
    )


def confidence_interval(successes: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share measured on ``images``, as shares (Wilson 1927)."""
    if not images:
        return 0.0, 1.0
    share, z2 = successes / images, _Z95 * _Z95
    middle = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = (
        _Z95
        / (1 + z2 / images)
        * math.sqrt(share * (1 - share) / images + z2 / (4 * images * images))
    )
    # (The share lies inside; at 0 and 1 rounding would put an end of the interval beside it.)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def small_sample(successes: int, images: int) -> Finding | None:
    """Fewer images than would tell networks one point apart."""
    lower, upper = confidence_interval(successes, images)
    if upper - lower <= 0.02:
        return None
    return Finding(
        "sample-size",
        f"{images} images: the 95 % interval is {100 * lower:.1f} to {100 * upper:.1f} %; "
        "differences within it mean nothing",
        {"lower": lower, "upper": upper, "images": float(images)},
    )


def notice(trace: Trace) -> tuple[int, int, int]:
    """Images with broken gradients, with zero ones, and unbroken ones whose loss never rose."""
    return (
        int(trace.broken_gradient.sum()),
        int(trace.zero_gradient.sum()),
        int((trace.flat & ~trace.found).sum()),
    )
