"""Layers as torch writes them, with both exporters and opsets 13 to 21: read, right, bounded?

torch_exports.py FOLDER [--make] [--check] [--only NAME ...]

``--make`` exports every layer of the lists below once (``name.exporter.opset.onnx``; exporters and
opsets take turns); it needs ``onnxscript``. What torch itself cannot export at its turn it gets to
try at another opset and with the other exporter. ``--check`` reads every file, compares the network
with onnxruntime, bounds it over a box, looks whether sampled points stay inside, and prints a
Markdown table. Without either, both are done. Rows are printed as they are found.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bitcrown import BitcrownError

VECTOR, LINE, IMAGE, VOLUME = (1, 6), (1, 3, 10), (1, 3, 8, 8), (1, 2, 4, 4, 4)
SEQUENCE = (1, 4, 6)
OPSETS = (13, 14, 15, 16, 17, 18, 19, 20, 21)
POINTS = 64
TOKENS = {"embedding", "embedding bag of tokens", "position lookup"}
"""Layers whose inputs are whole numbers from 0 to 3."""

Layer = tuple[str, Any, tuple[int, ...]]


def layers() -> Iterator[Layer]:
    """Name, module and input shape of every layer. Loads torch."""
    yield from _modules()
    yield from _functions()
    yield from _choices()
    yield from _networks()


def _wrap(function: Callable[..., Any], *modules: Any) -> Any:
    from torch import nn

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(modules)

        def forward(self, x: Any) -> Any:
            return function(x, *self.parts)

    return Wrapped()


def _modules() -> Iterator[Layer]:
    from torch import nn

    yield "linear", nn.Linear(6, 4), VECTOR
    yield "bilinear", _wrap(lambda x, m: m(x, x), nn.Bilinear(6, 6, 3)), VECTOR
    yield "conv 1d, dilated", nn.Conv1d(3, 4, 3, dilation=2, padding=1), LINE
    yield "conv 2d, groups", nn.Conv2d(3, 6, 3, groups=3, stride=2, padding=1), IMAGE
    yield "conv 2d, same", nn.Conv2d(3, 2, 4, padding="same"), IMAGE
    yield "conv 2d, reflected", nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), IMAGE
    yield "conv 2d, circular", nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular"), IMAGE
    yield "conv 3d", nn.Conv3d(2, 3, 3, padding=1), VOLUME
    yield "transposed conv 1d", nn.ConvTranspose1d(3, 4, 3, stride=2), LINE
    transposed = nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, output_padding=1, groups=3)
    yield "transposed conv 2d", transposed, IMAGE
    yield "transposed conv 3d", nn.ConvTranspose3d(2, 3, 2, stride=2), VOLUME
    yield "weight norm", nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), VECTOR
    yield "spectral norm", nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)), VECTOR
    norm = nn.BatchNorm2d(3)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    yield "batch norm", norm, IMAGE
    yield "group norm", nn.GroupNorm(3, 6), (1, 6, 4, 4)
    yield "instance norm", nn.InstanceNorm2d(3, affine=True), IMAGE
    yield "layer norm", nn.LayerNorm(6), SEQUENCE
    yield "layer norm over planes", nn.LayerNorm((8, 8)), IMAGE
    yield "rms norm", nn.RMSNorm(6), SEQUENCE
    yield "local response norm", nn.LocalResponseNorm(2), IMAGE
    for name in ("PReLU", "CELU", "SELU", "ELU", "Mish", "SiLU", "GELU", "Softplus", "Softsign"):
        yield name, getattr(nn, name)(), VECTOR
    for name in ("Hardswish", "Hardsigmoid", "Hardtanh", "ReLU6", "Tanhshrink", "LogSigmoid"):
        yield name, getattr(nn, name)(), VECTOR
    for name in ("Softshrink", "Hardshrink"):
        yield name, getattr(nn, name)(), VECTOR
    yield "PReLU per channel", nn.PReLU(3), IMAGE
    yield "GELU, tanh", nn.GELU(approximate="tanh"), VECTOR
    yield "softplus, beta and threshold", nn.Softplus(beta=2.0, threshold=1.0), VECTOR
    yield "threshold", nn.Threshold(0.1, -0.2), VECTOR
    yield "GLU", nn.GLU(1), (1, 6, 4)
    yield "softmin", nn.Softmin(-1), VECTOR
    yield "softmax 2d", nn.Softmax2d(), IMAGE
    yield "log softmax", nn.LogSoftmax(1), IMAGE
    yield "max pooling, ceil and dilation", nn.MaxPool2d(3, 2, 1, 2, ceil_mode=True), IMAGE
    yield "max pooling 3d", nn.MaxPool3d(2), VOLUME
    yield "average pooling", nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), IMAGE
    yield "average pooling, divisor", nn.AvgPool2d(2, divisor_override=3), IMAGE
    yield "power pooling", nn.LPPool2d(2, 2), IMAGE
    yield "adaptive average pooling", nn.AdaptiveAvgPool2d(4), IMAGE
    yield "adaptive average, uneven", nn.AdaptiveAvgPool2d((3, 5)), IMAGE
    yield "adaptive max pooling", nn.AdaptiveMaxPool2d(2), IMAGE
    yield "pixel shuffle", nn.PixelShuffle(2), (1, 4, 4, 4)
    yield "pixel unshuffle", nn.PixelUnshuffle(2), IMAGE
    yield "channel shuffle", nn.ChannelShuffle(3), (1, 6, 4, 4)
    yield "upsample", nn.Upsample(scale_factor=2, mode="nearest"), IMAGE
    yield "unfold", nn.Unfold(3, dilation=2, padding=1), IMAGE
    yield "fold", nn.Fold((4, 4), 2), (1, 12, 9)
    yield "flatten, unflatten", nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 48))), IMAGE


def _functions() -> Iterator[Layer]:
    import torch
    import torch.nn.functional as f

    def call(name: str, function: Callable[[Any], Any], shape: tuple[int, ...] = VECTOR) -> Layer:
        return name, _wrap(function), shape

    for mode in ("constant", "reflect", "replicate", "circular"):
        yield call(f"pad, {mode}", partial(f.pad, pad=(1, 2, 2, 1), mode=mode), IMAGE)
    for mode in ("bilinear", "bicubic", "area", "nearest-exact"):
        yield call(
            f"interpolate, {mode}",
            partial(f.interpolate, size=(5, 13), mode=mode),
            IMAGE,
        )
    yield call(
        "interpolate, corners",
        lambda x: f.interpolate(x, scale_factor=1.5, mode="linear", align_corners=True),
        LINE,
    )
    yield call(
        "interpolate, trilinear",
        lambda x: f.interpolate(x, scale_factor=2, mode="trilinear"),
        VOLUME,
    )
    yield call("normalize", lambda x: f.normalize(x, dim=-1))
    yield call("norm, p = 1", lambda x: x.norm(p=1, dim=1))
    yield call("norm, p = inf", lambda x: torch.linalg.vector_norm(x, float("inf"), dim=1))
    yield call("cosine similarity", lambda x: f.cosine_similarity(x, x + 1))
    yield call("pairwise distance", lambda x: f.pairwise_distance(x, 1 - x))
    yield call("cdist", lambda x: torch.cdist(x, x + 1), SEQUENCE)
    yield call("einsum", lambda x: torch.einsum("bij,bkj->bik", x, x), SEQUENCE)
    yield call("baddbmm", lambda x: torch.baddbmm(x[:, :, :4], x, x.mT, beta=0.5), SEQUENCE)
    yield call("outer", lambda x: torch.outer(x[0], x[0]))
    yield call("cumsum", lambda x: torch.cumsum(x, -1))
    yield call("logsumexp", lambda x: torch.logsumexp(x, -1))
    yield call("variance", lambda x: x.var(-1))
    yield call("deviation, biased", lambda x: x.std(-1, unbiased=False))
    yield call("product", lambda x: torch.prod(x, -1))
    yield call("mean of everything", lambda x: x.mean())
    yield call("largest of planes", lambda x: x.amax((2, 3)), IMAGE)
    yield call("least along an axis", lambda x: x.min(-1).values)
    yield call("clamp by tensors", lambda x: torch.clamp(x, -x.detach() * 0 - 0.5, x * 0 + 0.5))
    yield call("lerp", lambda x: torch.lerp(x, 2 * x, 0.3))
    yield call("addcdiv", lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.5))
    yield call("hypot", lambda x: torch.sqrt(x[:, :3] ** 2 + x[:, 3:] ** 2))
    yield call("expm1, log1p", lambda x: torch.expm1(x) + torch.log1p(x.abs()))
    yield call("tan", lambda x: torch.tan(0.2 * x))
    yield call("atan, sin, cos", lambda x: torch.atan(x) + torch.sin(x) * torch.cos(x))
    yield call("erf, rsqrt", lambda x: torch.erf(x) * torch.rsqrt(x * x + 1))
    yield call("powers", lambda x: x**3 + (x.abs() + 1) ** 2.5)
    yield call("roll, flip", lambda x: torch.flip(torch.roll(x, 2, -1), [-1]))
    yield call("repeat_interleave", lambda x: x.repeat_interleave(2, -1))
    yield call("repeat, tile", lambda x: torch.tile(x.repeat(2, 1), (1, 2)))
    yield call("gather", lambda x: torch.gather(x, 1, torch.tensor([[0, 3, 2]])))
    yield call("index_select", lambda x: torch.index_select(x, -1, torch.tensor([3, 1])))
    yield call("fancy indices", lambda x: x[:, torch.tensor([[0, 1], [5, 2]])])
    yield call("strided slices", lambda x: x[:, 1::2] - x[:, ::2])
    yield call("index_add", lambda x: x.index_add(1, torch.tensor([0, 0]), x[:, 2:4]))
    yield call(
        "scatter", lambda x: torch.zeros(1, 6).scatter(1, torch.tensor([[0, 3, 2]]), x[:, :3])
    )
    yield call("masked_fill", lambda x: x.masked_fill(torch.eye(4, 6).bool()[None], 0.5), SEQUENCE)
    yield call("tril, triu", lambda x: torch.tril(x) - torch.triu(x, 1), SEQUENCE)
    yield call("stack, chunk", lambda x: torch.stack(x.chunk(2, -1), 1))
    yield call("unbind, meshgrid", lambda x: torch.meshgrid(*x[0, :4].chunk(2), indexing="ij")[0])
    yield call("movedim", lambda x: x.movedim(1, -1).unflatten(1, (2, 4)), IMAGE)
    yield call("diagonal", lambda x: torch.diagonal(x @ x.mT, dim1=1, dim2=2), SEQUENCE)
    yield call("windows of a tensor", lambda x: x.unfold(-1, 3, 2))
    yield call("half precision", lambda x: (x.half() * 2).float())
    yield call("double precision", lambda x: (x.double() / 3).float())
    yield call("scalar", lambda x: x[0, 0] * x[0, 1])


def _choices() -> Iterator[Layer]:
    import torch
    import torch.nn.functional as f

    def call(name: str, function: Callable[[Any], Any], shape: tuple[int, ...] = VECTOR) -> Layer:
        return name, _wrap(function), shape

    yield call("where", lambda x: torch.where(x > 0, x, -2 * x))
    yield call("maximum, minimum", lambda x: torch.maximum(x, 1 - x) + torch.minimum(x, x * x))
    yield call("topk", lambda x: torch.topk(x, 2).values)
    yield call("sort", lambda x: x.sort(-1).values)
    yield call("median", lambda x: x[:, :5].median(-1).values)
    yield call("argmax", lambda x: torch.argmax(x, -1).float())
    yield call("one hot", lambda x: f.one_hot(x.argmax(-1), 6).float())
    yield call("count", lambda x: (x > 0).sum(-1).float())
    yield call("any, all", lambda x: ((x > 0).any(-1) & (x < 2).all(-1)).float())
    yield call("remainder", lambda x: torch.remainder(x, 0.7))
    yield call("rounding", lambda x: torch.round(3 * x) + torch.floor(2 * x) - torch.ceil(x))
    yield call("sign", lambda x: torch.sign(x) * x)
    yield call("cast to integers", lambda x: (3 * x).int().float())
    yield call("bucketize", lambda x: torch.bucketize(x, torch.tensor([-0.5, 0.0, 0.5])).float())
    yield call("heaviside", lambda x: torch.heaviside(x, torch.tensor([0.5])))
    yield call("nan_to_num", lambda x: torch.nan_to_num(x))
    yield call("grid_sample", lambda x: f.grid_sample(x, x[:, :2].movedim(1, -1)), IMAGE)
    yield call("fourier transform", lambda x: torch.fft.rfft(x).abs())
    yield call("determinant", lambda x: torch.det(x.reshape(2, 3)[:, :2]))
    yield call("cumulative product", lambda x: torch.cumprod(x, -1))


def _networks() -> Iterator[Layer]:
    import torch
    import torch.nn.functional as f
    from torch import nn

    yield "embedding", _wrap(lambda x, m: m(x.long()), nn.Embedding(5, 6)), (1, 4)
    bag = nn.Embedding(5, 6)
    yield "embedding bag of tokens", _wrap(lambda x, m: m(x.long()).mean(1), bag), (1, 4)
    place = nn.Embedding(4, 6)
    yield "position lookup", _wrap(lambda x, m: m(x.int()) + x[..., None], place), (1, 4)
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        both = kind(6, 3, bidirectional=True, batch_first=True)
        yield f"{kind.__name__}, both ways", _wrap(lambda x, m: m(x)[0], both), SEQUENCE
    deep = nn.LSTM(6, 3, num_layers=2, batch_first=True, proj_size=2)
    yield "LSTM, projected", _wrap(lambda x, m: m(x)[1][0], deep), SEQUENCE
    cell = nn.GRUCell(6, 6)
    yield "GRU cell, by hand", _wrap(lambda x, m: m(x[:, 1], m(x[:, 0])), cell), SEQUENCE
    heads = nn.MultiheadAttention(6, 2, batch_first=True)
    yield "multi-head attention", _wrap(lambda x, m: m(x, x, x)[0], heads), SEQUENCE
    yield (
        "attention",
        _wrap(lambda x: f.scaled_dot_product_attention(x, 2 * x, x + 1)),
        SEQUENCE,
    )
    yield (
        "attention, causal",
        _wrap(lambda x: f.scaled_dot_product_attention(x, x, x, is_causal=True)),
        SEQUENCE,
    )
    encoder = nn.TransformerEncoderLayer(6, 2, 8, 0.0, "gelu", batch_first=True, norm_first=True)
    yield "transformer layer", encoder, SEQUENCE
    decoder = nn.TransformerDecoderLayer(6, 2, 8, 0.0, batch_first=True)
    yield "decoder layer", _wrap(lambda x, m: m(x, x), decoder), SEQUENCE
    squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.Sigmoid())
    yield "squeeze and excite", _wrap(lambda x, m: x * m(x), squeeze), IMAGE
    down, up = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 3, 2, stride=2)
    yield "small U-net", _wrap(lambda x, a, b: torch.cat([x, b(a(x).relu())], 1), down, up), IMAGE
    split = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(2), nn.LayerNorm(4))
    yield "patches of a vision transformer", split, IMAGE
    mixer = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
    yield "gated residual", _wrap(lambda x, m: x + torch.sigmoid(x) * m(x), mixer), SEQUENCE
    experts = nn.Linear(6, 2), nn.Linear(6, 3), nn.Linear(6, 3)
    yield (
        "mixture of two experts",
        _wrap(lambda x, g, a, b: g(x).softmax(-1) @ torch.cat([a(x), b(x)]), *experts),
        VECTOR,
    )


def file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def made(folder: Path, only: list[str]) -> None:
    """Export every layer; what torch cannot write is said on stderr."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for turn, (name, module, shape) in enumerate(layers()):
        if only and name not in only or any(folder.glob(f"{file_name(name)}.*.onnx")):
            continue
        is_token = name in TOKENS
        x = torch.randint(0, 4, shape).float() if is_token else 2 * torch.rand(*shape) - 1
        is_dynamo, opset = turn % 2 == 0, OPSETS[turn % len(OPSETS)]
        for dynamo, version in (
            (is_dynamo, max(opset, 18) if is_dynamo else min(opset, 20)),
            (not is_dynamo, 18),
            (is_dynamo, 20),
        ):
            kind = "dynamo" if dynamo else "traced"
            path = folder / f"{file_name(name)}.{kind}.{version}.onnx"
            if _exported(module.eval(), x, path, dynamo, version):
                break
        else:
            print(f"torch cannot export {name}", file=sys.stderr, flush=True)


def _exported(module: Any, x: Any, path: Path, dynamo: bool, opset: int) -> bool:
    import torch

    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            torch.onnx.export(module, (x,), path, opset_version=opset, dynamo=dynamo)
    except Exception as error:  # noqa: BLE001  (torch raises classes of many kinds)
        print(f"{path.name}: {type(error).__name__}", file=sys.stderr, flush=True)
        path.unlink(missing_ok=True)
        return False
    return path.exists()


def row(path: Path, is_token: bool) -> tuple[str, str, str, bool]:
    """Difference to onnxruntime, widest bound beside what was sampled, and a refusal; whether it
    was read."""
    import torch

    from bitcrown.bounds.intermediate import LayerBounder
    from bitcrown.model.crosscheck import crosscheck
    from bitcrown.model.execute import Network
    from bitcrown.model.file import NetworkFile
    from bitcrown.model.onnx_reader import read_graph

    try:
        file = NetworkFile(path)
        graph = read_graph(file)
        difference = crosscheck(graph, file, 0)
        network = Network(graph, torch.float64)
        low = torch.full((1, graph.n_inputs), 0.0 if is_token else -0.3, dtype=torch.float64)
        up = low + (3.0 if is_token else 0.8)
        bounds = LayerBounder(network, 1 << 28, quick=True).run(low, up).bounds
    except BitcrownError as error:
        return "", "", str(error), False
    random = np.random.default_rng(0).random((POINTS, graph.n_inputs))
    with torch.no_grad():
        values = network(low + torch.from_numpy(random) * (up - low))
    lower, upper = (
        torch.cat([bounds[o][side].flatten() for o in graph.outputs]) for side in (0, 1)
    )
    room = 1e-9 * (1 + values.abs())
    if not bool(((lower - room <= values) & (values <= upper + room)).all()):
        return f"{difference:.0e}", "", "A SAMPLED POINT LEAVES ITS BOUNDS", False
    wide, seen = float((upper - lower).max()), float((values.amax(0) - values.amin(0)).max())
    return f"{difference:.0e}", f"{wide:.3g} ({seen:.3g})", "", True


def checked(folder: Path, only: list[str]) -> None:
    """Print the table of all files in ``folder``."""
    from bitcrown.provenance import commit, version

    names = {file_name(name): name for name in _names()}
    print(
        "| layer | exporter, opset | off by | widest bound (sampled) | refusal |\n"
        + "|---" * 5
        + "|"
    )
    count = good = 0
    for path in sorted(folder.glob("*.onnx")):
        stem, kind, opset, _ = path.name.split(".")
        name = names.get(stem, stem)
        if only and name not in only:
            continue
        off, width, refusal, is_read = row(path, name in TOKENS)
        count, good = count + 1, good + is_read
        cells = (name, f"{kind}, {opset}", off, width, refusal.replace("|", "/"))
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\n{good} of {count} read and agree. bitcrown {version()}, commit {commit()[:12]}.")


def _names() -> list[str]:
    return [name for name, _, _ in layers()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    if asked.make or not asked.check:
        made(asked.folder, asked.only)
    if asked.check or not asked.make:
        checked(asked.folder, asked.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
