"""Fixed-point multilayer perceptrons in Keras ``.h5`` files: the AAAI 2021 benchmark networks and
their relatives.

A file holds float weights of fully connected layers; the integer network follows from the format
(Henzinger, Lechner, Zikelic: Scalable Verification of Quantized Neural Networks, AAAI 2021). With b
bits for the network and i for inputs:

    quantity                  bits        unit          range
    input                     i unsigned  2^-i          [0, 1)
    weight                    b signed    2^-(b-1)      [-1, 1)
    bias                      b signed    2^-(b-2)      [-2, 2)
    hidden activation         b unsigned  2^-(b-2)      [0, 4)
    last activation           b signed    2^-(b-2)      [-2, 2)

A layer is ``clip(floor((W x + 2^s B) / 2^s + 1/2))``: x has f fractional bits (i at first, b - 2
later), W x has f + b - 1 of them and the result b - 2, so the shift is s = f + 1. Rounding is half
up, negative numbers included; the first layer of the 6-bit networks is
``clip((W x + 512 B + 256) >> 9, 0, 63)``. A float weight is clamped to its range and rounded,
halves away from zero, as in the published bit-vector encoding.

Only numbers and names are read from the file; layers are taken in the order that the file lists.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from bitcrown.budget import Budget
from bitcrown.child_process import text_or_error
from bitcrown.errors import BitcrownError, ModelError
from bitcrown.quant.network.entry import EvenlySpaced, WholeEntry
from bitcrown.quant.network.graph import (
    Dense,
    Exit,
    Input,
    IntegerNetwork,
    IntegerNode,
    Ints,
    Numbers,
    QuantError,
    Stairs,
)

_BITS = range(2, 17)
_LARGEST_WEIGHT = 1 << 26
_LARGEST_FILE = 1 << 30
_MOST_LAYERS = 100
_READING_SECONDS = 20.0
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def read_h5(
    path: Path, input_bits: int | None = None, bits: int | None = None, signed_output: bool = True
) -> IntegerNetwork:
    """The integer network of a ``.h5`` file. Raises ``QuantError``.

    Bit widths that are not given come from a file name with ``in_8_qu_6``, and are 8 and 6 without
    one.
    """
    named = re.search(r"in_(\d{1,3})_qu_(\d{1,3})", path.name)
    input_bits = input_bits or (int(named[1]) if named else 8)
    bits = bits or (int(named[2]) if named else 6)
    if input_bits not in _BITS or bits not in _BITS:
        raise QuantError(
            f"{path}: {input_bits} input bits and {bits} bits; both must be {_BITS[0]} to "
            f"{_BITS[-1]}"
        )
    layers = _checked_layers(path)
    inputs = layers[0][0].shape[0]
    low, high = np.zeros(inputs, np.int64), np.full(inputs, 2**input_bits - 1, np.int64)
    nodes: list[IntegerNode] = [Input((inputs,), low, high)]
    fraction = input_bits
    for number, (weight, bias) in enumerate(layers):
        signed = signed_output and number == len(layers) - 1
        nodes += _layer_nodes(weight, bias, fraction, bits, signed, len(nodes) - 1)
        fraction = bits - 2
    bottom = -(2 ** (bits - 1)) if signed_output else 0
    outputs = nodes[-1].shape[0]
    values = tuple(EvenlySpaced(Fraction(bottom), Fraction(1), 2**bits) for _ in range(outputs))
    kind = np.dtype(np.uint8) if input_bits <= 8 else np.dtype(np.uint16)
    return IntegerNetwork(
        tuple(nodes),
        len(nodes) - 1,
        WholeEntry(kind, low, high),
        Exit(np.full(outputs, bottom, dtype=np.int64), values),
        facts={
            "format": "fixed point .h5",
            "layers": "-".join(str(size) for size in [inputs, *(len(bias) for _, bias in layers)]),
            "input bits": str(input_bits),
            "bits": str(bits),
            "rounding": "half up",
        },
    )


def _layer_nodes(
    weight: Numbers, bias: Numbers, fraction: int, bits: int, signed: bool, source: int
) -> list[IntegerNode]:
    """The accumulator and the staircase of a layer whose input has ``fraction`` fractional bits."""
    shift = fraction + 1
    w = fixed_point(weight, bits, bits - 1).T
    b = fixed_point(bias, bits, bits - 2) << shift
    low = -(2 ** (bits - 1)) if signed else 0
    # half up: floor(a / 2^s + 1/2) >= t exactly where a >= (2 t - 1) 2^(s-1)
    levels = low + 1 + np.arange(2**bits - 1, dtype=np.int64)
    base, rows = np.array([low], dtype=np.int64), ((2 * levels - 1) << (shift - 1))[None]
    note = f"shift {shift}, half up, {'int' if signed else 'uint'}{bits}"
    shape = (len(b),)
    return [
        Dense(shape, source, np.ascontiguousarray(w), b),
        Stairs(shape, source + 1, base, rows, rows, note),
    ]


def fixed_point(values: Numbers, bits: int, fraction: int) -> Ints:
    """Floats to signed integers of unit ``2^-fraction``: clamped to the range, then halves away
    from zero.

    In float64, where scaling float32 numbers by a power of two, and adding one half, is exact.
    """
    top = 2 ** (bits - 1)
    scaled = np.clip(values.astype(np.float64) * 2.0**fraction, -top, top - 1)
    return np.asarray(np.sign(scaled) * np.floor(np.abs(scaled) + 0.5), dtype=np.int64)


def _checked_layers(path: Path) -> list[tuple[Numbers, Numbers]]:
    """``_layers``, once a child process has come to its end: damaged files send the HDF5 library
    round for ever."""
    try:
        text_or_error(
            lambda: str(len(_layers(path))),
            Budget.of_cpu_seconds(_READING_SECONDS),
            f"that reads {path}",
        )
    except ModelError as error:
        raise QuantError(str(error)) from error
    except BitcrownError:
        pass  # refused in words: they are said again below, by an error of the right kind
    return _layers(path)


def _layers(path: Path) -> list[tuple[Numbers, Numbers]]:
    """Kernel [in, out] and bias [out] of every layer that has weights."""
    import h5py

    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise QuantError(f"{path} is larger than {_LARGEST_FILE >> 30} GiB")
        with open(path, "rb") as head:
            if head.read(len(_SIGNATURE)) != _SIGNATURE:
                raise QuantError(f"{path} is not an .h5 file of Keras weights")
        with h5py.File(path, "r") as file:
            names = _names(file, "layer_names", path)
            layers = [layer for name in names if (layer := _weights(file, name, path))]
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise QuantError(
            f"{path} cannot be read as an .h5 file of Keras weights: {error}"
        ) from error
    if not layers:
        raise QuantError(f"{path} has no layer with a kernel and a bias")
    for (before, _), (after, _), name in zip(layers, layers[1:], names[1:], strict=False):
        if before.shape[1] != after.shape[0]:
            raise QuantError(
                f"{path}: layer {name!r} takes {after.shape[0]} inputs, but gets {before.shape[1]}"
            )
    return layers


def _names(group: Any, attribute: str, path: Path) -> list[str]:
    if attribute not in group.attrs:
        raise QuantError(
            f"{path}: {group.name} does not list its {attribute}; is it a Keras weight file?"
        )
    raw = np.asarray(group.attrs[attribute]).reshape(-1).tolist()
    if len(raw) > _MOST_LAYERS or not all(isinstance(name, str | bytes) for name in raw):
        raise QuantError(
            f"{path}: {attribute} of {group.name} is not a list of at most {_MOST_LAYERS} names"
        )
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in raw]


def _weights(file: Any, layer: str, path: Path) -> tuple[Numbers, Numbers] | None:
    """None for a layer without weights (dropout, flatten)."""
    group = _member(file, layer, path)
    names = _names(group, "weight_names", path)
    if not names:
        return None
    found = {name.rpartition("/")[2].partition(":")[0]: _array(group, name, path) for name in names}
    if set(found) != {"kernel", "bias"} or len(names) != 2:
        raise QuantError(
            f"{path}: layer {layer!r} has the weights {', '.join(names)}; expected are a kernel "
            "and a bias"
        )
    kernel, bias = found["kernel"], found["bias"]
    if kernel.ndim != 2 or bias.shape != kernel.shape[1:] or not kernel.size:
        raise QuantError(
            f"{path}: layer {layer!r} has a kernel of shape {kernel.shape} and a bias of "
            f"{bias.shape}"
        )
    return kernel, bias


def _member(group: Any, name: str, path: Path) -> Any:
    """``group[name]``, without following links: they can lead into other files."""
    import h5py

    for part in name.strip("/").split("/"):
        if not isinstance(group, h5py.Group) or not isinstance(
            group.get(part, getlink=True), h5py.HardLink
        ):
            raise QuantError(f"{path}: {name!r} is listed, but is missing or a link")
        group = group[part]
    return group


def _array(group: Any, name: str, path: Path) -> Numbers:
    import h5py

    data = _member(group, name, path)
    if (
        not isinstance(data, h5py.Dataset)
        or data.external
        or data.is_virtual
        or data.dtype.kind != "f"
    ):
        raise QuantError(f"{path}: weight {name!r} is not an array of floats stored in the file")
    if math.prod(data.shape) > _LARGEST_WEIGHT:
        raise QuantError(
            f"{path}: weight {name!r} of shape {data.shape} has more than {_LARGEST_WEIGHT} entries"
        )
    value = np.asarray(data[()])
    if not np.isfinite(value).all():
        raise QuantError(f"{path}: weight {name!r} has entries that are not finite")
    return value
