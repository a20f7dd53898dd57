"""QONNX: Quant and BipolarQuant, which round but keep float tensors (Brevitas, QKeras and FINN
write them).

Semantics (QONNX specification, as its own executor computes it, in float32):
``Quant(x, scale, zero, bits)`` is ``(round(clip(x / scale + zero, low, high)) - zero) *
scale`` with low and high from ``bits``, ``signed`` and ``narrow``; ``BipolarQuant(x,
scale)`` is ``scale`` for x >= 0 and ``-scale`` below. onnxruntime has no such operators, so no
runtime is the reference here; ``model.standard_form`` writes them with standard operators, which
onnxruntime executes, and the comparison at load uses that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bitcrown.model.file import QONNX_DOMAINS
from bitcrown.model.lowering.builder import OnnxNode
from bitcrown.quant.formats.lattice import FLOAT32, ChainStep, Lattice, dequantize_step, spread_over
from bitcrown.quant.formats.rule_table import Grid, NoRule, Reading, reads
from bitcrown.quant.network.graph import Numbers, QuantError

ROUNDINGS: dict[str, Any] = {
    "ROUND": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda v: np.sign(v) * np.ceil(np.abs(v)),
    "DOWN": np.trunc,
    "ROUND_TO_ZERO": np.trunc,
    "HALF_EVEN": np.rint,
    "HALF_UP": lambda v: np.sign(v) * np.floor(np.abs(v) + np.float32(0.5)),
    "HALF_DOWN": lambda v: np.sign(v) * np.ceil(np.abs(v) - np.float32(0.5)),
}


def bit_range(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    if signed:
        return -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1 - int(narrow)


def _settings(reading: Reading, node: OnnxNode) -> tuple[Numbers, int, tuple[int, int], str]:
    """Scale, zero point, integer range and rounding mode of a Quant node."""
    scale = reading.constant(node, 1).astype(FLOAT32)
    zero, bits = (
        reading.constant(node, 2).astype(np.float64),
        reading.constant(node, 3).astype(np.float64),
    )
    mode = str(node.attrs.get("rounding_mode", "ROUND")).upper()
    if not np.isfinite(scale).all() or not (scale > 0).all():
        raise NoRule(f"Quant {node.name!r} has a scale that is not positive")
    if (
        bits.size != 1
        or zero.size != 1
        or bits.reshape(-1)[0] not in range(1, 17)
        or zero != np.rint(zero)
    ):
        raise NoRule(
            f"Quant {node.name!r} has {bits.reshape(-1)[:1]} bits; one whole number from 1 to 16 "
            "is supported"
        )
    if mode not in ROUNDINGS:
        raise NoRule(f"Quant {node.name!r} rounds by {mode!r}; known are {', '.join(ROUNDINGS)}")
    ends = bit_range(
        int(bits.reshape(-1)[0]),
        bool(node.attrs.get("signed", 1)),
        bool(node.attrs.get("narrow", 0)),
    )
    return scale, int(zero.reshape(-1)[0]), ends, mode


def quant_levels(mode: str, zero: int, ends: tuple[int, int]) -> Any:
    rounding = ROUNDINGS[mode]
    offset, low, high = np.float32(zero), np.float32(ends[0]), np.float32(ends[1])

    def levels(values: Numbers, scale: Numbers) -> Numbers:
        with np.errstate(all="ignore"):
            shifted = values / scale + offset
        if np.isnan(shifted).any():
            raise QuantError("a value to be quantized is not a number")
        return np.asarray(rounding(np.clip(shifted, low, high)).astype(np.int64))

    return levels


@reads(*(f"{domain}.Quant" for domain in QONNX_DOMAINS))
def quant(reading: Reading, node: OnnxNode) -> None:
    scale, zero, ends, mode = _settings(reading, node)
    levels = quant_levels(mode, zero, ends)
    name = node.inputs[0]
    if reading.is_constant(name):
        value = reading.constants[name].astype(FLOAT32)
        ints = levels(value, scale) - zero
        reading.constants[node.outputs[0]] = ints.astype(np.float32) * scale
        reading.grids[node.outputs[0]] = Grid(
            ints, np.broadcast_to(scale.astype(np.float64), value.shape)
        )
        return
    lattice = reading.lattice(name)
    scales = spread_over(scale, lattice.shape)
    step = ChainStep(f"Quant {mode} {ends} zero {zero}", levels, (scales,), whole=True)
    _requantized(reading, node, lattice, step, scales, zero, 1)


@reads(*(f"{domain}.BipolarQuant" for domain in QONNX_DOMAINS))
def bipolar(reading: Reading, node: OnnxNode) -> None:
    """Integers 0 and 1 stand for -scale and scale."""
    scale = reading.constant(node, 1).astype(FLOAT32)
    if not np.isfinite(scale).all() or not (scale > 0).all():
        raise NoRule(f"BipolarQuant {node.name!r} has a scale that is not positive")
    name = node.inputs[0]
    if reading.is_constant(name):
        ints = np.where(reading.constants[name] >= 0, 1, -1).astype(np.int64)
        reading.constants[node.outputs[0]] = ints.astype(np.float32) * scale
        reading.grids[node.outputs[0]] = Grid(
            ints, np.broadcast_to(scale.astype(np.float64), ints.shape)
        )
        return
    lattice = reading.lattice(name)
    step = ChainStep("BipolarQuant", _is_positive, whole=True)
    _requantized(reading, node, lattice, step, spread_over(scale, lattice.shape), 1, 2)


def _is_positive(values: Numbers) -> Numbers:
    return (values >= 0).astype(np.int64)


def _requantized(
    reading: Reading,
    node: OnnxNode,
    lattice: Lattice,
    step: ChainStep,
    scale: Numbers,
    zero: int,
    gain: int,
) -> None:
    if not lattice.is_float:
        raise NoRule(f"{node.op} {node.name!r} takes {lattice.dtype}; float32 is supported")
    settled = reading.settled(lattice.then(step))
    back = dequantize_step(scale, np.array([zero], dtype=np.int64), gain)
    reading.bind(node, Lattice(settled.node, lattice.shape, FLOAT32, (back,)))
