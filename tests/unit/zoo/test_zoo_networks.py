"""The zoo's networks: published sizes, the published block, batch dependence, weights of
TensorFlow."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitcrown.errors import ModelError
from bitcrown.zoo.networks import (
    PLANS,
    MomentNorm,
    SameConv,
    ZooNetwork,
    ZooPlan,
    ZooStage,
    build_network,
)
from bitcrown.zoo.quantizer import Quantizer
from bitcrown.zoo.weights import load_weights, save_weights, variables

REAL = Path(__file__).resolve().parents[2] / "data" / "zoo"
TINY = ZooPlan((ZooStage(2, ("",)), ZooStage(4, ("_0",), plain=True)))


def real_tiny() -> ZooNetwork:
    network = ZooNetwork(TINY).eval()
    assert load_weights(network, REAL / "tiny") == ()
    return network


def random_images(seed: int, count: int = 4, size: int = 8) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "parameters", "quantizers"), [("model_1", 43_911_430, 12), ("model_2", 25_916_422, 14)]
)
def test_published_sizes(name: str, parameters: int, quantizers: int) -> None:
    with torch.device("meta"):
        network = ZooNetwork(PLANS[name])
    assert network.parameter_count() == parameters
    assert sum(isinstance(module, Quantizer) for module in network.modules()) == quantizers
    assert sum(variable.parameter.numel() for variable in variables(network).values()) == parameters
    plain = network.with_plan(quantized=False)
    assert plain.parameter_count() == parameters
    assert not any(isinstance(module, Quantizer) for module in plain.modules())


@pytest.mark.parametrize("quantized", [False, True])
def test_a_checkpoint_of_tensorflow_gives_tensorflows_logits(quantized: bool) -> None:
    network = real_tiny().with_plan(quantized=quantized)
    kept = np.load(REAL / "tiny.logits.npz")
    x = torch.from_numpy(kept["images"]).permute(0, 3, 1, 2)
    kind = "quantized" if quantized else "plain"
    with torch.no_grad():
        single, double = network(x), copy.deepcopy(network).double()(x.double())
    torch.testing.assert_close(single, torch.from_numpy(kept[f"{kind}_float32"]), rtol=0, atol=5e-6)
    torch.testing.assert_close(
        double, torch.from_numpy(kept[f"{kind}_float64"]), rtol=0, atol=1e-12
    )


def test_the_blocks_change_the_logits_and_share_the_weights() -> None:
    network = real_tiny()
    plain = network.with_plan(quantized=False)
    assert not torch.allclose(plain(random_images(0)), network(random_images(0)), atol=1e-3)
    for own, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        assert own is theirs
    assert torch.equal(plain.with_plan(quantized=True)(random_images(0)), network(random_images(0)))


def test_logits_depend_on_batch_mates_as_published_but_not_per_image() -> None:
    network, x = real_tiny(), random_images(1)
    alone = torch.cat([network(image) for image in x.split(1)])
    assert (alone - network(x)).abs().max() > 1e-3
    single = network.with_plan(per_image=True)
    torch.testing.assert_close(single(x), alone, rtol=0, atol=1e-5)
    gradient = torch.autograd.functional.jacobian(
        lambda z: network.with_plan(quantized=False)(z)[0, 0], x
    )
    assert gradient[1:].abs().max() > 0
    gradient = torch.autograd.functional.jacobian(
        lambda z: single.with_plan(quantized=False)(z)[0, 0], x
    )
    assert not gradient[1:].any() and gradient[0].any()


# ---- The quantization block


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100.0))
def test_the_block_rounds_up_to_tenths_of_the_largest_magnitude(seed: int, scale: float) -> None:
    x = scale * torch.randn(
        1, 2, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    peak = x.abs().max()
    tenths = 10 * x / peak
    away = (tenths - tenths.round()).abs() > 1e-4
    found = Quantizer()(x)
    torch.testing.assert_close(
        found[away], (tenths.ceil() / 10 * peak)[away], rtol=1e-9, atol=1e-12
    )
    assert found.min() >= -0.95 * peak * (1 + 1e-9) and found.max() <= 1.05 * peak * (1 + 1e-9)


def test_on_the_grid_the_block_is_half_a_step_above() -> None:
    x = torch.tensor([[[[0.0, 1.0, -1.0, 0.5]]]])
    torch.testing.assert_close(
        Quantizer()(x), torch.tensor([[[[0.05, 1.05, -0.95, 0.55]]]]), rtol=0, atol=1e-6
    )


def test_slopes_of_the_published_block() -> None:
    above = torch.tensor([[[[1.0, 0.52, -0.38]]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(Quantizer()(above)[0, 0, 0, 1:].sum(), above)
    assert not gradient[0, 0, 0, 1:].any()
    # One activation just below a step, and through the scale the gradient of all of them is lost.
    below = torch.tensor([[[[1.0, 0.52, 0.48]]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(Quantizer()(below)[0, 0, 0, 1], below)
    assert gradient.isnan().all()


@pytest.mark.parametrize("rule", ["straight-through", "smooth"])
def test_surrogate_lies_on_the_block_and_has_a_slope_near_one(rule: str) -> None:
    x = random_images(3, 2).sub(0.5).double().requires_grad_()
    block = Quantizer()
    found = block.surrogate(x, rule)
    torch.testing.assert_close(found.detach(), block(x).detach(), rtol=0, atol=1e-6)
    inner = (x.detach().abs() < x.detach().abs().max()).to(x.dtype)
    (slope,) = torch.autograd.grad((found * inner).sum(), x)
    chosen = slope[inner.bool()]
    assert chosen.min() > 0.4 and chosen.max() <= 1 + 1e-6
    if rule == "straight-through":
        torch.testing.assert_close(chosen, torch.ones_like(chosen))


def test_the_scale_is_the_batchs_or_the_images() -> None:
    x = torch.stack([torch.full((1, 2, 2), 0.3), torch.full((1, 2, 2), 3.0)])
    torch.testing.assert_close(Quantizer()(x)[0], torch.full((1, 2, 2), 0.45), rtol=0.34, atol=0)
    torch.testing.assert_close(Quantizer(per_image=True)(x), 1.05 * x, rtol=1e-5, atol=0)
    torch.testing.assert_close(Quantizer()(x)[1], 1.05 * x[1], rtol=1e-5, atol=0)


# ---- Layers


@pytest.mark.parametrize(("size", "stride", "extent"), [(3, 2, 8), (3, 2, 7), (3, 1, 5), (1, 1, 4)])
def test_same_padding_is_tensorflows(size: int, stride: int, extent: int) -> None:
    layer = SameConv(1, 1, "", size=size, stride=stride).double()
    layer.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(
        1, 1, extent, extent, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    outputs = -(-extent // stride)
    before = max(0, (outputs - 1) * stride + size - extent) // 2
    found = layer(x)
    assert found.shape[2:] == (outputs, outputs)
    for row in range(outputs):
        for column in range(outputs):
            total = 0.0
            for i in range(size):
                for j in range(size):
                    r, c = row * stride + i - before, column * stride + j - before
                    if 0 <= r < extent and 0 <= c < extent:
                        total += (layer.weight[0, 0, i, j] * x[0, 0, r, c]).item()
            assert found[0, 0, row, column].item() == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("per_image", [False, True])
def test_moments_are_those_of_the_batch_or_the_image(per_image: bool) -> None:
    layer = MomentNorm(2, "", per_image).double().eval()
    layer.weight.data = torch.tensor([2.0, 0.5], dtype=torch.float64)
    layer.bias.data = torch.tensor([0.1, -1.0], dtype=torch.float64)
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    axes = (2, 3) if per_image else (0, 2, 3)
    mean, variance = x.mean(axes, keepdim=True), x.var(axes, correction=0, keepdim=True)
    expected = (x - mean) / torch.sqrt(variance + 1e-9)
    expected = expected * layer.weight.view(1, 2, 1, 1) + layer.bias.view(1, 2, 1, 1)
    torch.testing.assert_close(layer(x), expected)


# ---- Weights


def test_weights_survive_a_round_trip(tmp_path: Path) -> None:
    network = build_network("small", seed=3)
    save_weights(network, tmp_path / "w.npz")
    again = build_network("small", seed=4, quantized=False)
    assert load_weights(again, tmp_path / "w.npz") == ()
    for own, theirs in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(own, theirs)
    assert all(
        variable.exported().shape == variable.shape for variable in variables(network).values()
    )


def test_wrong_weights_change_nothing(tmp_path: Path) -> None:
    network = build_network("small")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    good = {
        name: variable.exported()
        for name, variable in variables(build_network("small", seed=9)).items()
    }
    name = "logit/FC/biases"
    cases = {
        "missing": {key: value for key, value in good.items() if key != name},
        "wants floats": good | {name: good[name][:5]},
        "NaN": good | {name: np.full(10, np.nan, np.float32)},
        "int64": good | {name: np.zeros(10, np.int64)},
    }
    for message, values in cases.items():
        np.savez(tmp_path / "w.npz", **values)
        with pytest.raises(ModelError, match=message):
            load_weights(network, tmp_path / "w.npz")
    (tmp_path / "w.npz").write_bytes(b"no archive")
    with pytest.raises(ModelError, match="numpy archive"):
        load_weights(network, tmp_path / "w.npz")
    with pytest.raises(ModelError, match="wants floats"):
        load_weights(network, REAL / "tiny")
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    np.savez(tmp_path / "w.npz", **good, global_step=np.array(7))
    assert load_weights(network, tmp_path / "w.npz") == ("global_step",)
