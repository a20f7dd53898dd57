"""What the cluster costs an instance: many instances that are answered at once.

cluster_load.py [--instances N] [--ray ADDRESS | --jobs N] [--out FOLDER] [--nodes N]

Writes a suite of N instances, each with a property file of its own, and runs it with ``bench``'s
own loop, journal and table of files, on a Ray cluster (``--nodes``: one of that many nodes with one
CPU each is started here) or in local jobs. In place of the scripts each task returns a record of
the usual size, so that what is measured is everything but deciding: reading and hashing files,
handing out, setting cores apart, the way to the host and back, the journal. Prints CPU seconds of
the driver and of all other processes of the cluster per instance, and the driver's resident memory
as it goes.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))

from bitcrown.cluster.local import local_scheduler
from bitcrown.cluster.tasks import FilePlaces, Scheduler
from bitcrown.harness import bench
from bitcrown.harness.one_instance import ScriptCall
from bitcrown.harness.records import machine_facts
from bitcrown.settings import Settings

_TOKEN = "BITCROWN_LOAD"
_CURVE = 40
"""Points of a bound curve in a made-up record; records of real searches have about as many."""


def answer_at_once(call: ScriptCall, places: FilePlaces) -> dict[str, Any]:
    """A record as the scripts leave one, of a search that took no time."""
    job = call.job
    Path(places.get(job.vnnlib(), job.vnnlib())).read_bytes()
    return {
        **machine_facts(),
        "settings": dict(Settings().as_dict()),
        "key": job.key(),
        "category": job.suite.category,
        "network": job.instance.network,
        "vnnlib": job.instance.vnnlib,
        "timeout": job.timeout,
        "expected": job.expected,
        "result": "unsat",
        "decided_by": "nothing",
        "phases": {"read": 0.01, "load": 0.2, "root": 0.1, "search": 1.5},
        "progress": {"curve": [[0.1 * k, -1.0 / (k + 1)] for k in range(_CURVE)]},
        "prepare_s": 0.0,
        "wall_s": 0.0,
        "exit_code": 0,
    }


def write_suite(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    (folder / "net.onnx").write_bytes(b"not looked at")
    rows = []
    for number in range(count):
        (folder / f"p{number}.vnnlib").write_text(f"; {number}\n")
        rows.append(f"net.onnx,p{number}.vnnlib,10\n")
    (folder / "instances.csv").write_text("".join(rows))


def cpu_of_others() -> float:
    """CPU seconds so far of all processes that this run has started and that live."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0.0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if f"{_TOKEN}={os.getpid()}".encode() not in (folder / "environ").read_bytes():
                continue
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def resident_mib() -> float:
    words = Path("/proc/self/statm").read_text().split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class Meter:
    """Notes every tenth of the run."""

    def __init__(self, total: int) -> None:
        self.step = max(1, total // 10)
        self.started, self.cpu, self.others = time.monotonic(), time.process_time(), 0.0

    def show(self, finished: int, total: int, job: object, row: object) -> None:
        if row is None or finished % self.step:
            return
        others = cpu_of_others()
        if not self.others:  # what starting costs is not what an instance costs
            self.first, self.others, self.cpu = finished, others, time.process_time()
            self.started = time.monotonic()
        count = max(1, finished - self.first)
        own = 1e3 * (time.process_time() - self.cpu) / count
        spent = 1e3 * (others - self.others) / count
        seconds = time.monotonic() - self.started
        print(
            f"{finished:6d} of {total}: driver {own:.2f} ms, others {spent:.2f} ms CPU an "
            f"instance; {seconds / count * 1e3:.1f} ms of the clock; driver "
            f"{resident_mib():.0f} MiB",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--ray", default="")
    parser.add_argument("--nodes", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    os.environ[_TOKEN] = str(os.getpid())
    address = options.ray
    nodes: Any = None
    if options.nodes:
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80 << 20}
        nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        for _ in range(options.nodes - 1):
            nodes.add_node(**node)
        address = nodes.address

    def opening() -> AbstractContextManager[Scheduler]:
        if not address:
            return local_scheduler(options.jobs, Settings())
        from bitcrown.cluster.ray_tasks import RayTasks

        return RayTasks(address, 1, Settings(), bench.packed_file)

    import cluster_load  # the name under which workers know the stub

    stub: Callable[[ScriptCall, FilePlaces], dict[str, Any]] = cluster_load.answer_at_once
    with patch.object(bench, "run_scripts", stub), tempfile.TemporaryDirectory() as name:
        write_suite(Path(name) / "suite", options.instances)
        plan = bench.BenchPlan(Path(name) / "suite", Path(name) / "out")
        before = resident_mib()
        rows = bench.run_bench(plan, Meter(options.instances).show, opening)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        lines = (Path(name) / "out" / "records.jsonl").read_text().splitlines()
    keys = {repr(row["key"]) for row in rows}
    print(
        f"{len(rows)} rows, {len(lines)} lines in the journal, {len(keys)} different instances, "
        f"{sum(len(line) for line in lines) / len(lines):.0f} bytes a line"
    )
    print(f"driver: {before:.0f} MiB before, at most {peak:.0f} MiB")
    if nodes is not None:
        nodes.shutdown()
    return 0 if len(lines) == len(keys) == options.instances else 1


if __name__ == "__main__":
    sys.exit(main())
