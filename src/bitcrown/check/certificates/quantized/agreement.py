"""The certificate's network against onnxruntime, bit for bit, on drawn inputs.

The certificate's digest is the seed, so the same certificate is always judged alike; inputs lie
anywhere in the range of the input, close to its ends, in its corners, and inside the property's
box. This is a second net and no proof: who writes a certificate can try many digests. Every integer
tensor of the file that the reading found in the network, and the output, has to lie between the two
ends that the network gives, which are one number where arithmetic is pinned down. QONNX, which
onnxruntime lacks, is written in standard operators first.
"""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import onnx

from bitcrown.check.certificates.documents import need
from bitcrown.check.certificates.integers.affine import Integers
from bitcrown.check.certificates.integers.property import Claim, OutputValues
from bitcrown.check.certificates.quantized.chain import (
    BINARY32,
    ChainTensor,
    NumpyArray,
    farthest,
    values_of,
)
from bitcrown.check.certificates.quantized.file import Read
from bitcrown.check.certificates.quantized.reading import integer_range
from bitcrown.check.certificates.quantized.runtime import refusals
from bitcrown.check.qonnx import without_qonnx
from bitcrown.check.replay import open_session, run_session

_SAMPLES = 24


def require_agreement(read: Read, claim: Claim, seed: str, samples: int = _SAMPLES) -> None:
    """Raises ``Reject`` with the first tensor that differs."""
    with refusals():
        model = without_qonnx(read.model)
    traced = _traced(read)
    present = {info.name for info in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in traced if name not in present
    )
    names = [info.name for info in model.graph.output]
    with refusals():
        opened = open_session(model.SerializeToString(), "it")
    entry = opened.get_inputs()[0].name
    for point in drawn_inputs(read, claim, seed, samples):
        feed = np.asarray(point, dtype=read.dtype).reshape(read.reading.shape)
        with refusals():
            found = dict(zip(names, run_session(opened, {entry: feed}, "it"), strict=True))
        integers = _integers(read, feed.reshape(-1))
        low, high = read.reading.net.enclosure(integers, integers)
        for name, tensor in traced.items():
            least, most = tensor.picked(low), tensor.picked(high)
            values = found[name].reshape(-1).astype(np.int64)
            inside = values.shape == least.shape and bool(
                ((least <= values) & (values <= most)).all()
            )
            need(inside, f"tensor {name!r} differs from onnxruntime on a drawn input")
        output = read.reading.net.output
        _require_output(read.outputs, found[names[0]], low[output], high[output])


def _require_output(
    outputs: list[OutputValues], found: NumpyArray, low: Integers, high: Integers
) -> None:
    values = [Fraction(v) for v in found.reshape(-1).astype(np.float64).tolist()]
    need(len(values) == len(outputs), "the file has another number of outputs than the network")
    for known, value, a, b in zip(outputs, values, low, high, strict=True):
        inside = known.of(a) <= value <= known.of(b)
        need(inside, "the output differs from onnxruntime on a drawn input")


def _traced(read: Read) -> dict[str, ChainTensor]:
    """Integer tensors of the file of 8 bits or more that are elements of nodes as they stand."""
    found = {}
    for name, tensors in read.reading.viewed.items():
        plain = next((t for t in tensors if not t.chain and not t.is_float), None)
        if plain is not None and name not in (info.name for info in read.model.graph.input):
            low, high = integer_range(plain.dtype)
            if high - low >= 255:
                found[name] = plain
    return found


def drawn_inputs(read: Read, claim: Claim, seed: str, samples: int) -> list[list[float]]:
    """[samples, N] inputs of the file."""
    rng = random.Random(seed)
    net, size = read.reading.net, read.reading.net.sizes[0]
    wide = _span(read) if read.dtype == BINARY32 else (net.low[0], net.high[0])
    points = [list(wide[0]), list(wide[1])]
    for k in range(samples - 2):
        shares = [rng.random() if k % 3 else float(rng.random() < 0.5) for _ in range(size)]
        if k % 2 and read.dtype != BINARY32:
            ends = claim.low, claim.high
            inner = [(max(a, c), min(b, d)) for a, b, c, d in zip(*wide, *ends, strict=True)]
            low, high = [min(a, b) for a, b in inner], [b for _, b in inner]
            low = [max(a, w) for a, w in zip(low, wide[0], strict=True)]
            high = [min(max(a, b), w) for a, b, w in zip(low, high, wide[1], strict=True)]
        else:
            low, high = list(wide[0]), list(wide[1])
        points.append([a + s * (b - a) for a, b, s in zip(low, high, shares, strict=True)])
    return (
        points if read.dtype == BINARY32 else [[float(round(v)) for v in point] for point in points]
    )


def _span(read: Read) -> tuple[list[float], list[float]]:
    """Real numbers around those that are not saturated: by doubling until nothing changes any
    more."""
    chain, size = read.reading.entry, read.reading.net.sizes[0]
    assert chain is not None
    index = np.arange(size)
    ends = []
    for sign in (-1, 1):
        reach, far = farthest(chain, sign, size)
        best = reach.copy()
        for power in range(127, -40, -1):
            smaller = np.full(size, 2.0**power, np.float32)
            same = values_of(chain, (sign * smaller)[:, None], index)[0][:, 0] == far
            best = np.where(same & (smaller < best), smaller, best)
        ends.append((sign * best * 1.25).astype(np.float64).tolist())
    return ends[0], ends[1]


def _integers(read: Read, values: NumpyArray) -> Integers:
    if read.dtype != BINARY32:
        return [int(v) for v in values.tolist()]
    assert read.reading.entry is not None
    found = values_of(read.reading.entry, values[:, None], np.arange(len(values)))[0][:, 0]
    return [int(v) for v in found.tolist()]
