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


def parts_of(settings: TrainSettings, now: StepValues, number: int) -> tuple[str, ...]:
    """Which of ``PARTS`` step ``number`` of an epoch (from 1) has at this stage.

    A mixed loss has its certified part, the dearest one, in every ``certified_every``-th step only.
    """
    share = settings.certified_share()
    is_robust = settings.method != "natural" and now.eps > 0
    is_turn = settings.method != "mixed" or number % settings.certified_every == 0
    has = {"certified": is_robust and is_turn and share > 0, "adversarial": is_robust and share < 1}
    return tuple(name for name in PARTS if has.get(name, True))


class TrainingBatch(NamedTuple):
    """``images`` and ``noise`` (in [0, 1], the attack's start) ``[B, C, H, W]``, ``labels [B]``."""

    images: Tensor
    labels: Tensor
    noise: Tensor


class TrainingStep:
    """``step(batch, values, parts)`` moves the weights once and gives the means of ``PARTS``.

    A part that is not in ``parts`` (see ``parts_of``) is zero. The result belongs to the caller
    until the next step.
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
        self.steps_taken: dict[tuple[str, ...], int] = {}
        self.recorded: dict[tuple[str, ...], _Recording] = {}

    def __call__(self, batch: TrainingBatch, now: StepValues, parts: tuple[str, ...]) -> Tensor:
        # A recorded step reads the tensors it was recorded with: what changes from step to step is
        # written into them, nothing is replaced.
        self.stage.copy_(torch.tensor([now.eps, now.beta, now.kappa]), non_blocking=True)
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(now.learning_rate)
            else:
                group["lr"] = now.learning_rate
        if self.device.type != "cuda":
            return self.taken(batch, parts)
        # Steps with other losses are other graphs: one recording of each kind.
        if parts not in self.recorded:
            self.steps_taken[parts] = self.steps_taken.get(parts, 0) + 1
            if self.steps_taken[parts] <= WARM_UP:
                return self._aside(batch, parts)
            # Gradients must be allocated inside the recording, from the graph's own memory.
            self.optimiser.zero_grad(set_to_none=True)
            self.recorded[parts] = _Recording(lambda given: self.taken(given, parts), batch)
        return self.recorded[parts](batch)

    def _aside(self, batch: TrainingBatch, parts: tuple[str, ...]) -> Tensor:
        """On a stream of its own: what is made on the default stream cannot be recorded later."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # Before: what this step reads is written. After: nobody reads its result too early.
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = self.taken(batch, parts)
        current.wait_stream(side)
        return result

    def taken(self, batch: TrainingBatch, parts: tuple[str, ...]) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        losses = self.losses(batch, parts)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.optimiser.step()
        missing = torch.zeros((), device=self.device)
        return torch.stack([losses.get(name, missing).detach() for name in PARTS])

    def losses(self, batch: TrainingBatch, parts: tuple[str, ...]) -> dict[str, Tensor]:
        """Means over the batch; ``loss`` is what is minimised."""
        settings, (eps, beta, kappa) = self.settings, self.stage
        has_certified, has_adversarial = "certified" in parts, "adversarial" in parts
        share = settings.certified_share() if has_certified else 0.0
        low = torch.bfloat16 if settings.precision == "mixed" else torch.float32
        logits, moments = self.network.clean_pass(self.normalisation(batch.images), low)
        losses = {"natural": torch.nn.functional.cross_entropy(logits, batch.labels)}
        losses["accuracy"] = (logits.argmax(1) == batch.labels).float().mean()
        losses["loss"] = losses["natural"]
        if not (has_certified or has_adversarial):
            return losses
        # One function for all robust losses: batch norm with the moments of the clean batch.
        view = self.network.folded(moments)
        robust = torch.zeros((), device=self.device)
        if has_certified:
            is_fused = settings.fusion == "on" or (
                settings.fusion == "auto" and logits.shape[1] >= FUSED_FROM
            )
            box = self.normalisation.box(batch.images, eps)
            # beta falls from 1 to beta_end; where it stays 1 it is a number and no tensor.
            crown_share = 1.0 if settings.beta_end == 1.0 else beta
            losses["certified"] = certified_loss(
                view, box, batch.labels, crown_share, is_fused
            ).mean()
            robust = robust + share * losses["certified"]
        if has_adversarial:
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
            losses["adversarial"] = self._losses_at(view, points, batch.labels).mean()
            robust = robust + (1 - share) * losses["adversarial"]
        losses["loss"] = kappa * losses["natural"] + (1 - kappa) * robust
        return losses

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
