"""What every test finds: as many threads of torch as there were when the tests began, and the same
random numbers whichever tests came before it.

A command that runs in this process sets the number of threads to that of the cores. Two workers of
pytest on two cores then wait for each other's second threads in every test that comes after it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _threads_at_first() -> int:
    return torch.get_num_threads()


@pytest.fixture(autouse=True)
def _threads_as_at_first(_threads_at_first: int) -> Iterator[None]:
    """(Before a test as well: a fixture of its module may have run a command.)"""
    torch.set_num_threads(_threads_at_first)
    yield
    torch.set_num_threads(_threads_at_first)


@pytest.fixture(autouse=True)
def _numbers_as_at_first() -> None:
    torch.manual_seed(0)
