"""Sixty quantized files from six small networks: every quantizer at hand, in its options.

    python benchmarks/quantized_files/own.py FOLDER --images IMAGES [--seed 0]

IMAGES holds MNIST's test images in their own format. Needs onnxruntime's quantization tools and,
for the last five files, brevitas 0.13 (with dependencies 2.0.1, qonnx and onnxoptimizer).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from networks import SHAPE, mnist, network, trained

KINDS = ("mlp", "cnn", "res", "se", "tf", "lstm")
CALIBRATION = 50
TRAINED_ON = slice(1000, 9000)
"""The first thousand images are for the questions, the last thousand for calibration."""
TYPES = {"uint8": QuantType.QUInt8, "uint16": QuantType.QUInt16}
TYPES |= {"int8": QuantType.QInt8, "int16": QuantType.QInt16, "int4": QuantType.QInt4}
SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}
STATIC: dict[str, tuple[str, str, bool, bool, dict[str, Any]]] = {
    "qdq_u8s8": ("uint8", "int8", False, False, {}),
    "qdq_s8s8_sym_pc": ("int8", "int8", True, False, SYMMETRIC),
    "qdq_u16s8": ("uint16", "int8", False, False, {}),
    "qop_u8s8": ("uint8", "int8", False, False, {}),
    "qop_u8u8_reduced": ("uint8", "uint8", False, True, {"WeightSymmetric": False}),
}
"""Types of activations and weights, per channel, reduced range, further options."""
SOME = {
    "qdq_u8s4": (("mlp", "cnn", "res", "tf"), ("uint8", "int4", False, False, {})),
    "qdq_s16s16": (("mlp", "cnn"), ("int16", "int16", False, False, {})),
    "qop_s8s8_pc": (("mlp", "cnn", "res"), ("int8", "int8", True, False, {})),
    "qdq_contrib": (
        ("mlp", "cnn"),
        ("uint8", "int8", False, False, {"UseQDQContribOps": True}),
    ),
}
Job = tuple[str, Callable[[Path], None]]


class Samples(CalibrationDataReader):  # type: ignore[misc]
    """The calibration images, one at a time."""

    def __init__(self, images: Tensor) -> None:
        self.feeds = iter([{"x": image[None].numpy()} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def export(net: nn.Module, path: Path, opset: int = 17) -> None:
    torch.onnx.export(
        net, (torch.zeros(SHAPE),), path, input_names=["x"], opset_version=opset, dynamo=False
    )


def static(
    source: Path,
    images: Tensor,
    option: tuple[str, str, bool, bool, dict[str, Any]],
    is_qdq: bool,
    path: Path,
) -> None:
    activation, weight, per_channel, reduced, extra = option
    quantize_static(
        source,
        path,
        Samples(images),
        quant_format=QuantFormat.QDQ if is_qdq else QuantFormat.QOperator,
        activation_type=TYPES[activation],
        weight_type=TYPES[weight],
        per_channel=per_channel,
        reduce_range=reduced,
        extra_options=extra,
    )


def dynamic(source: Path, weights: QuantType, per_channel: bool, path: Path) -> None:
    quantize_dynamic(source, path, weight_type=weights, per_channel=per_channel)


class Observed(nn.Module):
    """A module behind torch's fake quantizer, with fake-quantized weights (per channel or not)."""

    def __init__(self, inner: nn.Linear | nn.Conv2d, high: float, per_channel: bool) -> None:
        super().__init__()
        self.inner, self.scale = inner, float(high) / 255
        size = inner.weight.detach().abs()
        self.each = (size.flatten(1).amax(1) if per_channel else size.amax()) / 127

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(x, self.scale, 0, 0, 255)
        inner = self.inner
        weight: Tensor = inner.weight
        if self.each.ndim:
            zeros = torch.zeros(len(self.each), dtype=torch.int32)
            weight = torch.fake_quantize_per_channel_affine(weight, self.each, zeros, 0, -128, 127)
        else:
            weight = torch.fake_quantize_per_tensor_affine(weight, float(self.each), 0, -128, 127)
        if isinstance(inner, nn.Linear):
            return nn.functional.linear(x, weight, inner.bias)
        return nn.functional.conv2d(x, weight, inner.bias, padding=inner.padding)


def fake_quantized(net: nn.Module, images: Tensor, per_channel: bool, path: Path) -> None:
    """What torch's quantization-aware training exports."""
    parts: list[nn.Module] = []
    value = images
    for part in net.children():
        if isinstance(part, nn.Linear | nn.Conv2d):
            parts.append(Observed(part, float(value.max()), per_channel))
        else:
            parts.append(part)
        value = part(value)
    export(nn.Sequential(*parts).eval(), path)


def brevitas_network(kind: str, bits: int, weight_bits: int) -> nn.Module:
    from brevitas import nn as qnn

    act, weight = {"bit_width": bits}, {"weight_bit_width": weight_bits}
    parts: list[nn.Module] = [qnn.QuantIdentity(**act, return_quant_tensor=False)]
    if kind == "mlp":
        parts += [nn.Flatten(), qnn.QuantLinear(196, 32, bias=True, **weight)]
        parts += [qnn.QuantReLU(**act), qnn.QuantLinear(32, 10, bias=True, **weight)]
    else:
        parts += [qnn.QuantConv2d(1, 6, 3, padding=1, stride=2, **weight), qnn.QuantReLU(**act)]
        parts += [nn.Flatten(), qnn.QuantLinear(294, 10, bias=True, **weight)]
    return nn.Sequential(*parts)


def from_brevitas(
    kind: str, bits: int, weight_bits: int, form: str, data: tuple[Tensor, Tensor], path: Path
) -> None:
    from brevitas import export as forms

    net = trained(brevitas_network(kind, bits, weight_bits), *data, passes=2)
    write = forms.export_onnx_qcdq if form == "qcdq" else forms.export_qonnx
    write(net, args=torch.zeros(SHAPE), export_path=str(path), opset_version=17, dynamo=False)


def jobs(folder: Path, data: tuple[Tensor, Tensor]) -> Iterator[Job]:
    images, labels = data[0][TRAINED_ON], data[1][TRAINED_ON]
    last = data[0][-CALIBRATION:]
    for kind in KINDS:
        net = trained(network(kind), images, labels)
        (folder / "float").mkdir(exist_ok=True)
        source = folder / "float" / f"{kind}.onnx"
        export(net, source)
        options = STATIC | {tag: given for tag, (kinds, given) in SOME.items() if kind in kinds}
        for tag, option in options.items():
            yield f"{kind}_{tag}", partial(static, source, last, option, tag.startswith("qdq"))
        for tag, given in (("dyn_u8", TYPES["uint8"]), ("dyn_s8_pc", TYPES["int8"])):
            write = partial(dynamic, source, given, tag.endswith("pc"))
            yield f"{kind}_{tag}", write
        if kind in ("mlp", "cnn"):
            yield f"{kind}_torch", partial(fake_quantized, net, last, kind == "cnn")
    data = images[:3000], labels[:3000]
    for kind, bits, weight_bits, form in (
        *(("mlp", 8, 8, "qcdq"), ("cnn", 8, 8, "qcdq")),
        *(("mlp", 4, 4, "qonnx"), ("cnn", 4, 4, "qonnx"), ("mlp", 2, 2, "qonnx")),
    ):
        yield (
            f"{kind}_brevitas_{form}{bits}",
            partial(from_brevitas, kind, bits, weight_bits, form, data),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    np.random.seed(given.seed)
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, write in jobs(given.folder, mnist(given.images)):
        write(given.folder / f"{name}.onnx")


if __name__ == "__main__":
    main()
