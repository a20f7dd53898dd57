"""How far onnxruntime may be from the real function: one row per ONNX operator.

Every operator computes ``v = f(z) + e`` from the values ``z`` that it reads. ``Rounding`` bounds
``|e|`` for any order of summation and any kernel that rounds to the result's type after each
operation, or less often; ``bounds.rounding`` makes a number of it once ranges are known. Rows here
are of three kinds:

*exact*: only moves, selects or compares entries (``Relu``, ``MaxPool``, ``Concat``); so is every
    step of its lowering.
*each*: the lowering does what the kernel does, step by step, so each arithmetic step gets the error
    of one. A sum of ``k`` products is off by ``gamma_k`` times the sum of absolute products
    (Higham), everything by half a step of its result. Smooth functions are allowed ``SMOOTH`` half
    steps of their result and of 1: onnxruntime 1.31 stays within six on an x86 CPU (measured,
    800,000 float32 inputs a function).
*last*: the lowering is exact where the kernel is one operation; its last step gets the error.

*normalised*: as *each*, but for the variance, whose error is a share of the mean square, however
    small the variance is (``_mark_normalised``).
*recurrent*: as *each*, for kernels that add the terms of input and state in one sum.

An operator with no row can be bounded as a real function only.

Sixteen-bit types have few kernels on a CPU. There onnxruntime computes in float32 between casts
that it inserts itself, and leaves out roundings between two operators, so that of two readers of a
tensor one may see it rounded and the other not. Hence each reader of a tensor of such a type with
several readers gets a rounding of its own. One reader, through exact operators, sees either:
rounding commutes with moving, selecting and comparing.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.model.graph import Node, Rounding
from bitcrown.model.lowering import LOWERINGS
from bitcrown.model.lowering.builder import Builder, OnnxNode
from bitcrown.model.lowering.dynamic_quantization import INTEGER_SUMS
from bitcrown.model.lowering.quantization import QUANTIZERS, wraps_from
from bitcrown.model.lowering.undefined import require_numbers
from bitcrown.model.rounding_rows import (
    ARITHMETIC,
    CASTS,
    CONTRIB,
    CURVED,
    EACH,
    EXACT,
    FORMATS,
    FRACTIONAL,
    HALVES,
    INTEGRAL,
    NARROW_INTEGERS,
    NORMALISED,
    RECURRENT,
    REQUANTIZED,
    RESULTS,
    SINGLE,
    SMOOTH,
    SMOOTH_HALF,
    TYPED_BY,
    WRAPPING,
    Format,
)


def lower_with_roundings(b: Builder, node: OnnxNode) -> None:
    """Emit the engine nodes of ``node`` and write into them how the runtime rounds; ``b.unrounded``
    where none says."""
    require_numbers(b, node)
    whole = dict(b.tensors)
    for name in set(node.inputs):
        if (
            b.dtypes.get(name) in HALVES
            and b.readers.get(name, 0) > 1
            and b.nodes[b.tensors[name]].op != "Input"
        ):
            b.tensors[name] = _carrier(b, b.tensors[name], _result(FORMATS[b.dtypes[name]]))
    seen = {name: b.tensors[name] for name in node.inputs if b.tensors.get(name) != whole.get(name)}
    before = len(b.nodes)
    LOWERINGS[node.op](b, node)
    dtype = _result_type(b, node)
    # Networks round to be quantized: by Div, Round, Clip and Mul where tools write no pairs.
    if (
        node.op in QUANTIZERS | INTEGER_SUMS
        or node.op == "Round"
        or (node.op == "Div" and "int" in dtype)
    ):
        b.steps.add(node.op)
    b.dtypes.update(dict.fromkeys((name for name in node.outputs if name), dtype))
    if node.op == "TopK" and len(node.outputs) > 1:
        b.dtypes[node.outputs[1]] = "int64"
    _mark(b, node, FORMATS.get(dtype, FORMATS["float32"]), list(b.nodes)[before:])
    for name in seen:
        b.tensors[name] = whole[name]


def rounds_to_half(b: Builder) -> bool:
    """Whether some tensor that depends on the input has a sixteen-bit type."""
    return any(dtype in HALVES for dtype in b.dtypes.values())


def _type_of(b: Builder, name: str) -> str:
    return b.dtypes.get(name) or (b.constants[name].dtype.name if name in b.constants else "")


def _result_type(b: Builder, node: OnnxNode) -> str:
    if node.op == "Cast":
        return CASTS.get(int(node.attrs["to"]), "float32")
    if node.op in RESULTS:
        return RESULTS[node.op]
    if node.op in TYPED_BY:
        return _type_of(b, node.inputs[TYPED_BY[node.op]])
    if node.op == "QuantizeLinear" and len(node.inputs) > 2 and node.inputs[2]:
        return _type_of(b, node.inputs[2])
    kinds = [_type_of(b, name) for name in node.inputs if name]
    # of whole numbers come whole numbers: what divides them must know
    whole = (kind for kind in kinds if "int" in kind)
    return next((kind for kind in kinds if kind in FORMATS), next(whole, "float32"))


def _result(form: Format, ulps: float = 1.0) -> Rounding:
    return Rounding(form.unit, form.least, form.largest, ulps=ulps)


def _carrier(b: Builder, name: str, rounding: Rounding) -> str:
    """A copy of a node that is rounded."""
    return _round(b, b.emit("Scale", (name,)), rounding)


def _round(b: Builder, name: str, rounding: Rounding) -> str:
    b.nodes[name] = replace(b.nodes[name], rounding=rounding)
    return name


def _mark(b: Builder, node: OnnxNode, form: Format, new: list[str]) -> None:
    is_half = form.unit > FORMATS["float32"].unit
    if "int" in b.dtypes[next(filter(None, node.outputs))]:  # files may leave the first one out
        _require_whole(b, node)
        if node.op in WRAPPING:
            _mark_whole(b, node, new)
            return
    if node.op in EXACT and not (is_half and _has_wide_constants(node, form)):
        return
    if node.op == "Div" and "int" in b.dtypes[node.outputs[0]]:
        return
    if node.op in ("Resize", "Upsample") and node.attrs.get("mode", "nearest") == "nearest":
        return
    if node.op in INTEGRAL:  # whole numbers below 1 / unit are numbers of the type
        if is_half:
            _round_last(b, node, new, Rounding(form.unit, form.least, 1 / form.unit))
    elif node.op in ("Clip", "Pad", "LeakyRelu", "PRelu"):
        _round_last(b, node, new, _result(form, 3.0))
    elif node.op == "Cast":
        source = _type_of(b, node.inputs[0])
        is_exact = source in NARROW_INTEGERS or b.dtypes[node.outputs[0]] not in FORMATS
        is_exact |= source in FORMATS and FORMATS[source].unit >= form.unit
        if is_half or not is_exact:
            _round_last(b, node, new, _result(form))
    elif node.op == "Softmax":
        # exp is off by the rounding of x - max, |d| exp(-|d|) < 1/2, and by its own; the sum of n
        # by as much and n - 1
        count = 2.0 * max(b.shape(b.tensors[node.outputs[0]])) + SMOOTH
        _round_last(b, node, new, _result(form)._replace(absolute=count * form.unit))
    elif node.op == "LogSoftmax":  # the same sum, whose logarithm is at most log n
        count = 2.0 * max(b.shape(b.tensors[node.outputs[0]])) + 32 * SMOOTH
        _round_last(b, node, new, _result(form, 4.0)._replace(absolute=count * form.unit))
    elif node.op == "BatchNormalization":
        _round_last(
            b, node, new, _result(form, 2.0)._replace(terms=8, extra=_normalised_size(b, node))
        )
    elif node.op in QUANTIZERS:
        _mark_quantizer(b, node, form, new)
    elif node.op in NORMALISED:
        _mark_normalised(b, form, new)
    elif node.op in RECURRENT and form.unit >= FORMATS["float32"].unit:
        _mark_recurrent(b, form, new)
    elif node.op == "ai.onnx.ml.Scaler" and _type_of(b, node.inputs[0]) not in FORMATS:
        b.unrounded.append(f"{node.op} of whole numbers: {node.name}")
    elif node.op in EACH or _interpolates_exactly(b, node, new):
        for name in new:
            rounding = _step(b.nodes[name], form, is_half, node.op in SINGLE)
            if rounding is not None:
                _round(b, name, rounding)
    else:
        b.unrounded.append(f"{node.op}: {node.name}")


def _require_whole(b: Builder, node: OnnxNode) -> None:
    """Raises ``UnsupportedError`` where onnxruntime would cut what is computed to whole numbers."""
    is_cut = node.op in FRACTIONAL
    if node.op in ("Resize", "Upsample"):
        is_cut = node.attrs.get("mode", "nearest") != "nearest"
    elif node.op == "Pow":
        exponents = b.constant(node.inputs[1], "the exponent").astype(np.float64)
        is_cut = not bool(((exponents >= 0) & (exponents == np.rint(exponents))).all())
    if is_cut:
        raise UnsupportedError(
            f"node {node.name!r} ({node.op}) cuts its results to whole numbers, for which there is "
            "no rule"
        )


def _mark_whole(b: Builder, node: OnnxNode, new: list[str]) -> None:
    """Whole numbers are computed exactly as long as the result is one of their type; beyond it
    onnxruntime has its lowest bits. (On the way there it may have been anywhere: they add and
    multiply modulo a power of two.) A ``Rounding`` of nothing says so, in a real function as well.
    """
    dtype = np.dtype(b.dtypes[node.outputs[0]])
    if node.outputs[0] in b.units or not b.units.keys().isdisjoint(node.inputs):
        return  # these stand for other numbers, and int32 holds their sums
    if dtype.kind == "u" and node.op in ("Sub", "Neg"):
        raise UnsupportedError(
            f"node {node.name!r} ({node.op}) subtracts whole numbers without a sign"
        )
    most = np.iinfo(dtype).max
    largest = float(most) if int(float(most)) == most else math.nextafter(float(most), 0.0)
    _round_last(b, node, new, Rounding(0.0, 0.0, largest))


def _interpolates_exactly(b: Builder, node: OnnxNode, new: list[str]) -> bool:
    """Whether weights and scales of a linear ``Resize`` are whole multiples of 2^-12, so that
    float32 has every place exactly. Else the error of a place is that of a weight, and its
    neighbour may be far larger than what the sum of absolute terms knows of."""
    rule = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    is_linear = node.op == "Resize" and node.attrs.get("mode", "nearest") == "linear"
    if not is_linear or rule not in ("half_pixel", "pytorch_half_pixel", "asymmetric"):
        return False
    matrices = [value for name in new for value in b.nodes[name].params.values()]
    return all(
        value.ndim == 2
        and len(value) * 4096 % value.shape[1] == 0
        and bool((value * 4096 == np.rint(value * 4096)).all())
        for value in matrices
    )


def _mark_quantizer(b: Builder, node: OnnxNode, form: Format, new: list[str]) -> None:
    """Sums of products of integers are exact, and so is what follows a ``Round``; every other step
    is off by at most ``REQUANTIZED`` half steps: scales are combined in float32 before they are
    applied. Kernels of 8 bits may add the zero point before they round, and QLinearAdd multiplies
    integers before their zero points are subtracted: terms of 255, and of ``255 s / s_y``, cancel.
    """
    exact = {"Linear", "MatMulLeft", "Conv"}
    if node.op == "QLinearMatMul":
        exact |= {"Mul", "ReduceSum"}
    for name in new:
        made = b.nodes[name]
        if made.op in exact or (made.op == "Scale" and "scale" not in made.params):
            continue
        rounding = _step(made, form, False, False)
        if rounding is not None:
            _round(b, name, rounding._replace(ulps=max(rounding.ulps, REQUANTIZED)))
    if node.op.endswith("QuantizeLinear"):  # adds its zero point as an integer
        (quotient,) = (b.nodes[name].inputs[0] for name in new if b.nodes[name].op == "Round")
        given = b.nodes[quotient].rounding
        assert given is not None
        _round(b, quotient, given._replace(largest=min(given.largest, wraps_from(b, node))))
        return
    sums = 1.0
    if node.op == CONTRIB + "QLinearAdd":
        first, second, last = (
            float(np.abs(b.constant(node.inputs[k], "a scale").astype(np.float64)).max())
            for k in (1, 4, 6)
        )
        sums += (first + second) / last
    for name in new:
        if b.nodes[name].op == "Round":
            wide = _result(form, REQUANTIZED)._replace(terms=8, extra=256 * sums)
            _round(b, b.nodes[name].inputs[0], wide)


def _mark_normalised(b: Builder, form: Format, new: list[str]) -> None:
    """Let ``Q = mean(x^2)`` over ``n`` terms, ``m`` the mean, ``v = Q - m^2`` the variance, and
    ``g = gamma_(n + 5)``. Computed, ``Q`` is off by ``g Q`` and ``m`` by ``g mean|x| <= g sqrt Q``,
    so ``m^2`` by ``(2 g + g^2 + 2 u) Q`` and the difference by ``u (1 + 4 g) Q`` more: less than
    ``6 g Q`` together. The mean of squares of differences is off by ``g v + g^2 Q``, which is less.
    The difference ``x - m`` may be scaled before it is formed: terms ``|x|`` and ``|m|``.
    """
    exact: set[str] = set()
    for name in new:
        made = b.nodes[name]
        if made.op == "Perturb":
            share = (int(made.attrs["count"]) + 5) * form.unit
            share = 6 * share / (1 - share) if share < 0.5 else math.inf
            least = (int(made.attrs["count"]) + 5) * form.least
            b.nodes[name] = replace(made, attrs={"share": share, "least": least})
            exact |= _made_from(b, made.inputs[0], made.attrs["of"])
    for name in new:
        rounding = None if name in exact else _step(b.nodes[name], form, False, False)
        if rounding is not None:
            is_difference = b.nodes[name].op == "Sub"
            _round(b, name, rounding._replace(terms=4) if is_difference else rounding)


def _made_from(b: Builder, name: str, source: str) -> set[str]:
    """``name`` and all nodes between it and ``source``."""
    if name == source:
        return set()
    return {name}.union(*(_made_from(b, one, source) for one in b.nodes[name].inputs))


def _mark_recurrent(b: Builder, form: Format, new: list[str]) -> None:
    """A kernel may start a sum of ``k`` terms from what it is added to; and it adds up the two
    biases beforehand."""
    made = [b.nodes[name] for name in new]
    longest = max((ARITHMETIC["Linear"](node) for node in made if node.op == "Linear"), default=0)
    for node in made:
        rounding = _step(node, form, False, False)
        if rounding is not None and node.op == "Linear":
            rounding = rounding._replace(terms=2 * longest)
        elif rounding is not None and node.op in ("Add", "Sub"):
            rounding = rounding._replace(terms=longest)
        if rounding is not None:
            _round(b, node.name, rounding)


def _round_last(b: Builder, node: OnnxNode, new: list[str], rounding: Rounding) -> None:
    last = b.tensors[node.outputs[0]]
    if (
        last in new
        and b.nodes[last].op not in ("Input", "Constant")
        and b.nodes[last].rounding is None
    ):
        _round(b, last, rounding)
    else:
        b.tensors[node.outputs[0]] = _carrier(b, last, rounding)


def _step(node: Node, form: Format, is_half: bool, is_single: bool) -> Rounding | None:
    """The rounding of one engine node, None where it is exact."""
    if node.op in ARITHMETIC:
        return _result(form, 1.0 if is_single else 2.0)._replace(terms=ARITHMETIC[node.op](node))
    if node.op not in CURVED:
        return None
    ulps = SMOOTH_HALF if is_half else SMOOTH
    size = max(1.0, float(node.attrs.get("alpha", 1.0)))
    return _result(form, ulps)._replace(
        absolute=0.0 if node.op == "Exp" else ulps * size * form.unit
    )


def _has_wide_constants(node: OnnxNode, form: Format) -> bool:
    """Whether an attribute that becomes an entry of the result is no number of its type."""
    given = [node.attrs.get(key) for key in ("min", "max", "value")]
    numbers = [float(value) for value in given if isinstance(value, float)]
    return any(math.isfinite(value) and not _is_number(value, form) for value in numbers)


def _is_number(value: float, form: Format) -> bool:
    significand, _ = math.frexp(value)
    return abs(value) < form.largest and float(significand / form.unit / 2).is_integer()


def _normalised_size(b: Builder, node: OnnxNode) -> float:
    """What is added to ``x scale``, in absolute terms: the shift is a difference."""
    gain, shift, mean, variance = (
        b.constant(name, "a parameter").astype(np.float64) for name in node.inputs[1:5]
    )
    scale = gain / np.sqrt(variance + node.real("epsilon", 1e-5))
    return float(np.max(np.abs(shift) + np.abs(mean * scale), initial=0.0))
