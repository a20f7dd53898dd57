"""Small networks are bounded on the CPU although there is another device, large ones are not; and
no search plans with more memory than the device has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.search.device import budget_on, network_where_faster, pass_seconds
from tests.random_networks import dense_graph

BOX = np.zeros(3), np.ones(3)


@pytest.mark.parametrize(
    ("cpu_box", "device_pass", "chosen"), [(1e-6, 1e-2, "cpu"), (1e-3, 1e-2, "meta")]
)
def test_the_faster_of_two_devices_is_taken(
    cpu_box: float, device_pass: float, chosen: str
) -> None:
    network = Network(dense_graph(0, [3, 8, 2]), torch.float64, "meta")
    asked: list[tuple[str, int]] = []

    def seconds(network: Network, box: object, count: int) -> float:
        asked.append((network.device.type, count))
        return device_pass if network.device.type == "meta" else cpu_box * count

    found = network_where_faster(network, BOX, 1000, seconds)
    assert found.device.type == chosen
    assert asked[0] == ("meta", 1000)
    # a slow CPU is never asked for all boxes
    assert (asked[-1] == ("cpu", 1000)) == (chosen == "cpu")


def test_a_network_on_the_cpu_is_left_alone() -> None:
    network = Network(dense_graph(0, [3, 8, 2]), torch.float64)

    def never(*_: object) -> float:
        raise AssertionError("nothing to compare")

    assert network_where_faster(network, BOX, 8, never) is network


def test_a_pass_is_measured() -> None:
    network = Network(dense_graph(0, [3, 8, 2]), torch.float64)
    assert pass_seconds(network, BOX, 4) > 0


def test_a_device_with_less_memory_than_the_machine_bounds_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (800, 1000))
    budget = Budget(1.0, memory=5000, cpu_deadline=2.0)
    assert budget_on(budget, torch.device("cuda")) == Budget(1.0, 700, 2.0)
    assert budget_on(Budget(1.0, 10), torch.device("cuda")).memory == 10
    assert budget_on(budget, torch.device("cpu")) is budget
