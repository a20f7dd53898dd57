"""What bitcrown does with quantized files, one row each.

    python benchmarks/quantized_files/files_table.py FILE [FILE ...] [--cpu-seconds 20]
        [--images IMAGES] [--journal ROWS] [--all-cpu-seconds 1500]

Columns: which engine reads the file (or the refusal); on random inputs (``--points``), whether
integers are equal to onnxruntime's to the bit (``equal``) or, where floats lie between them or the
order of sums is not pinned, whether the bounds at the input enclose what it computes (``inside``,
with the median width relative to the largest output); and the property that one input keeps its
largest output (of all outputs together) within 1/255 of a value, or one step of an integer input.
Where that stays open, the bounds of the outputs at the root: how many are finite, and the largest
width. Where no output is less than the largest, that one is to stay within a tenth of its size.

Everything is about what onnxruntime computes (semantics ``runtime``); where rounding is not known
of every operator (dynamic scales) the engine column says ``real``: bounds of the real function.
Each file has a process of its own, which ``CPU_LIMIT`` CPU seconds or ``WALL_LIMIT`` seconds of the
clock end; the columns that it had by then stay. A row is one line of JSON in the journal, with the
file's SHA-256 and the version; files that have one there are left out, and a further call goes on.
``third_party.txt`` lists the third-party files by project, path and SHA-256: they are not shipped.
Inputs of 14 x 14 are MNIST's images, others random.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bitcrown.model.file import NetworkFile

EPS = 1 / 255
COMPARING = 10.0
"""CPU seconds after which no further input is compared."""
CPU_LIMIT = 90
"""CPU seconds after which the process of a file is ended."""
WALL_LIMIT = 3600.0
"""Seconds of the clock after which it is: ten others may want the same core."""
LARGEST = 8 << 30
"""Bytes of the bounds of all nodes beyond which products of matrices are one node each."""
COLUMNS = ("engine", "on random inputs", "property at one step", "root bounds")
HEAD = "| file | " + " | ".join(COLUMNS) + " |\n" + 5 * "|---" + "|"


def images(folder: Path | None) -> Any:
    if folder is None:
        return None
    sys.path.insert(0, str(Path(__file__).parent))
    from networks import mnist

    return mnist(folder)[0].numpy()


def samples(file: NetworkFile, pictures: Any, points: int) -> list[list[np.ndarray]]:
    """Inputs, each a list of arrays: real ones in [0, 1], integers over their range up
    to 8 bits."""
    rng, found = np.random.default_rng(0), []
    for index in range(points):
        feed = []
        for tensor in file.inputs:
            # (numpy knows no bfloat16; the file takes it as float32 or not at all.)
            dtype: np.dtype[Any] = np.dtype(np.float32) if tensor.dtype is None else tensor.dtype
            if pictures is not None and tensor.shape == pictures[:1].shape:
                feed.append(pictures[index : index + 1].astype(dtype))
            elif dtype.kind in "iu":
                info = np.iinfo(dtype)
                ends = max(info.min, -128), min(info.max, 127 if info.min else 255)
                feed.append(rng.integers(*ends, tensor.shape, endpoint=True, dtype=dtype))
            else:
                feed.append(rng.random(tensor.shape).astype(dtype))
        found.append(feed)
    return found


def ran(file: NetworkFile, feed: list[np.ndarray]) -> np.ndarray:
    """All outputs of onnxruntime, flat, float64."""
    named = {tensor.name: value for tensor, value in zip(file.inputs, feed, strict=True)}
    return np.concatenate(
        [np.asarray(v, np.float64).reshape(-1) for v in file.session.run(None, named)]
    )


def flat(feed: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([value.astype(np.float64).reshape(-1) for value in feed])


def integers_compared(network: Any, file: NetworkFile, feeds: list[list[np.ndarray]]) -> str:
    """Outputs between those of early and late thresholds; where the two agree that is equality."""
    from bitcrown.quant.formats.agreement import node_enclosures

    inside = equal = 0
    first, table = network.exit.low, network.exit.values
    for feed in feeds:
        x = flat(feed)[None]
        point = network.entry.integers(x)[0]
        ends = [part[network.output] for part in node_enclosures(network, point)]
        low, high = (
            np.array([float(t[int(q - f)]) for t, q, f in zip(table, end, first, strict=True)])
            for end in ends
        )
        truth = ran(file, feed)
        inside += bool(((np.minimum(low, high) <= truth) & (truth <= np.maximum(low, high))).all())
        equal += bool((low == high).all() and (low == truth).all())
    return f"equal {equal}" if equal == len(feeds) else f"inside {inside}, equal {equal}"


def floats_compared(graph: Any, file: NetworkFile, feeds: list[list[np.ndarray]]) -> str:
    import torch

    from bitcrown.bounds.interval import interval_bounds
    from bitcrown.model.execute import Network

    network, inside, widths = Network(graph, torch.float64), 0, list[float]()
    started = time.process_time()
    together = max(1, min(25, int(2e6 / sum(node.size for node in graph.nodes.values()))))
    for first in range(0, len(feeds), together):
        if time.process_time() - started > COMPARING:
            break
        some = feeds[first : first + together]
        x = network.tensor(np.stack([flat(feed) for feed in some]))
        with torch.no_grad():
            bounds = interval_bounds(network, x, x, wanted=graph.outputs)
        low, high = (
            torch.cat([bounds[name][end].flatten(1) for name in graph.outputs], dim=1).numpy()
            for end in (0, 1)
        )
        for feed, least, most in zip(some, low, high, strict=True):
            truth = ran(file, feed)
            inside += bool(((least <= truth) & (truth <= most)).all())
            widths.append(float((most - least).max()) / max(float(np.abs(truth).max()), 1e-30))
    of = "" if len(widths) == len(feeds) else f" of {len(widths)}"
    return f"inside {inside}{of}, width {np.median(widths):.1e}"


def question(file: NetworkFile, feed: list[np.ndarray]) -> str:
    """VNN-LIB text of the property."""
    x, y = flat(feed), ran(file, feed)
    steps = np.concatenate([np.full(v.size, 1.0 if v.dtype.kind in "iu" else EPS) for v in feed])
    lines = [f"(declare-const X_{i} Real)" for i in range(x.size)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(y.size)]
    for i, (value, step) in enumerate(zip(x, steps, strict=True)):
        lines.append(f"(assert (>= X_{i} {value - step:.12f}))")
        lines.append(f"(assert (<= X_{i} {value + step:.12f}))")
    best = int(y.argmax())
    others = [k for k in np.argsort(-y)[:100].tolist() if k != best and y[k] < y[best]]
    if not others:
        room = 0.1 * abs(y[best]) + 1e-3
        ends = f"(and (>= Y_{best} {y[best] + room:.9f})) (and (<= Y_{best} {y[best] - room:.9f}))"
    else:
        ends = " ".join(f"(and (>= Y_{k} Y_{best}))" for k in others)
    lines.append(f"(assert (or {ends}))")
    return "\n".join(lines)


def root_bounds(problem: Any, graph: Any) -> str:
    """Of the outputs, by intervals: the least that every search has."""
    import torch

    from bitcrown.bounds.interval import interval_bounds
    from bitcrown.model.execute import Network
    from bitcrown.model.file import NetworkFile
    from bitcrown.search.readings import integer_output_bounds

    if graph is None:
        (path,) = problem.networks.values()
        low, high = integer_output_bounds(problem, 0, NetworkFile(path))
    else:
        network, box = Network(graph, torch.float64), problem.cases[0]
        lower, upper = (network.tensor([[float(v) for v in end]]) for end in (box.lower, box.upper))
        with torch.no_grad():
            bounds = interval_bounds(network, lower, upper, wanted=graph.outputs)
        low, high = (
            torch.cat([bounds[name][end].flatten() for name in graph.outputs]).numpy()
            for end in (0, 1)
        )
    finite = np.isfinite(low) & np.isfinite(high)
    width = float((high - low)[finite].max(initial=0.0))
    return f"{int(finite.sum())} of {finite.size} finite, width {width:.3g}"


def _read(file: NetworkFile) -> tuple[Any, str]:
    """The graph and its semantics."""
    from bitcrown.errors import UnsupportedError
    from bitcrown.model.onnx_reader import read_graph
    from bitcrown.model.products import fitted

    try:
        return fitted(read_graph(file, "runtime"), LARGEST), "runtime"
    except UnsupportedError:
        return fitted(read_graph(file), LARGEST), "real"


def cells(path: Path, seconds: float, pictures: Any, points: int) -> Iterator[str]:
    """The columns of a row, each as soon as it is known."""
    import torch

    from bitcrown.api import load, verify
    from bitcrown.errors import BitcrownError
    from bitcrown.model.crosscheck import crosscheck
    from bitcrown.model.file import NetworkFile
    from bitcrown.quant.formats.onnx_file import read_onnx
    from bitcrown.settings import Settings

    torch.set_num_threads(1)
    file = NetworkFile(path)
    reason, graph, semantics = "", None, "runtime"
    try:
        network = read_onnx(file) if file.is_quantized else None
    except BitcrownError as error:
        network, reason = None, f"; as integers: {error}"
    try:
        if network is None:
            graph, semantics = _read(file)
            crosscheck(graph, file, 0)
        yield "integers" if graph is None else "floats" + ", real" * (semantics == "real")
        feeds = samples(file, pictures, points)
        if graph is None:
            yield integers_compared(network, file, feeds)
        else:
            yield floats_compared(graph, file, feeds)
    except BitcrownError as error:
        yield f"refused: {error}{reason}".replace("\n", " ")
        return
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, "asked.vnnlib")
        asked.write_text(question(file, feeds[0]))
        problem = load(path, asked)
        verdict = verify(problem, Settings(semantics=semantics), cpu_seconds=seconds)
        yield f"{verdict.status.value} {verdict.decided_by or verdict.detail[-120:]}"
        if verdict.status.value not in ("sat", "unsat"):
            yield root_bounds(problem, graph)


def child(path: Path, seconds: float, pictures: Any, points: int, to: Any) -> None:
    warnings.filterwarnings("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT))
    for cell in cells(path, seconds, pictures, points):
        to.send(cell)
    to.send(None)


def row(path: Path, given: argparse.Namespace, pictures: Any) -> list[str]:
    """Its columns; where its process was ended, a sentence for the first that is missing."""
    forked = multiprocessing.get_context("fork")
    mine, theirs = forked.Pipe(duplex=False)
    asked = (path, given.cpu_seconds, pictures, given.points, theirs)
    process = forked.Process(target=child, args=asked)
    process.start()
    theirs.close()
    found, until = list[str](), time.monotonic() + WALL_LIMIT
    try:
        while mine.poll(max(0.0, until - time.monotonic())):
            cell = mine.recv()
            if cell is None:
                break
            found.append(cell)
        else:
            process.kill()
            found.append(f"ended after {WALL_LIMIT:.0f} s of the clock")
    except EOFError:
        process.join()
        end = f"ended after {CPU_LIMIT} CPU s" if process.exitcode in (-9, -24) else "crashed"
        found.append(end)
    process.join()
    return found


def rows_of(journal: Path | None) -> dict[str, dict[str, Any]]:
    """Rows of a journal by the file's SHA-256; a line that was cut off is none."""
    found = {}
    for line in journal.read_text().splitlines() if journal and journal.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found[entry["sha256"]] = entry
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--cpu-seconds", type=float, default=20.0)
    parser.add_argument("--all-cpu-seconds", type=float, default=float("inf"))
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--journal", type=Path)
    given = parser.parse_args()
    importlib.import_module("bitcrown.search.decision")  # once, before children are forked
    from bitcrown.provenance import commit

    pictures, known = images(given.images), rows_of(given.journal)
    print(HEAD, flush=True)
    for path in given.files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest not in known:
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            if used.ru_utime + used.ru_stime > given.all_cpu_seconds:
                continue
            entry = {"file": path.stem, "sha256": digest, "commit": commit()}
            known[digest] = entry | {"cells": row(path, given, pictures)}
            if given.journal:
                with given.journal.open("a") as file:
                    file.write(json.dumps(known[digest]) + "\n")
        found = known[digest]["cells"]
        text = " | ".join([path.stem, *found, *[""] * (len(COLUMNS) - len(found))])
        print(f"| {text} | <!-- {digest[:12]} -->", flush=True)


if __name__ == "__main__":
    main()
