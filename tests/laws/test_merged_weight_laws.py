"""Laws of merged weights: an entry that cancels is off by a share of itself, as bounds expect."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bitcrown
from bitcrown.model import merged_weights
from bitcrown.model.fusion import fused
from bitcrown.model.graph import Node
from bitcrown.model.merged_weights import product_of_weights, sums_of_weights
from bitcrown.settings import Settings
from bitcrown.verdict import Status
from tests.fuzz.float_family import only_proofs

SHARE = Fraction(64, 1 << 54)
"""Of the shortest of the longest sums that bounds count: half."""


def matrices(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two whose numbers differ in size, most often with terms that cancel."""
    o, k, i = rng.integers(1, 7, size=3)
    outer, inner = (
        rng.normal(size=shape) * 2.0 ** rng.integers(-60, 60, size=shape)
        for shape in ((o, k), (k, i))
    )
    if rng.random() < 0.7:
        outer[:, -1], inner[-1] = -outer[:, 0], inner[0] * (1 + 2.0**-50)
    return outer, inner


def assert_products_are_near(outer: np.ndarray, inner: np.ndarray) -> None:
    found = product_of_weights(outer, inner)
    assert found is not None
    for (a, b), value in np.ndenumerate(found):
        pairs = zip(outer[a].tolist(), inner[:, b].tolist(), strict=True)
        exact = sum((Fraction(v) * Fraction(w) for v, w in pairs), Fraction(0))
        assert abs(Fraction(float(value)) - exact) <= SHARE * abs(exact)


def test_products_of_weights_are_near_the_real_numbers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert_products_are_near(*matrices(rng))


def test_a_product_as_computed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the exact sums the law above fails."""
    monkeypatch.setattr(merged_weights, "_LEAST_SUM", 1e100)
    with pytest.raises(AssertionError):
        test_products_of_weights_are_near_the_real_numbers()


def test_sums_of_weights_are_rounded_once() -> None:
    weights = np.array([[1.0], [2.0**-60], [-1.0], [3.0], [0.1], [0.2]])
    found = sums_of_weights(weights, np.array([0, 0, 0, 3, 4, 4]))
    assert found is not None
    assert found[:, 0].tolist() == [2.0**-60, 0.0, 0.0, 3.0, 0.1 + 0.2, 0.0]


@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e-310, 1e200])
def test_numbers_without_exact_products_are_not_merged(odd: float) -> None:
    weights = np.array([[1.0, odd]])
    assert product_of_weights(weights, np.ones((2, 1))) is None
    assert product_of_weights(np.ones((1, 1)), weights) is None
    assert sums_of_weights(weights, np.array([0])) is None
    first = Node("a", "Linear", ("x",), (2,), {}, {"weight": weights.T})
    second = Node("b", "Linear", ("a",), (1,), {}, {"weight": np.ones((1, 2))})
    assert fused(second, {"a": first}, {"a": 1}) == (second,)


def saved(path: Path, first: list[float], second: list[list[float]]) -> Path:
    """``x -> (x first) second`` of one input in double precision."""
    weights = {"w": np.array([first]), "v": np.array(second)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"])]
    nodes.append(helper.make_node("MatMul", ["a", "v"], ["y"]))
    shapes = {"x": (1, 1), "y": (1, len(second[0]))}
    x, y = (helper.make_tensor_value_info(k, TensorProto.DOUBLE, v) for k, v in shapes.items())
    known = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], known))
    model.ir_version, model.opset_import[0].version = 10, 21
    onnx.save(model, path)
    return path


def is_proved(networks: object, path: Path, text: str) -> bool:
    path.write_text(text)
    with only_proofs():
        asked = bitcrown.load(networks, path)
        verdict = bitcrown.verify(asked, Settings(device="cpu", threads=1), cpu_seconds=0.5)
    return verdict.status is Status.UNSAT


@pytest.mark.parametrize(("asked", "is_true"), [(0.5, False), (2.5, True)])
def test_a_weight_that_large_ones_leave_is_there(
    asked: float, is_true: bool, tmp_path: Path
) -> None:
    """``1e16 x + x - 1e16 x`` was taken for 0, and proved to stay below 1/2; it is ``x``, and 2 in
    onnxruntime where ``x`` is 1.5. (The other output is large, so that readings agree.)"""
    net = saved(tmp_path / "n.onnx", [1e16, 1.0, -1e16], [[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    text = "(declare-const X_0 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)"
    text += f"(assert (>= X_0 1))(assert (<= X_0 2))(assert (>= Y_0 {asked}))"
    assert is_proved(net, tmp_path / "p.vnnlib", text) == is_true


@pytest.mark.parametrize(("order", "is_true"), [("<", False), (">", True)])
def test_a_derivative_has_the_sign_that_rounding_would_turn(
    order: str, is_true: bool, tmp_path: Path
) -> None:
    """The weights add up to -2^-55, in double precision to 2^-55: the network was proved to rise
    with its input, and falls."""
    small = [1.5 * 2.0**-53, -1.75 * 2.0**-53]
    net = saved(tmp_path / "n.onnx", [1.0, small[0], -1.0, small[1]], [[1.0]] * 4)
    text = "(vnnlib-version <2.0>)"
    for name in "fg":
        text += f"(declare-network {name} (declare-input X_{name} float64 [1,1])"
        text += f"(declare-output Y_{name} float64 [1,1]))"
    for name in "fg":
        text += f"(assert (>= X_{name}[0,0] 0))(assert (<= X_{name}[0,0] 1))"
    text += f"(assert (>= X_f[0,0] X_g[0,0]))(assert ({order} Y_f[0,0] Y_g[0,0]))"
    assert is_proved({"f": net, "g": net}, tmp_path / "p.vnnlib", text) == is_true
