"""One code for CPU and CUDA: nothing is made on the default device by accident, and both devices
decide alike."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import bitcrown.search.decision as decision
from bitcrown import Settings, Status, load, verify
from bitcrown.model.graph import Graph
from bitcrown.search.inputs.bounds import BoxBounder
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.train.architectures import architecture
from bitcrown.train.images import Normalisation
from bitcrown.train.network import TrainableNetwork
from bitcrown.train.schedules import StepValues
from bitcrown.train.settings import TrainSettings
from bitcrown.train.step import TrainingBatch, TrainingStep, optimiser_of, parts_of
from bitcrown.verdict import Reason, Verdict
from tests.random_networks import box_property, conv_graph, dense_graph, save_onnx

SUITE = Path(__file__).resolve().parents[2] / "benchmarks/quickstart"
FACTORIES = (
    torch.zeros,
    torch.ones,
    torch.full,
    torch.empty,
    torch.arange,
    torch.eye,
    torch.rand,
    torch.randn,
)
ROOMS = ("bounds", "search", "attacks")


class DeviceWatch(TorchFunctionMode):
    """Notes every place in ``ROOMS`` that makes a tensor without saying where."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[tuple[str, int | None]] = set()
        self.calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES:
            caller = next(
                f
                for f in reversed(traceback.extract_stack()[:-1])
                if "torch" not in Path(f.filename).parts
            )
            if any(f"/bitcrown/{room}/" in caller.filename for room in ROOMS):
                self.calls += 1
                if kwargs.get("device") is None:
                    self.places.add((caller.filename, caller.lineno))
        return func(*args, **kwargs)


def decide(graph: Graph, folder: Path, width: float, formula: str, device: str) -> Verdict:
    save_onnx(graph, folder / "net.onnx")
    centre = np.random.default_rng(1).normal(size=graph.n_inputs)
    box = ((centre + sign * width).astype(np.float32).astype(np.float64) for sign in (-1, 1))
    (folder / "p.vnnlib").write_text(box_property(*box, graph.n_outputs, formula))
    return verify(
        load(folder / "net.onnx", folder / "p.vnnlib"), Settings(device=device), cpu_seconds=60.0
    )


@pytest.mark.parametrize("search", ["input split", "neuron split", "neuron split, no clipping"])
def test_every_tensor_is_made_where_the_network_is(
    search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if search != "input split":
        monkeypatch.setattr(decision, "FEW_INPUTS", 0)
    if search.endswith("clipping"):
        monkeypatch.setattr("bitcrown.search.neurons.guide.SMALL_NETWORK", 0)
        monkeypatch.setattr("bitcrown.search.neurons.root.CLIP_INPUTS", 0)
    with DeviceWatch() as watch:
        for formula in ("(<= Y_0 Y_1)", "(and (<= Y_0 Y_1) (>= Y_0 -1))", "(<= Y_0 -3)"):
            decide(dense_graph(4, [6, 24, 24, 2]), tmp_path, 0.4, formula, "cpu")
    assert watch.calls
    assert not watch.places


@pytest.mark.parametrize("largest", [0, 3])
@pytest.mark.parametrize("search", ["input split", "neuron split"])
def test_a_device_without_memory_has_smaller_rounds(
    search: str, largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than ``largest`` boxes or domains are too many at a time: nothing is lost, unless that
    is one."""
    if search == "neuron split":
        monkeypatch.setattr(decision, "FEW_INPUTS", 0)
    owner, name = {
        "input split": (BoxBounder, "sharp"),
        "neuron split": (DomainBounder, "improve"),
    }[search]
    honest, refused = getattr(owner, name), []

    def planted(self: Any, given: Any, *others: Any) -> Any:
        if len(given) > largest:
            refused.append(len(given))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, given, *others)

    monkeypatch.setattr(owner, name, planted)
    graph = dense_graph(4, [6, 24, 24, 2])
    verdict = decide(graph, tmp_path, 0.5, "(and (<= Y_0 Y_1) (>= Y_0 -1))", "cpu")
    monkeypatch.setattr(owner, name, honest)
    expected = decide(graph, tmp_path, 0.5, "(and (<= Y_0 Y_1) (>= Y_0 -1))", "cpu")
    assert expected.status is Status.UNSAT and expected.decided_by == search
    assert refused
    if largest:
        assert verdict.status is expected.status
    else:
        assert (verdict.status, verdict.reason) == (Status.UNKNOWN, Reason.MEMORY)


def step_on_meta(**settings: Any) -> None:
    """A step on a device that has shapes and no numbers: whatever asks it for one, or mixes
    devices, raises."""
    chosen = TrainSettings(1 / 255, device="cpu", beta_end=0.5, **settings)
    network = TrainableNetwork(architecture("resnet_mini")).to("meta")
    step = TrainingStep(
        network,
        optimiser_of(network, chosen),
        chosen,
        Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    )
    images, labels = (
        torch.rand(4, 3, 32, 32, device="meta"),
        torch.zeros(4, dtype=torch.int64, device="meta"),
    )
    now = StepValues(1 / 255, 0.5, 0.5, 1e-3)
    means = step(TrainingBatch(images, labels, images), now, parts_of(chosen, now, 1))
    assert means.device.type == "meta"


@pytest.mark.parametrize("precision", ["full", "mixed"])
@pytest.mark.parametrize("fusion", ["on", "off"])
@pytest.mark.parametrize("method", ["natural", "adversarial", "certified", "mixed"])
def test_a_training_step_never_waits_for_the_device(
    method: str, fusion: str, precision: str
) -> None:
    step_on_meta(method=method, fusion=fusion, precision=precision)


@pytest.mark.parametrize("fault", ["a tensor made elsewhere", "a number asked for"])
def test_a_training_step_that_waits_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitcrown.train.step as step

    honest = step.certified_loss

    def planted(view: Any, box: Any, labels: torch.Tensor, *others: Any) -> torch.Tensor:
        loss = honest(view, box, labels, *others)
        return loss + (torch.zeros(4) if fault.endswith("elsewhere") else loss.sum().item())

    monkeypatch.setattr(step, "certified_loss", planted)
    with pytest.raises(RuntimeError):
        step_on_meta(method="mixed")


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["natural", "adversarial", "certified", "mixed"])
def test_cuda_trains_as_the_cpu_does(method: str) -> None:
    """Recorded steps included: an epoch has more than ``WARM_UP``."""
    from bitcrown.train.training import Images, new_run, train

    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.rand(512, 3, 32, 32, generator=generator),
        torch.randint(0, 10, (512,), generator=generator),
    )
    curves = []
    for device in ("cpu", "cuda"):
        settings = TrainSettings(
            1 / 255,
            method,
            epochs=3,
            batch=32,
            learning_rate=1e-4,
            eps_start=0.1,
            eps_end=0.3,
            device=device,
        )
        run = new_run(architecture("resnet_mini"), settings, Normalisation((0.5,) * 3, (0.25,) * 3))
        for _ in train(run, Images.of(x.numpy(), y.numpy(), torch.device(device))):
            pass
        curves.append([row["loss"] for row in run.history])
    assert curves[0] == pytest.approx(curves[1], rel=0.02)
    assert curves[0][-1] != curves[0][0]


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "formula", ["(<= Y_0 Y_1)", "(and (<= Y_0 Y_1) (>= Y_0 -1))", "(<= Y_0 -3)"]
)
def test_cuda_decides_as_the_cpu_does(seed: int, formula: str, tmp_path: Path) -> None:
    graph = dense_graph(seed, [20, 30, 30, 2])
    found = [decide(graph, tmp_path, 0.1, formula, device).status for device in ("cpu", "cuda")]
    assert found[0] is found[1] and found[0] in (Status.SAT, Status.UNSAT)


@pytest.mark.gpu
def test_cuda_bounds_are_those_of_the_cpu() -> None:
    from bitcrown.bounds.intermediate import LayerBounder
    from bitcrown.model.execute import Network

    for seed in range(5):
        graph = conv_graph(seed)
        centre = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, graph.n_inputs)))
        found = []
        for device in ("cpu", "cuda"):
            network = Network(graph, torch.float64, device)
            box = network.tensor(centre - 0.2), network.tensor(centre + 0.2)
            with torch.no_grad():
                found.append(LayerBounder(network, 1 << 24).run(*box).bounds)
        for name, pair in found[0].items():
            for mine, other in zip(pair, found[1][name], strict=True):
                assert torch.allclose(mine, other.cpu(), rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
def test_cuda_decides_the_quickstart_suite(tmp_path: Path) -> None:
    import csv

    rows = list(csv.reader((SUITE / "instances.csv").read_text().splitlines()))
    for onnx, vnnlib, _ in [row for row in rows if not row[0].startswith("[")]:
        problem = load(SUITE / onnx, SUITE / vnnlib)
        found = [
            verify(problem, Settings(device=device), cpu_seconds=60.0).status
            for device in ("cpu", "cuda")
        ]
        assert found[0] is found[1] and found[0] in (Status.SAT, Status.UNSAT)
