"""BPDA: the values stay those of the plain network, bit for bit; the slopes are the chosen ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitcrown.attacks.images.bpda import RULES, SubstituteGradient, block_names, bpda
from bitcrown.errors import SettingsError
from bitcrown.zoo.networks import ZooNetwork, ZooPlan, ZooStage
from bitcrown.zoo.quantizer import Quantizer

TINY = ZooPlan((ZooStage(4, ("",)), ZooStage(6, ("_0",))))


def tiny(seed: int = 0) -> ZooNetwork:
    return ZooNetwork(TINY, torch.Generator().manual_seed(seed)).eval()


def pixels(seed: int = 0, count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def gradient(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(x).pow(2).sum(), x)
    return found


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4))
def test_values_are_those_of_the_plain_network_bit_for_bit(
    rule: str, seed: int, count: int
) -> None:
    network, x = tiny(seed), pixels(seed + 1, count)
    model = bpda(network, rule)
    plain = network(x).detach()
    assert torch.equal(model(x.clone().requires_grad_()).detach(), plain)
    with torch.no_grad():
        assert torch.equal(model(x), plain)


def test_the_published_gradient_is_nan_and_every_rule_gives_one_that_is_not() -> None:
    network, x = tiny(), pixels()
    assert gradient(network, x).isnan().all()
    for rule in RULES:
        found = gradient(bpda(network, rule), x)
        assert torch.isfinite(found).all()
        assert (found.flatten(1).abs().amax(dim=1) > 0).all(), rule


def test_removed_has_the_gradient_of_the_network_without_blocks() -> None:
    network, x = tiny(), pixels()
    outside = SubstituteGradient(network, network.with_plan(quantized=False))
    assert torch.equal(gradient(bpda(network, "removed"), x), gradient(outside, x))
    # ... taken at the quantized values: the loss is that of the network that is attacked.
    assert not torch.equal(gradient(outside, x), gradient(network.with_plan(quantized=False), x))


class Halves(nn.Module):
    """Rounds down to halves; the slope of its surrogate is 3 (straight-through) or 5 (smooth)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(2 * x) / 2

    def surrogate(self, x: Tensor, rule: str) -> Tensor:
        return {"straight-through": 3.0, "smooth": 5.0}[rule] * x


@pytest.mark.parametrize(
    ("rule", "slope"), [("identity", 1), ("straight-through", 3), ("smooth", 5)]
)
def test_slope_of_a_block_is_taken_at_its_real_input_and_output(rule: str, slope: float) -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    network = nn.Sequential(Square(), Halves(), Square())
    x = torch.tensor([[1.3]], requires_grad=True)
    y = bpda(network, rule)(x)
    y.sum().backward()
    block = 1.5  # 1.3 squared is 1.69, down to halves
    assert y.item() == block * block
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[2 * block * slope * 2 * 1.3]]))


def test_weights_are_shared_and_learn_through_the_blocks() -> None:
    network = tiny()
    for rule in RULES:
        network.zero_grad()
        bpda(network, rule)(pixels()).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), (rule, name)


@pytest.mark.parametrize("rule", ["straight-through", "smooth"])
@pytest.mark.parametrize("name", ["round", "floor", "ceil", "trunc", "sign"])
def test_rounding_anywhere_has_a_slope_without_a_block(name: str, rule: str) -> None:
    x = torch.linspace(-2.3, 2.4, 40).unsqueeze(1)
    for function in (getattr(torch, name), getattr(Tensor, name)):
        model = bpda(lambda z, function=function: 3 * function(z), rule)
        assert torch.equal(model(x), 3 * function(x))
        assert not gradient(lambda z, function=function: 3 * function(z) + 0 * z, x).any()
        found = gradient(model, x)
        assert torch.isfinite(found).all() and found.abs().max() > 0.1


def test_the_smooth_slopes_are_those_of_a_ramp_that_climbs_one_step_a_step() -> None:
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1].unsqueeze(1)
    for name in ("round", "floor", "ceil"):
        z = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(bpda(getattr(torch, name), "smooth")(z).sum(), z)
        assert slope.mean().item() == pytest.approx(1.0, abs=1e-9)
        jump = 0.5 if name == "round" else 0.0
        assert slope[int(jump * 1000)].item() == pytest.approx(2.0)


def test_networks_read_from_onnx_get_slopes_too() -> None:
    from bitcrown.model.execute import Network
    from bitcrown.model.graph import Graph, Node

    nodes = {
        "x": Node("x", "Input", (), (2,)),
        "y": Node("y", "Round", ("x",), (2,)),
    }
    network = Network(Graph(nodes, ("x",), ("y",)), torch.float32)
    x = torch.tensor([[0.4, 1.7]])
    assert not gradient(lambda z: network(z) + 0 * z, x).any()
    model = bpda(network, "straight-through")
    assert torch.equal(model(x), network(x))
    torch.testing.assert_close(gradient(model, x), torch.tensor([[0.0, 4.0]]))


def test_what_cannot_be_replaced_is_said() -> None:
    with pytest.raises(SettingsError, match="no BPDA rule 'magic'"):
        bpda(tiny(), "magic")
    for rule in ("identity", "removed"):
        with pytest.raises(SettingsError, match="has none"):
            bpda(nn.Linear(2, 2), rule)
    with pytest.raises(SettingsError, match=r"0 \(ReLU\) has no surrogate"):
        bpda(nn.Sequential(nn.ReLU()), "smooth", lambda module: isinstance(module, nn.ReLU))
    wrong = SubstituteGradient(nn.Identity(), lambda x: x[:, :1])
    with pytest.raises(SettingsError, match="shape"):
        wrong(torch.zeros(2, 3, requires_grad=True))


def test_blocks_are_found_outermost_first_and_can_be_named() -> None:
    network = tiny()
    assert len(block_names(network)) == 4
    assert all(isinstance(network.get_submodule(name), Quantizer) for name in block_names(network))
    nested = nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU())
    assert block_names(nested, lambda module: isinstance(module, nn.ReLU | nn.Sequential)) == ("",)
    identity = bpda(nested, "identity", lambda module: isinstance(module, nn.ReLU))
    assert torch.equal(gradient(identity, torch.tensor([[-1.0, 2.0]])), torch.tensor([[0.0, 4.0]]))
    removed = bpda(nn.ReLU(), "removed", lambda module: True)
    assert torch.equal(gradient(removed, torch.tensor([[-1.0, 2.0]])), torch.tensor([[0.0, 4.0]]))
