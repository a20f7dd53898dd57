"""The CIFAR-10 networks of the Robust-Model-Zoo: residual units, bottlenecks and quantization
blocks.

Pixels ``[B, 3, 32, 32]`` in [0, 1] go in without normalisation. With ``N`` the normalisation by
moments, ``swish(x) = x sigmoid(x)``, ``Q`` the block of ``quantizer.py`` and all convolutions 3x3,
padded as TensorFlow's ``SAME``, no bias::

    residual    R(x) = skip(x) + conv(swish(N(conv_stride(swish(N(x))))))      skip: average pool,
    1x1 convolution bottleneck  B(x) = conv(swish(conv(swish(conv(swish(conv(Q(x))))))))       c ->
    2c -> 2c -> c -> out group       G(x) = Q(R(B(R(x))))

A stage is a residual unit that changes width and size, then groups (or single residual units). The
first stage has no such unit: its group goes 3 -> 48 -> 3 -> 48. At the end ``N``, swish, mean over
the image and one affine layer.

``N`` uses the mean and variance of the batch it is given (variance + 1e-9), in evaluation too: no
running averages exist, so the logits of an image depend on its batch mates. ``per_image`` takes
moments (and the scale of ``Q``) over each image alone, which is the published network on batches of
one.

Legend: ``B`` images, ``C`` channels, ``K`` classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitcrown.zoo.quantizer import Quantizer

_VARIANCE_FLOOR = 1e-9
_COLOURS = 3


@dataclass(frozen=True)
class ZooStage:
    """``groups``: suffixes of the checkpoint's names; ``plain``: residual units only."""

    width: int
    groups: tuple[str, ...]
    plain: bool = False


@dataclass(frozen=True)
class ZooPlan:
    """Everything that fixes a network. ``quantized`` switches all ``Q``; they have no weights."""

    stages: tuple[ZooStage, ...]
    classes: int = 10
    steps: int = 10
    quantized: bool = True
    per_image: bool = False


_MODEL_1 = ZooPlan(
    (
        ZooStage(48, ("",)),
        ZooStage(96, ("_0", "_1")),
        ZooStage(192, ("_1",)),
        ZooStage(384, ("_0", "_1")),
    )
)
_MODEL_2 = ZooPlan(
    (
        ZooStage(48, ("",)),
        ZooStage(96, ("_0", "_1", "_2", "_3", "_4")),
        ZooStage(192, ("_4",)),
        ZooStage(384, ("_0", "_1", "_2", "_3", "_4"), plain=True),
    )
)
_SMALL = ZooPlan((ZooStage(8, ("",)), ZooStage(16, ("_0",)), ZooStage(32, ("_0",), plain=True)))
"""The same blocks in a network that trains on one processor core."""
PLANS = {"model_1": _MODEL_1, "model_2": _MODEL_2, "small": _SMALL}


class MomentNorm(nn.Module):
    """``N``: mean and deviation over the batch or one image taken out, then scale and shift."""

    def __init__(self, channels: int, scope: str, per_image: bool) -> None:
        super().__init__()
        self.scope = scope
        self.per_image = per_image
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.per_image:
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=_VARIANCE_FLOOR)
        return F.batch_norm(
            x, None, None, self.weight, self.bias, training=True, eps=_VARIANCE_FLOOR
        )


class SameConv(nn.Module):
    """Convolution with TensorFlow's SAME padding: an odd amount goes to the end."""

    def __init__(
        self, inputs: int, outputs: int, scope: str, size: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        self.scope = scope
        self.stride = stride
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, size, size))

    def forward(self, x: Tensor) -> Tensor:
        size = self.weight.shape[2]
        if self.stride == 1:
            return F.conv2d(x, self.weight, padding=size // 2)
        high, wide = (
            max(0, (-(-n // self.stride) - 1) * self.stride + size - n) for n in x.shape[2:]
        )
        padded = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return F.conv2d(padded, self.weight, stride=self.stride)


class Residual(nn.Module):
    """``R``: pre-activation residual unit."""

    def __init__(
        self, inputs: int, outputs: int, scope: str, per_image: bool, stride: int = 1
    ) -> None:
        super().__init__()
        self.norm1 = MomentNorm(inputs, f"{scope}/residual_only_activation", per_image)
        self.conv1 = SameConv(inputs, outputs, f"{scope}/sub1/conv1", stride=stride)
        self.norm2 = MomentNorm(outputs, f"{scope}/sub2", per_image)
        self.conv2 = SameConv(outputs, outputs, f"{scope}/sub2/conv2")
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.widen: nn.Module = nn.Identity()
        if inputs != outputs:
            self.widen = SameConv(inputs, outputs, f"{scope}/sub_add/conv_1x1", size=1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        return inner + self.widen(self.pool(x))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """``B`` without its ``Q``: four convolutions, no normalisation, no skip."""

    def __init__(self, inputs: int, outputs: int, scope: str) -> None:
        super().__init__()
        widths = (inputs, 2 * inputs, 2 * inputs, inputs, outputs)
        self.convs = nn.ModuleList(
            SameConv(widths[i], widths[i + 1], f"{scope}/sub{i + 1}/conv{i + 1}") for i in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        for number, conv in enumerate(self.convs):
            x = conv(x if number == 0 else F.silu(x))
        return x


class ZooNetwork(nn.Module):
    """Pixels ``[B, 3, H, W]`` in [0, 1] to logits ``[B, K]``. Weights are random until loaded."""

    def __init__(self, plan: ZooPlan, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.plan = plan
        self.units = nn.Sequential(
            *(unit for index in range(len(plan.stages)) for unit in _stage(plan, index))
        )
        width = plan.stages[-1].width
        self.norm = MomentNorm(width, "unit_last", plan.per_image)
        self.logits = nn.Linear(width, plan.classes)
        self._draw_weights(generator)

    def forward(self, x: Tensor) -> Tensor:
        features = F.silu(self.norm(self.units(x))).mean(dim=(2, 3))
        return self.logits(features)  # type: ignore[no-any-return]

    def with_plan(
        self, *, quantized: bool | None = None, per_image: bool | None = None
    ) -> ZooNetwork:
        """The network with blocks or moments switched; the weights are the same tensors."""
        changed = replace(
            self.plan,
            quantized=self.plan.quantized if quantized is None else quantized,
            per_image=self.plan.per_image if per_image is None else per_image,
        )
        with torch.device("meta"):
            twin = ZooNetwork(changed)
        twin.load_state_dict(self.state_dict(keep_vars=True), assign=True)
        return twin.train(self.training)

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def _draw_weights(self, generator: torch.Generator | None) -> None:
        if self.logits.weight.is_meta:
            return
        for module in self.modules():
            if isinstance(module, SameConv):
                outputs, _, high, wide = module.weight.shape
                module.weight.normal_(
                    0.0, math.sqrt(2.0 / (outputs * high * wide)), generator=generator
                )
        limit = math.sqrt(3.0 / self.logits.in_features)
        self.logits.weight.uniform_(-limit, limit, generator=generator)
        self.logits.bias.zero_()


def _stage(plan: ZooPlan, index: int) -> list[nn.Module]:
    """Units of one stage; names are those of the published checkpoints."""
    stage, per_image = plan.stages[index], plan.per_image
    width = stage.width
    units: list[nn.Module] = []
    entry = narrow = width
    if index == 0:
        entry = narrow = _COLOURS
    else:
        units.append(
            Residual(plan.stages[index - 1].width, width, f"stride_{index}", per_image, stride=2)
        )
    for suffix in stage.groups:
        name = f"layer_{index + 1}{suffix}"
        units.append(Residual(entry, width, f"block_1_{name}_sub_0", per_image))
        if stage.plain:
            continue
        units.append(_quantizer(plan))
        units.append(Bottleneck(width, narrow, f"block_2_{name}"))
        units.append(Residual(narrow, width, f"block_3_{name}_sub_0", per_image))
        units.append(_quantizer(plan))
    return units


def _quantizer(plan: ZooPlan) -> nn.Module:
    # Switched off it keeps its place, so that the weights keep their names.
    return Quantizer(plan.steps, per_image=plan.per_image) if plan.quantized else nn.Identity()


def build_network(
    name: str, *, quantized: bool = True, per_image: bool = False, seed: int = 0
) -> ZooNetwork:
    """The network called ``name`` (of ``PLANS``) with weights drawn from ``seed``."""
    plan = replace(PLANS[name], quantized=quantized, per_image=per_image)
    return ZooNetwork(plan, torch.Generator().manual_seed(seed))
