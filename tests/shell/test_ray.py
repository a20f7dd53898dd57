"""A real cluster of two nodes on this machine, each with one CPU: nodes are killed, runs are
interrupted and taken up again, with Ray and without."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import alive

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two nodes need two cores"),
]

PATIENCE = 240.0
ROOT = Path(__file__).resolve().parents[2]
TOKEN = "BITCROWN_TEST_CLUSTER"
SMALL_STORE = 80 << 20
WORKER = """
import json, os, runpy, sys
from pathlib import Path
network = Path(json.loads(sys.argv[1])["network"])
os.environ["FAKE_MODE"] = network.name.partition("-")[0]
os.environ["FAKE_PIDS"] = {pids!r}
runpy.run_path({fake!r}, run_name="__main__")
"""
"""The fake worker does what the name of the network says."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    with (
        tempfile.TemporaryDirectory(prefix="bc", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        # A folder of its own, also for the locks of cores: other runs on this machine do not count.
        # (Its name is short, because sockets lie in it.)
        patch.setenv("TMPDIR", folder)
        patch.setenv(TOKEN, str(os.getpid()))
        node = {"num_cpus": 1, "object_store_memory": SMALL_STORE, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args=node)
        found.add_node(num_cpus=1, object_store_memory=SMALL_STORE)
        yield found
        found.shutdown()


class Suite:
    """Instances whose answers are in the names of their networks; ``folder`` holds everything."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.suite, self.pids = folder, folder / "suite", folder / "pids"
        self.suite.mkdir(parents=True)
        for name in names:
            (self.suite / f"{name}.onnx").write_text(name)
        (self.suite / "p.vnnlib").touch()
        (self.suite / "instances.csv").write_text(
            "".join(f"{name}.onnx,p.vnnlib,400\n" for name in names)
        )
        self.pids.touch()
        self.worker = folder / "worker.py"
        fake = str(Path(__file__).with_name("fake_worker.py"))
        self.worker.write_text(WORKER.format(pids=str(self.pids), fake=fake))
        private = folder / f"bitcrown-{os.getuid()}"
        private.mkdir(mode=0o700)
        (private / "warm").touch()

    @contextmanager
    def start(self, out: str, *more: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "bitcrown.cli", "bench", str(self.suite)]
        ours = {"BITCROWN_WORKER": str(self.worker), "XDG_RUNTIME_DIR": str(self.folder)}
        process = subprocess.Popen(
            [*command, "--out", str(self.folder / out), *more],
            env=os.environ | ours,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell starts background jobs with SIGINT ignored, and tests may run in one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(self, out: str, *more: str) -> str:
        with self.start(out, *more) as process:
            said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        return said

    def seen(self) -> list[int]:
        return [int(word) for word in self.pids.read_text().split()]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.05)

    def records(self, out: str) -> list[dict[str, Any]]:
        text = (self.folder / out / "records.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def results(self, out: str) -> list[list[str]]:
        """Category, network, property and result of each row of ``results.csv``."""
        with (self.folder / out / "results.csv").open(newline="") as file:
            return [row[:3] + row[4:5] for row in csv.reader(file)]

    def let_go(self) -> None:
        Path(f"{self.pids}.go").touch()


NAMES = ["when_told-0", "when_told-1", "sat-2", "unsat-3", "exit-4", "sat-5", "unsat-6"]


def hosts() -> list[str]:
    """Processes in which tasks of this cluster run."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"bitcrown.cluster.host" in command and f"{TOKEN}={os.getpid()}".encode() in environment:
            found.append(folder.name)
    return found


def test_a_killed_node_changes_no_result(cluster: Any, tmp_path: Path) -> None:
    suite = Suite(tmp_path, NAMES)
    victim = next(iter(cluster.worker_nodes))
    with suite.start("faulty", "--ray", cluster.address) as process:
        # Each node has one CPU, and both hold an instance that waits for us.
        suite.wait_for(lambda: len(suite.seen()) == 2)
        first = suite.seen()
        cluster.remove_node(victim, allow_graceful=False)
        suite.wait_for(lambda: sum(alive(pid) for pid in first) == 1)
        suite.let_go()
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    cluster.add_node(num_cpus=1, object_store_memory=SMALL_STORE)
    suite.run("faultless")
    assert suite.results("faulty") == suite.results("faultless")
    assert [row[3] for row in suite.results("faulty")] == [
        *("unsat", "unsat", "sat", "unsat", "unknown", "sat", "unsat")
    ]
    keys = [repr(record["key"]) for record in suite.records("faulty")]
    assert len(keys) == len(set(keys)) == len(NAMES)
    assert sorted(record.get("tries", 1) for record in suite.records("faulty")) == [1] * 6 + [2]
    assert all(len(record["cores"]) == 1 for record in suite.records("faulty"))
    assert all(record["settings"]["threads"] == 1 for record in suite.records("faulty"))
    suite.wait_for(lambda: not any(alive(pid) for pid in suite.seen()))


def test_an_interrupted_run_leaves_nobody_and_goes_on_without_ray(
    cluster: Any, tmp_path: Path
) -> None:
    suite = Suite(tmp_path, ["unsat-0", *(f"children-{k}" for k in range(1, 5))])
    with suite.start("out", "--ray", cluster.address) as process:
        suite.wait_for(lambda: len(suite.seen()) == 1 + 2 * 3)
        suite.wait_for((tmp_path / "out" / "records.jsonl").exists)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    suite.wait_for(lambda: not any(alive(pid) for pid in suite.seen()))
    suite.wait_for(lambda: not hosts())
    kept = suite.records("out")
    assert [record["result"] for record in kept] == ["unsat"]
    worker = suite.worker.read_text().replace('network.name.partition("-")[0]', '"sat"')
    suite.worker.write_text(worker)
    suite.run("out")
    assert suite.records("out")[:1] == kept
    assert [row[3] for row in suite.results("out")] == ["unsat"] + ["sat"] * 4
    before = suite.pids.read_text()
    suite.run("out", "--ray", cluster.address)
    assert suite.pids.read_text() == before and len(suite.records("out")) == 5


def test_files_that_a_node_lacks_are_sent(cluster: Any, tmp_path: Path) -> None:
    """A digest that no file has: nothing at any path is the right one, and only what is packed
    counts."""
    script = """
import sys
from pathlib import Path
from some_tasks import content
from bitcrown.cluster.ray_tasks import RayTasks
from bitcrown.cluster.tasks import SentFile, Task, results_of
from bitcrown.settings import Settings
path = sys.argv[2]
task = Task("read", content, path, (SentFile(path, 64 * "0"),))
with RayTasks(sys.argv[1], 1, Settings(), lambda path: path.read_bytes().upper()) as ray:
    for _, (place, data), _ in results_of(ray, [task] * 3):
        print(place != path, Path(place).name, data.decode())
"""
    path = tmp_path / "net.onnx"
    path.write_text("weights")
    # (Ray's workers look for modules in the driver's folder, too.)
    done = subprocess.run(
        [sys.executable, "-c", script, cluster.address, str(path)],
        cwd=ROOT / "tests" / "unit" / "cluster",
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.splitlines() == ["True net.onnx WEIGHTS"] * 3, done.stderr


def test_images_are_proved_as_on_one_machine(cluster: Any, tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "unit" / "evaluation"))
    import numpy as np
    from small_classifier import blobs, train, write_classifier

    network = write_classifier(tmp_path / "small.onnx", train(*blobs(200), 150))
    images, labels = blobs(10, seed=7)
    np.savez(tmp_path / "blobs.npz", x=images, y=labels)
    command = [sys.executable, "-m", "bitcrown.cli", "evaluate", str(network), "--eps", "8/255"]
    command += ["--data", str(tmp_path / "blobs.npz"), "--mean", "0.25", "--std", "0.5"]
    command += ["--steps", "5", "--restarts", "1", "--bounds", "alpha"]
    found = []
    for out, more in (("one", []), ("many", ["--ray", cluster.address])):
        folder = tmp_path / out
        subprocess.run([*command, "--out", str(folder), *more], check=True, timeout=PATIENCE)
        text = (folder / "Linf-8_255" / "images.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        names = ("stage", "image", "right", "broken", "bound", "proved_by")
        found.append(sorted(json.dumps([line.get(name) for name in names]) for line in lines))
    assert found[0] == found[1] and any('"crown"' in line for line in found[0])


def test_no_cluster_is_one_sentence(tmp_path: Path) -> None:
    suite = Suite(tmp_path, ["unsat-0"])
    with suite.start("out", "--ray", "127.0.0.1:1") as process:
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "the Ray cluster at '127.0.0.1:1' cannot be used" in said.splitlines()[-1]
