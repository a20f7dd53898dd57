"""The weights of a zoo network under the names, and in the layout, of its TensorFlow checkpoints.

TensorFlow keeps convolution kernels as ``[height, width, in, out]`` and the affine layer as
``[in, out]``; torch wants ``[out, in, height, width]`` and ``[out, in]``. Shift and scale of the
normalisation are called ``DN_Mean`` and ``DN_Variance`` and have shape ``[1, 1, 1, C]``. A
compressed numpy archive with the same names and layout is the form in which bitcrown itself saves
weights.

Legend: ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitcrown.archives import read_arrays
from bitcrown.errors import DataError, ModelError
from bitcrown.files import replacing
from bitcrown.zoo.checkpoint import open_checkpoint
from bitcrown.zoo.networks import MomentNorm, SameConv, ZooNetwork


@dataclass(frozen=True)
class Variable:
    """A parameter, and its axes in TensorFlow's order behind ``leading`` axes of size one."""

    parameter: Tensor
    axes: tuple[int, ...]
    leading: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """TensorFlow's shape."""
        return (1,) * self.leading + tuple(self.parameter.shape[axis] for axis in self.axes)

    def exported(self) -> NDArray[np.float32]:
        """The values in TensorFlow's layout."""
        moved = self.parameter.detach().cpu().permute(self.axes).reshape(self.shape)
        return np.ascontiguousarray(moved.numpy(), dtype=np.float32)

    def imported(self, values: NDArray[np.generic]) -> Tensor:
        """``values`` of TensorFlow's layout in torch's."""
        plain = torch.from_numpy(np.array(values, dtype=np.float32)).reshape(
            values.shape[self.leading :]
        )
        back = [self.axes.index(axis) for axis in range(len(self.axes))]
        return plain.permute(back).contiguous()


def variables(network: ZooNetwork) -> dict[str, Variable]:
    """Every parameter by TensorFlow's name."""
    found = {
        "logit/FC/DW": Variable(network.logits.weight, (1, 0)),
        "logit/FC/biases": Variable(network.logits.bias, (0,)),
    }
    for module in network.modules():
        if isinstance(module, SameConv):
            found[f"{module.scope}/DW"] = Variable(module.weight, (2, 3, 1, 0))
        elif isinstance(module, MomentNorm):
            found[f"{module.scope}/BN/DN_Mean"] = Variable(module.bias, (0,), leading=3)
            found[f"{module.scope}/BN/DN_Variance"] = Variable(module.weight, (0,), leading=3)
    return found


def load_weights(network: ZooNetwork, path: Path) -> tuple[str, ...]:
    """Fill ``network`` from a checkpoint or archive; returns the names it has no use for.

    All of them are read and checked before the first weight changes. Raises ``ModelError`` if one
    is missing, has another shape or holds NaN or infinity.
    """
    if path.suffix == ".npz":
        names, read = _archive(path)
    else:
        checkpoint = open_checkpoint(path)
        names, read = tuple(checkpoint.entries), checkpoint.read
    wanted = variables(network)
    values = {
        name: _checked(path, name, variable, names, read) for name, variable in wanted.items()
    }
    with torch.no_grad():
        for name, variable in wanted.items():
            variable.parameter.copy_(values[name])
    return tuple(name for name in names if name not in wanted)


def save_weights(network: ZooNetwork, path: Path) -> None:
    """Write all weights to ``path`` (``.npz``)."""
    values: dict[str, Any] = {
        name: variable.exported() for name, variable in variables(network).items()
    }
    with replacing(path) as file:
        np.savez_compressed(file, **values)


_Reader = Callable[[str], NDArray[np.generic]]


def _checked(
    path: Path, name: str, variable: Variable, names: tuple[str, ...], read: _Reader
) -> Tensor:
    if name not in names:
        raise ModelError(
            f"{path.name}: the weights of {name!r} are missing; is the file of another network?"
        )
    values = read(name)
    if values.shape != variable.shape or values.dtype.kind != "f":
        raise ModelError(
            f"{path.name}: {name!r} is {values.dtype} {values.shape}, but the network wants "
            f"floats {variable.shape}; is the file of another network?"
        )
    found = variable.imported(values)
    if not bool(torch.isfinite(found).all()):
        raise ModelError(
            f"{path.name}: {name!r} holds NaN or infinity; the training of this network has failed"
        )
    return found


def _archive(path: Path) -> tuple[tuple[str, ...], _Reader]:
    try:
        arrays = read_arrays(path)
    except DataError as error:
        raise ModelError(
            f"{path.name}: cannot be read as a numpy archive ({error}); copy the file again"
        ) from error
    return tuple(arrays), arrays.__getitem__
