"""What every test finds: as many threads of torch as there were when the tests began.

A command that runs in this process sets their number to that of the cores. Two workers of pytest on
two cores then wait for each other's second threads in every test that comes after it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _threads_of_before() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
