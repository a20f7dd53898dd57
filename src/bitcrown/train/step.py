"""One step of training as a function of tensors alone, so that a GPU can replay it.

The loss (see ``settings``): one forward pass over the augmented clean images measures the batch
moments; with them the network is one affine-and-ReLU function, which the attack, the bounds and all
losses share.

Nothing here asks the device for a number: the radius, the shares and the learning rate are tensors
of no dimension, random numbers come in as a tensor. A residual network of eleven layers takes some
5,000 kernels a step, most of them too short to hide their launch. On CUDA the step (losses,
gradients, clipping, optimiser) is therefore recorded once and replayed as a graph; the first
``WARM_UP`` steps of a kind run as they are, as torch asks for before a recording.

Precision: bounds are float32 (on CUDA with ``precision=mixed`` products are TF32). A box of radius
1/255 is one part in 60 of the range of a normalised image. Intervals are computed as centre and
radius, never as differences of two large numbers, so 11 bits of a product suffice for training;
bfloat16's 8 would move centres by a third of a radius. Values at points (clean and adversarial
images, the attack's steps) may be bfloat16 (``precision=mixed``). Nothing of this is a proof: what
was trained is verified in float64, by another pass.

Convolutions see channels last: measured, 2.9 times as fast forward and backward on one core of a
CPU.

Legend: ``B`` images, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.model.execute import Network
from bitcrown.train.adversarial import ascended
from bitcrown.train.certified import FUSED_FROM, certified_loss
from bitcrown.train.images import Normalisation
from bitcrown.train.network import TrainableNetwork, detached, with_dtype
from bitcrown.train.schedules import StepValues
from bitcrown.train.settings import TrainSettings

PARTS = ("loss", "accuracy", "natural", "certified", "adversarial")
WARM_UP = 3
"""Steps of a kind before it is recorded: lazily made states and workspaces must exist."""


def parts_of(settings: TrainSettings, now: StepValues) -> tuple[str, ...]:
    """Which of ``PARTS`` a step at this stage has."""
    share = settings.certified_share()
    has = {"certified": share > 0, "adversarial": share < 1}
    return tuple(
        name for name in PARTS if name not in has or (has[name] and _is_robust(settings, now))
    )


def _is_robust(settings: TrainSettings, now: StepValues) -> bool:
    return settings.method != "natural" and now.eps > 0


class TrainingBatch(NamedTuple):
    """``images`` and ``noise`` (in [0, 1], the attack's start) ``[B, C, H, W]``, ``labels [B]``."""

    images: Tensor
    labels: Tensor
    noise: Tensor


class TrainingStep:
    """``step(batch, values)`` moves the weights once and gives the means of ``PARTS``.

    A part that is not in ``parts_of`` is zero. The result belongs to the caller until the next
    step.
    """

    def __init__(
        self,
        network: TrainableNetwork,
        optimiser: torch.optim.Optimizer,
        settings: TrainSettings,
        normalisation: Normalisation,
    ) -> None:
        self.network, self.optimiser = network, optimiser
        self.settings, self.normalisation = settings, normalisation
        self.device = next(network.parameters()).device
        self.stage = torch.zeros(3, device=self.device)
        self.steps_taken = {True: 0, False: 0}
        self.recorded: dict[bool, _Recording] = {}

    def __call__(self, batch: TrainingBatch, now: StepValues) -> Tensor:
        # A recorded step reads the tensors it was recorded with: what changes from step to step is
        # written into them, nothing is replaced.
        self.stage.copy_(torch.tensor([now.eps, now.beta, now.kappa]), non_blocking=True)
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(now.learning_rate)
            else:
                group["lr"] = now.learning_rate
        is_robust = _is_robust(self.settings, now)
        if self.device.type != "cuda":
            return self.taken(batch, is_robust)
        # Steps with and without the robust losses are different graphs: one recording of each.
        if is_robust not in self.recorded:
            self.steps_taken[is_robust] += 1
            if self.steps_taken[is_robust] <= WARM_UP:
                return self._aside(batch, is_robust)
            # Gradients must be allocated inside the recording, from the graph's own memory.
            self.optimiser.zero_grad(set_to_none=True)
            self.recorded[is_robust] = _Recording(lambda given: self.taken(given, is_robust), batch)
        return self.recorded[is_robust](batch)

    def _aside(self, batch: TrainingBatch, is_robust: bool) -> Tensor:
        """On a stream of its own: what is made on the default stream cannot be recorded later."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # Before: what this step reads is written. After: nobody reads its result too early.
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = self.taken(batch, is_robust)
        current.wait_stream(side)
        return result

    def taken(self, batch: TrainingBatch, is_robust: bool) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        parts = self.losses(batch, is_robust)
        parts["loss"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.optimiser.step()
        missing = torch.zeros((), device=self.device)
        return torch.stack([parts.get(name, missing).detach() for name in PARTS])

    def losses(self, batch: TrainingBatch, is_robust: bool) -> dict[str, Tensor]:
        """Means over the batch; ``loss`` is what is minimised."""
        settings, (eps, beta, kappa) = self.settings, self.stage
        share = settings.certified_share()
        low = torch.bfloat16 if settings.precision == "mixed" else torch.float32
        logits, moments = self.network.clean_pass(self.normalisation(batch.images), low)
        parts = {"natural": torch.nn.functional.cross_entropy(logits, batch.labels)}
        parts["accuracy"] = (logits.argmax(1) == batch.labels).float().mean()
        parts["loss"] = parts["natural"]
        if not is_robust:
            return parts
        # One function for all robust losses: batch norm with the moments of the clean batch.
        view = self.network.folded(moments)
        robust = torch.zeros((), device=self.device)
        if share > 0:
            is_fused = settings.fusion == "on" or (
                settings.fusion == "auto" and logits.shape[1] >= FUSED_FROM
            )
            box = self.normalisation.box(batch.images, eps)
            # beta falls from 1 to beta_end; where it stays 1 it is a number and no tensor.
            crown_share = 1.0 if settings.beta_end == 1.0 else beta
            parts["certified"] = certified_loss(
                view, box, batch.labels, crown_share, is_fused
            ).mean()
            robust = robust + share * parts["certified"]
        if share < 1:
            view = with_dtype(view, low)
            # The attack differentiates in the points only, the loss at its last points in weights.
            fixed = detached(view)
            points = ascended(
                lambda at: self._losses_at(fixed, at, batch.labels),
                batch.images,
                eps,
                settings.attack_steps,
                batch.noise,
            )
            parts["adversarial"] = self._losses_at(view, points, batch.labels).mean()
            robust = robust + (1 - share) * parts["adversarial"]
        parts["loss"] = kappa * parts["natural"] + (1 - kappa) * robust
        return parts

    def _losses_at(self, view: Network, points: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy ``[B]`` at ``points [B, C, H, W]``."""
        logits = view(self.normalisation(points).flatten(1).to(view.dtype)).float()
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


class _Recording:
    """``function`` of a batch as a CUDA graph with inputs and results of its own."""

    def __init__(self, function: Callable[[TrainingBatch], Tensor], batch: TrainingBatch) -> None:
        self.inputs = TrainingBatch(*(torch.empty_like(value).copy_(value) for value in batch))
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = function(self.inputs)

    def __call__(self, batch: TrainingBatch) -> Tensor:
        # The graph knows addresses, not tensors: the batch is copied to where it was recorded.
        for mine, given in zip(self.inputs, batch, strict=True):
            mine.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.result


@contextmanager
def fast_products(settings: TrainSettings) -> Iterator[None]:
    """TF32 (``precision=mixed``) and the fastest convolutions, for training only."""
    cudnn, is_mixed = torch.backends.cudnn, settings.precision == "mixed"
    before = torch.get_float32_matmul_precision(), cudnn.benchmark, cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if is_mixed else "highest")
    cudnn.benchmark, cudnn.allow_tf32 = True, is_mixed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.benchmark, cudnn.allow_tf32 = before[1:]


def optimiser_of(network: TrainableNetwork, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW; on CUDA one kernel for all weights, with a rate a recorded step can be given."""
    device = next(network.parameters()).device
    on_cuda = device.type == "cuda"
    rate = (
        torch.tensor(settings.learning_rate, device=device) if on_cuda else settings.learning_rate
    )
    return torch.optim.AdamW(
        network.parameters(),
        rate,
        weight_decay=settings.weight_decay,
        fused=on_cuda,
        capturable=on_cuda,
    )
