"""Torch networks where files are expected: ``bitcrown.load(module, property)``."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bitcrown
from bitcrown import Property
from bitcrown.errors import ModelError, PropertyError
from bitcrown.verdict import Status


class TwoInputs(nn.Module):
    """Of an image and a row: ``relu(mean of channels)`` summed, minus the row's sum."""

    def forward(self, image: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.relu(image.mean(dim=1)).sum(dim=(1, 2))
        return total[:, None], total[:, None] - row.sum(dim=1, keepdim=True)


class TakesTurns(nn.Module):
    """What tracing cannot see: another function on the other side of zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.detach().sum()) >= 0 else x * 3


def linear(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))


def box(width: str = "1") -> tuple[Property, object, object]:
    ask = Property()
    x, y = ask.input("x", [1, 3]), ask.output("y", [1, 2])
    ask.assume(x >= f"-{width}", x <= width)
    return ask, x, y


def test_module_and_exported_program_are_decided() -> None:
    module = linear().train()
    program = torch.export.export(linear().eval(), (torch.zeros(1, 3),))
    for network in (module, program):
        ask, _, y = box()
        ask.prove(y <= 50)
        assert bitcrown.verify(bitcrown.load(network, ask)).status is Status.UNSAT
        ask.prove(y[0, 0] > y[0, 1] + 100)
        verdict = bitcrown.verify(bitcrown.load(network, ask))
        assert verdict.status is Status.SAT
        with torch.no_grad():
            found = linear()(torch.from_numpy(verdict.witness.inputs["x"]).reshape(1, 3))
        np.testing.assert_allclose(verdict.witness.outputs["y"], found[0].numpy(), atol=1e-5)
    assert module.training, "a module keeps its mode"


def test_several_inputs_and_outputs() -> None:
    ask = Property()
    image, row = ask.input("image", [1, 2, 3, 3]), ask.input("row", [1, 2])
    total, rest = ask.output("total", [1, 1]), ask.output("rest", [1, 1])
    ask.assume(image >= 0, image <= 1, row >= 0, row <= 1)
    ask.prove(total <= "9.01", rest - total <= "0.01")
    assert bitcrown.verify(bitcrown.load(TwoInputs(), ask)).status is Status.UNSAT


def test_one_module_under_two_names_is_one_network() -> None:
    ask = Property()
    x, y = ask.input("x", [1, 3], network="f"), ask.output("y", [1, 2], network="f")
    u, v = ask.input("u", [1, 3], network="g"), ask.output("v", [1, 2], network="g")
    ask.assume(x >= -1, x <= 1, u == x)
    ask.prove(v == y)
    module = linear()
    assert bitcrown.verify(bitcrown.load({"f": module, "g": module}, ask)).status is Status.UNSAT
    assert bitcrown.verify(bitcrown.load({"f": module, "g": linear(1)}, ask)).status is Status.SAT
    with pytest.raises(PropertyError, match="no file was given"):
        bitcrown.load({"f": module}, ask)


def test_files_live_as_long_as_the_problem() -> None:
    ask, _, y = box()
    ask.prove(y <= 50)
    problem = bitcrown.load(linear(), ask)
    path = Path(problem.networks["N"])
    assert path.exists()
    del problem
    gc.collect()
    assert not path.parents[1].exists()


def test_property_from_a_file(tmp_path: Path) -> None:
    """Of VNN-LIB 2, which has shapes; of 1.0 a flat input is one row."""
    ask, _, y = box()
    ask.prove(y <= 50)
    (tmp_path / "two.vnnlib").write_text(str(ask))
    lines = [f"(declare-const X_{k} Real)" for k in range(3)]
    lines += [f"(declare-const Y_{k} Real)" for k in range(2)]
    lines += [f"(assert (<= X_{k} 1.0))\n(assert (>= X_{k} -1.0))" for k in range(3)]
    (tmp_path / "one.vnnlib").write_text("\n".join([*lines, "(assert (>= Y_0 50.0))"]))
    for name in ("one", "two"):
        problem = bitcrown.load(linear(), tmp_path / f"{name}.vnnlib")
        assert bitcrown.verify(problem).status is Status.UNSAT


def test_what_cannot_be_exported_is_a_sentence() -> None:
    ask, x, y = box()
    ask.assume(x[0, 0] >= "0.5", x[0, 1] >= "0.1", x[0, 2] >= "-0.9")
    ask.prove(y <= 50)
    with pytest.raises(ModelError, match="torch cannot export Linear: mat1 and mat2"):
        bitcrown.load(nn.Linear(7, 2), ask)
    turned = Property()
    x, y = turned.input("x", [1, 3]), turned.output("y", [1, 3])
    turned.assume(x >= -1, x <= 2)
    turned.prove(y <= 50)
    with pytest.raises(ModelError, match="computes something else than the module"):
        bitcrown.load(TakesTurns(), turned)
