"""Tasks side by side on one machine: nothing lost, nothing twice, cores of their own, and nobody
left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from some_tasks import content, ending, sleeping, told, unknown_error

from bitcrown.cluster import cores
from bitcrown.cluster.cores import free_slice, slices, slices_for
from bitcrown.cluster.hosts import Host
from bitcrown.cluster.local import InTurn, LocalJobs, local_scheduler
from bitcrown.cluster.ray_tasks import fit, needs_on
from bitcrown.cluster.shipped import Shelf, sent_file
from bitcrown.cluster.tasks import Finished, Needs, Task, results_of
from bitcrown.errors import BitcrownError, ResourceError
from bitcrown.settings import GIB, Settings, usable_cores

PATIENCE = 120.0


def echoes(count: int) -> list[Task]:
    return [Task(f"task {k}", told, k) for k in range(count)]


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_side_by_side_is_in_turn() -> None:
    with InTurn() as one, LocalJobs(2, Needs(1)) as two:
        plain = [(number, value["argument"]) for number, value, _ in results_of(one, echoes(20))]
        found = list(results_of(two, echoes(20)))
    assert sorted((number, value["argument"]) for number, value, _ in found) == sorted(plain)
    assert plain == [(k, k) for k in range(20)]
    assert 1 <= len({value["pid"] for _, value, _ in found} - {os.getpid()}) <= 2
    assert all(value["cores"] == facts["cores"] for _, value, facts in found)
    assert all("torch" not in value["modules"] for _, value, _ in found)


def test_two_jobs_share_no_core() -> None:
    count = len(os.sched_getaffinity(0))
    with LocalJobs(2, Needs(1)) as jobs:
        used = {value["pid"]: set(value["cores"]) for _, value, _ in results_of(jobs, echoes(12))}
    sets = list(used.values())
    assert all(len(one) == max(1, count // 2) for one in sets)
    if count > 1 and len(sets) == 2:
        assert not sets[0] & sets[1]


def test_slices_are_disjoint_and_as_long_as_asked() -> None:
    for given in (range(1), range(2), range(8), [3, 5, 7, 11, 13]):
        for count in (1, 2, 3, 5, 100):
            pieces = slices(count, list(given))
            flat = [core for piece in pieces for core in piece]
            assert len(flat) == len(set(flat)) and set(flat) <= set(given)
            assert {len(piece) for piece in pieces} == {min(count, len(given))}
        for jobs in (1, 2, 3, 9):
            dealt = Counter(core for piece in slices_for(jobs, list(given)) for core in piece)
            assert len(slices_for(jobs, list(given))) == jobs
            assert max(dealt.values()) == 1 or jobs > len(given)


@pytest.mark.skipif(
    usable_cores() < len(os.sched_getaffinity(0)), reason="this container has no cores of its own"
)
def test_cores_are_held_by_one_task_at_a_time(tmp_path: Path) -> None:
    """All cores are taken one by one; another process finds none until one is given back."""
    script = (
        "import sys; from pathlib import Path; from bitcrown.cluster.cores import free_slice\n"
        "with free_slice(1, Path(sys.argv[1])) as piece: print(*piece, flush=True)"
    )
    allowed = sorted(os.sched_getaffinity(0))
    held = [free_slice(1, tmp_path) for _ in allowed]
    taken = [one.__enter__() for one in held]
    assert sorted(core for piece in taken for core in piece) == allowed
    said = tmp_path / "said"
    with said.open("w") as file:
        other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=file)
    try:
        time.sleep(0.5)
        assert not said.read_text()
        held[-1].__exit__(None, None, None)
        other.wait(PATIENCE)
        assert [int(word) for word in said.read_text().split()] == list(taken[-1])
    finally:
        other.kill()
        other.wait()
    for one in held[:-1]:
        one.__exit__(None, None, None)


def test_nothing_is_bound_where_cores_are_not_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 0)
    with free_slice(1, tmp_path) as first, free_slice(1, tmp_path) as second:
        assert first == second == () and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task("one", ending, 7), "one: a worker process ended with code 7"),
        (Task("one", ending, -9), "memory, perhaps"),
        (Task("one", ending, 0), "no such layer"),
        (Task("one", unknown_error, None), "ZeroDivisionError: in a test .*some_tasks.py"),
    ],
)
def test_a_lost_or_failed_task_has_no_result(task: Task, message: str) -> None:
    seen = []
    with LocalJobs(2, Needs(1)) as jobs, pytest.raises(BitcrownError, match=message):
        for number, _, _ in results_of(jobs, [*echoes(5), task]):
            seen.append(number)
    assert 5 not in seen


def test_what_is_left_is_done_when_a_task_is_lost() -> None:
    seen = []
    with LocalJobs(1, Needs(1)) as jobs, pytest.raises(ResourceError, match="same command"):
        for number, _, _ in results_of(jobs, [Task("bad", ending, -9), *echoes(4)]):
            seen.append(number)
    assert seen == [1, 2, 3, 4]


class Flaky:
    """A scheduler in this process whose workers are lost as a table says."""

    needs, tries, sends_files = Needs(1), 3, False

    def __init__(self, losses: dict[int, int], room: int) -> None:
        self.losses, self.most = losses, room
        self.held: list[int] = []
        self.given: Counter[int] = Counter()
        self.largest = 0

    def room(self) -> int:
        return self.most - len(self.held)

    def submit(self, number: int, task: Task) -> None:
        assert number not in self.held, "twice at a time"
        self.held.append(number)
        self.given[number] += 1
        self.largest = max(self.largest, len(self.held))

    def finished(self) -> Sequence[Finished]:
        number = self.held.pop()
        if self.given[number] <= self.losses.get(number, 0):
            return [Finished(number, lost="its node is gone")]
        return [Finished(number, number)]

    def cancel(self) -> None:
        self.held.clear()


def test_lost_tasks_are_given_out_again_and_count_once() -> None:
    flaky = Flaky({3: 1, 50: 2}, room=7)
    read = 0

    def tasks() -> Any:
        nonlocal read
        for k in range(1000):
            read += 1
            yield Task(str(k), told, k)

    found = []
    for number, value, facts in results_of(flaky, tasks()):
        assert read <= len(found) + 8, "tasks are read ahead of what is given out"
        found.append((number, value))
        assert facts.get("tries", 1) == 1 + flaky.losses.get(number, 0)
    assert sorted(found) == [(k, k) for k in range(1000)]
    assert flaky.largest == 7


def test_what_is_lost_again_and_again_is_said_and_is_bounded() -> None:
    flaky = Flaky({5: 99}, room=2)
    found = []
    with pytest.raises(ResourceError, match="of 5: its node is gone; what was finished is kept"):
        for number, _, _ in results_of(flaky, echoes_named(20)):
            found.append(number)
    assert sorted(found) == [k for k in range(20) if k != 5] and flaky.given[5] == 3
    broken = Flaky(dict.fromkeys(range(1000), 99), room=2)
    with pytest.raises(ResourceError, match="and 7 more"):
        list(results_of(broken, echoes_named(1000)))
    assert sum(broken.given.values()) < 100


def echoes_named(count: int) -> list[Task]:
    return [Task(str(k), told, k) for k in range(count)]


def test_leaving_the_block_ends_what_runs(tmp_path: Path) -> None:
    with LocalJobs(2, Needs(1)) as jobs:
        for number in range(2):
            jobs.submit(number, Task("sleep", sleeping, str(tmp_path)))
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
    pids = [int(word) for file in tmp_path.iterdir() for word in file.name.split()]
    assert len(pids) == 4 and all(is_gone(pid) for pid in pids)


def test_a_host_ends_with_its_parent(tmp_path: Path) -> None:
    """The parent is killed with a signal that it cannot see."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from bitcrown.cluster.local import LocalJobs\n"
        "from bitcrown.cluster.tasks import Needs, Task\n"
        "from some_tasks import sleeping\n"
        "jobs = LocalJobs(1, Needs(1)); jobs.submit(0, Task('sleep', sleeping, sys.argv[1]))\n"
        "jobs.finished()"
    )
    folder = str(Path(__file__).parent)
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path), folder]) as parent:
        wait_for(lambda: any(tmp_path.iterdir()))
        parent.send_signal(signal.SIGKILL)
    pids = [int(word) for file in tmp_path.iterdir() for word in file.name.split()]
    wait_for(lambda: all(is_gone(pid) for pid in pids))


def test_files_go_by_content_where_they_are_not_the_same(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"first")
    sent = sent_file(str(path))
    assert sent is not None
    shelf = Shelf()
    assert shelf.missing([sent], {}) == [] and shelf.places([sent]) == {str(path): str(path)}
    path.write_bytes(b"other")
    assert shelf.missing([sent], {}) == [sent]
    assert shelf.missing([sent], {sent.sha256: b"first"}) == []
    place = Path(shelf.places([sent])[str(path)])
    assert place != path and place.name == "net.onnx" and place.read_bytes() == b"first"
    for k in range(20):
        path.write_bytes(b"%d" % k)
        more = sent_file(str(path))
        assert more is not None
        path.unlink()
        assert shelf.missing([more, sent], {more.sha256: b"%d" % k}) == []
        places = shelf.places([more, sent])
        assert Path(places[str(path)]).read_bytes() == b"first"
    assert len(list(place.parents[1].rglob("net.onnx"))) <= 7, "the shelf grows without end"
    shelf.close()
    assert not place.exists()


def test_a_host_asks_for_what_it_lacks(tmp_path: Path) -> None:
    from bitcrown.cluster.host import DONE, MISSING, Parcel
    from bitcrown.cluster.hosts import body_of

    path = tmp_path / "p.vnnlib"
    path.write_bytes(b"(assert)")
    sent = sent_file(str(path))
    assert sent is not None and sent_file(str(tmp_path / "nothing")) is None
    path.unlink()
    task = Task("read", content, str(path), (sent,))
    host = Host()
    host.hand(Parcel(body_of(task)))
    word, missing, _ = host.answer()
    assert (word, missing) == (MISSING, [sent])
    host.hand(Parcel(body_of(task), contents={sent.sha256: b"(assert)"}))
    word, (place, data), _ = host.answer()
    assert (word, data) == (DONE, b"(assert)") and Path(place).is_file()
    host.end()
    assert not Path(place).exists()


def test_shares_of_the_machine() -> None:
    given = Settings(threads=3, memory_gib=2.0, device="auto")
    with local_scheduler(4, given) as jobs:
        assert jobs.needs == Needs(3, 2 * GIB)
    assert Needs().share_of(given) == given
    assert Needs(5, GIB, 0).share_of(given) == Settings(threads=5, memory_gib=1.0, device="cpu")


def test_one_machine_needs_no_ray() -> None:
    script = (
        "import sys; import bitcrown.cli.main, bitcrown.harness.bench, bitcrown.evaluation.runs\n"
        "import bitcrown.cluster.local; print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not [name for name in done.stdout.split() if name.partition(".")[0] == "ray"]


GPU_NODE = {"CPU": 16.0, "GPU": 2.0, "memory": 64.0 * GIB}
NODES = [{"CPU": 8.0, "memory": 32.0 * GIB}, GPU_NODE, {"CPU": 0.0, "memory": GIB}]


def test_a_task_has_its_part_of_the_smallest_node() -> None:
    plain = Settings(device="auto")
    needs = needs_on(NODES, 2, plain)
    assert (needs.cores, needs.gpus) == (4, 0) and 14 * GIB < needs.memory < 16 * GIB
    assert [fit(node, needs) for node in NODES] == [2, 4, 0]
    assert needs_on(NODES, 100, plain).cores == 1
    given = needs_on(NODES, 1, Settings(threads=3, memory_gib=5.0, device="cuda"))
    assert given == Needs(3, 5 * GIB, 1)
    assert [fit(node, given) for node in NODES] == [0, 2, 0]
    assert needs_on([GPU_NODE], 1, plain).gpus == 1
    assert needs_on([GPU_NODE], 1, Settings(device="cpu")).gpus == 0
    with pytest.raises(ResourceError, match="no node of the cluster offers CPUs"):
        needs_on(NODES[2:], 1, plain)
