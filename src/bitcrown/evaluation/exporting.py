"""Torch networks as ONNX files, and files behind a change of light.

Everything is decided and replayed on an ONNX file. A torch module becomes one in a folder of the
caller, and is run beside it on the input that is asked about: what the exporter wrote is what the
answer is about, so it has to be the module.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitcrown.errors import ModelError
from bitcrown.model.file import NetworkFile, first_line

_OPSET = 17
_TOLERANCE = 1e-3
"""Of the largest output: float32 rounding in another order stays far below."""


def exported(model: Any, points: Sequence[Sequence[np.ndarray]], path: Path) -> Path:
    """``model`` (a torch module or exported program) as the ONNX file ``path``, written at the
    first of ``points`` (each the arrays of all inputs) and compared at all. Raises
    ``ModelError``."""
    import torch

    title = type(model).__name__
    module = model
    if isinstance(model, torch.export.ExportedProgram):
        module = model.module()
        # It was exported in the one mode it has, and raises where it is told to take that.
        for name in ("train", "eval"):
            setattr(module, name, lambda mode=True, itself=module: itself)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"a network is the path of a file, a torch module or an exported program, not {title}"
        )
    was_training = getattr(module, "training", False)
    try:
        module.eval()
        examples = [_example(module, arrays) for arrays in points]
        with torch.no_grad():
            expected = [_arrays(module(*example)) for example in examples]
        _write(module, examples[0], path)
    except Exception as error:  # whatever a user's own module raises
        raise ModelError(f"torch cannot export {title}: {first_line(error)}") from error
    finally:
        module.train(was_training)
    file = NetworkFile(path)
    for example, wanted in zip(examples, expected, strict=True):
        feed = {
            one.name: value.cpu().numpy() for one, value in zip(file.inputs, example, strict=False)
        }
        _require_same(title, file.session.run(None, feed), wanted)
    return path


def _example(module: Any, arrays: Sequence[np.ndarray]) -> tuple[Any, ...]:
    """The arrays as tensors where the module is; floats in its own type."""
    import torch

    tensors = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
    parameter = next(iter(module.parameters()), None)
    if parameter is None:
        return tensors
    return tuple(
        tensor.to(parameter.device, parameter.dtype if tensor.is_floating_point() else None)
        for tensor in tensors
    )


def _arrays(outputs: Any) -> list[np.ndarray]:
    several = outputs if isinstance(outputs, tuple | list) else [outputs]
    return [np.asarray(one.detach().cpu().numpy(), np.float64) for one in several]


def _require_same(title: str, found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    gap = 0.0 if len(found) == len(wanted) else np.inf
    for one, other in zip(found, wanted, strict=False):
        scale = max(1.0, float(np.abs(other).max(initial=0.0)))
        away = np.abs(one - other).max(initial=0.0) / scale if one.shape == other.shape else np.inf
        gap = max(gap, float(away)) if away == away else np.inf
    if not gap <= _TOLERANCE:
        raise ModelError(
            f"the ONNX file that torch writes of {title} computes something else than the module "
            f"(outputs differ by {gap:.3g} of the largest); export it yourself and give the file"
        )


def _write(module: Any, example: tuple[Any, ...], path: Path) -> None:
    import torch

    # (The exporter by tracing needs no further package; what it has to say is for its developers.)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, example, str(path), dynamo=False, opset_version=_OPSET)


def _copied(file: NetworkFile) -> Any:
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(file.proto)
    return model


def lit(
    file: NetworkFile, directions: np.ndarray, base: np.ndarray, folder: Path, **ends: Any
) -> NetworkFile:
    """``file`` behind ``clip(base + z directions)``, as a network of ``z [1, k]``.

    ``directions [k, n]``, ``base [n]`` and the normalisation ``mean``, ``std`` (``[n]``) are
    float32 in the order of the network's input; ``low``, ``high`` (or None) are limits of values.
    Raises ``ModelError`` for files of an opset without ``Clip`` of tensors.
    """
    from onnx import TensorProto, helper, numpy_helper

    opset = next((one.version for one in file.proto.opset_import if one.domain == ""), 0)
    if opset < 13:
        raise ModelError(
            f"{file.path.name} has opset {opset}; brightness and contrast need 13 or later: "
            "export it again"
        )
    model, name = _copied(file), file.inputs[0].name
    shape = np.array(file.inputs[0].shape, np.int64)
    stored = {"directions": directions, "base": base, "shape": shape, **ends}
    stored = {key: value for key, value in stored.items() if value is not None}
    named = {key: f"bitcrown/{key}" for key in stored}
    steps = [("MatMul", ["bitcrown/light", named["directions"]]), ("Add", [named["base"]])]
    if "low" in stored:
        steps.append(("Clip", [named["low"], named["high"]]))
    steps += [("Sub", [named["mean"]]), ("Div", [named["std"]]), ("Reshape", [named["shape"]])]
    nodes, before = [], ""
    for place, (op, others) in enumerate(steps):
        after = name if place == len(steps) - 1 else f"bitcrown/{op}"
        nodes.append(helper.make_node(op, [before, *others] if before else others, [after]))
        before = after
    inner = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *inner])
    kept = [info for info in model.graph.input if info.name != name]
    del model.graph.input[:]
    light = helper.make_tensor_value_info("bitcrown/light", TensorProto.FLOAT, [1, len(directions)])
    model.graph.input.extend([light, *kept])
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), named[key]) for key, value in stored.items()
    )
    path = folder / f"lit-{file.path.name.removesuffix('.gz')}"
    path.write_bytes(model.SerializeToString())
    return NetworkFile(path)
