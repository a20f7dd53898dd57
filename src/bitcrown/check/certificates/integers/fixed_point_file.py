"""The integer network of a fixed-point perceptron in a Keras ``.h5`` file, rebuilt by the checker
from the format.

Format (Henzinger, Lechner, Zikelic: Scalable Verification of Quantized Neural Networks, AAAI 2021),
b bits for the network, i for its input: weights are b-bit numbers of unit 2^-(b-1), biases of unit
2^-(b-2), both rounded half away from zero after clamping; inputs are i-bit and unsigned of unit
2^-i, activations b-bit of unit 2^-(b-2), unsigned in hidden layers and signed at the end. A layer
is ``clip(floor((W x + 2^s B) / 2^s + 1/2))`` with s = f + 1 for inputs of f fractional bits. So
level ``v`` begins at the integer ``(2 v - 1) 2^(s-1)``, and no number here is ever rounded.

There is one way to write such a network in the canonical form; the certificate's has to be that
one.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

from bitcrown.check.certificates.documents import need
from bitcrown.errors import ModelError

_MOST_LAYERS = 100
_MOST_WEIGHTS = 1 << 22


def canonical_form(path: Path) -> dict[str, Any]:
    """The canonical JSON form of the file's network; bits by the file's name (``in_8_qu_6``), else
    8 and 6.

    Raises ``ModelError`` for a file that cannot be read, ``Reject`` for one that holds something
    else.
    """
    named = re.search(r"in_(\d{1,2})_qu_(\d{1,2})", path.name)
    input_bits, bits = (int(named[1]), int(named[2])) if named else (8, 6)
    need(2 <= input_bits <= 16 and 2 <= bits <= 16, "bit widths are 2 to 16")
    layers = _layers(path)
    size = len(layers[0][0])
    nodes: list[dict[str, Any]] = [
        {"op": "input", "shape": [size], "low": [0] * size, "high": [2**input_bits - 1] * size}
    ]
    fraction = input_bits
    for number, (kernel, bias) in enumerate(layers):
        need(
            len(kernel) == nodes[-1]["shape"][0] and all(len(row) == len(bias) for row in kernel),
            "layers do not fit",
        )
        weight = [[_fixed(row[o], bits, bits - 1) for row in kernel] for o in range(len(bias))]
        shift = fraction + 1
        shape, last = [len(bias)], number == len(layers) - 1
        addend = [_fixed(b, bits, bits - 2) << shift for b in bias]
        low = -(2 ** (bits - 1)) if last else 0
        steps = [(2 * level - 1) << (shift - 1) for level in range(low + 1, low + 2**bits)]
        source = len(nodes)
        nodes += [
            {"op": "dense", "shape": shape, "source": source - 1, "weight": weight, "bias": addend},
            {
                "op": "staircase",
                "shape": shape,
                "source": source,
                "base": [low],
                "early": [steps],
                "late": [steps],
            },
        ]
        fraction = bits - 2
    return {"format": "bitcrown-integer-network-1", "nodes": nodes, "output": len(nodes) - 1}


def _fixed(value: float, bits: int, fraction: int) -> int:
    """The float as an integer of unit ``2^-fraction``, clamped, halves away from zero."""
    top = 2 ** (bits - 1)
    scaled = max(Fraction(-top), min(Fraction(top - 1), Fraction(value) * 2**fraction))
    size = (abs(scaled) * 2 + 1) // 2
    return int(size) if scaled >= 0 else -int(size)


def _layers(path: Path) -> list[tuple[list[list[float]], list[float]]]:
    """Kernel [in][out] and bias [out] of every layer with weights, in the order that the file
    lists."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = _listed(file, "layer_names")
            found = [_layer(_inside(file, name)) for name in names]
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read as Keras weights: {error}") from error
    layers = [layer for layer in found if layer is not None]
    need(bool(layers), "the file has no layer with a kernel and a bias")
    return layers


def _layer(group: Any) -> tuple[list[list[float]], list[float]] | None:
    names = _listed(group, "weight_names")
    if not names:
        return None
    arrays = {name.rpartition("/")[2].partition(":")[0]: _inside(group, name) for name in names}
    need(
        arrays.keys() == {"kernel", "bias"} and len(names) == 2,
        "a layer has other weights than a kernel and a bias",
    )
    kernel, bias = arrays["kernel"], arrays["bias"]
    plain = all(not a.external and not a.is_virtual and a.dtype.kind == "f" for a in (kernel, bias))
    need(
        plain and kernel.ndim == 2 and bias.ndim == 1 and 0 < kernel.size <= _MOST_WEIGHTS,
        "a layer is no matrix",
    )
    return kernel[()].astype(float).tolist(), bias[()].astype(float).tolist()


def _listed(group: Any, attribute: str) -> list[str]:
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in list(group.attrs[attribute])]
    need(len(names) <= _MOST_LAYERS, f"{attribute} is too long")
    return names


def _inside(group: Any, name: str) -> Any:
    """``group[name]``, without following links to other places or files."""
    import h5py

    for part in name.strip("/").split("/"):
        need(
            isinstance(group.get(part, getlink=True), h5py.HardLink),
            f"{name!r} is missing, or a link",
        )
        group = group[part]
    return group
