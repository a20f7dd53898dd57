"""The number of torch's threads that a test leaves behind is not that of the next one."""

from __future__ import annotations

import torch


def test_a_test_may_change_it(_threads_at_first: int) -> None:
    torch.set_num_threads(_threads_at_first + 1)
    assert torch.get_num_threads() == _threads_at_first + 1


def test_the_next_one_begins_with_that_of_the_start(_threads_at_first: int) -> None:
    assert torch.get_num_threads() == _threads_at_first
