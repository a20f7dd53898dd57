"""Every operator with all its attributes computes what onnxruntime computes, and bounds hold it;
and so do random networks of the fuzzer's generators.

All of it is marked ``slow``; every 24th variant and a few networks are looked at by default. As a
program this prints a table of widths: ``python -m tests.fuzz.test_variants > table.md``.
"""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.errors import BitcrownError, UnsupportedError
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.onnx_reader import read_graph
from tests.fuzz.graphs import OPSETS, Net, Unfit
from tests.fuzz.moves import GENERATORS
from tests.fuzz.variants import Variant, model_of, variants

VARIANTS = variants()
EVERY = 24
POINTS = 24
WIDTH = 0.75
REFUSED = {"Resize": ("antialias", "keep_aspect_ratio_policy"), "TopK": ("positions",)}
"""Operators of which variants may be refused, and a word of the sentence or of the attributes."""
ONE, SEVERAL = 500, 200
"""Random networks of one operator, and of several."""
LEAST = 450


class Found(NamedTuple):
    """``difference`` to onnxruntime, ``width`` of the widest bound, how wide its samples lay."""

    difference: float
    width: float
    sampled: float


def looked_at(path: Path, low: float, width: float, may_be_infinite: bool = False) -> Found:
    """Read, compare, bound in ``[low, low + width]``, sample; raises ``BitcrownError`` for a
    refusal and ``AssertionError`` for what is wrong."""
    file = NetworkFile(path)
    graph = read_graph(file)
    difference = crosscheck(graph, file, seed=0)
    network = Network(graph, torch.float64)
    lower = torch.full((1, graph.n_inputs), low, dtype=torch.float64)
    bounds = LayerBounder(network, 1 << 28, quick=True).run(lower, lower + width).bounds
    share = np.random.default_rng(0).random((POINTS, graph.n_inputs))
    share[::3] = share[::3] > 0.5
    points = lower + width * torch.from_numpy(share)
    with torch.no_grad():
        values = network(points)
    ends = [torch.cat([bounds[o][side].flatten() for o in graph.outputs]) for side in (0, 1)]
    values = values[torch.isfinite(values).all(dim=1)]
    assert may_be_infinite or len(values) == POINTS
    assert may_be_infinite or bool(torch.isfinite(torch.stack(ends)).all())
    room = 1e-9 * (1 + values.abs())
    assert bool((ends[0] - room <= values).all()) and bool((values <= ends[1] + room).all())
    if not len(values):
        return Found(difference, math.inf, math.nan)
    spread = values.amax(0) - values.amin(0)
    return Found(difference, float((ends[1] - ends[0]).max()), float(spread.max()))


def runs(path: Path) -> bool:
    """Whether onnxruntime takes the file at all."""
    try:
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001  (classes that only exist inside its extension)
        return False
    return True


def check(variant: Variant, folder: Path) -> None:
    path = folder / "net.onnx"
    onnx.save(model_of(variant), path)
    try:
        found = looked_at(path, variant.low, WIDTH)
    except BitcrownError as error:
        allowed = REFUSED.get(variant.op)
        said = f"{error} {variant}"
        is_known = allowed is not None and any(word in said for word in allowed)
        assert is_known or not runs(path), f"refused: {error}"
    else:
        assert found.difference < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_variant(variant: Variant, tmp_path: Path) -> None:
    check(variant, tmp_path)


def test_every_so_many_variants(tmp_path: Path) -> None:
    for variant in VARIANTS[::EVERY]:
        check(variant, tmp_path)


def test_there_are_enough_and_no_two_alike() -> None:
    names = Counter(map(str, VARIANTS))
    assert len(names) == len(VARIANTS) >= LEAST, [name for name, n in names.items() if n > 1][:5]


def drawn(seed: int, operators: int) -> tuple[onnx.ModelProto, set[str]] | None:
    """A network of so many drawn operators behind a layer, and what it uses; None where none of
    them fits."""
    rng = np.random.default_rng([seed, operators])
    samples = [rng.normal(size=(1, 5)).astype(np.float32) for _ in range(3)]
    net = Net(rng, samples, OPSETS[seed % len(OPSETS)], np.float32)
    last, used = net.dense("x", 6), 0
    for op in rng.choice(sorted(GENERATORS), operators):
        # (A generator may also ask for axes or extents that what is there has not.)
        with contextlib.suppress(Unfit, ValueError, IndexError):
            last, used = GENERATORS[op](net, last), used + 1
    return (net.model(last), set(net.used)) if used else None


def check_drawn(seed: int, operators: int, folder: Path) -> bool:
    """Whether the network was there to be looked at."""
    found = drawn(seed, operators)
    if found is None:
        return False
    path = folder / "net.onnx"
    onnx.save(found[0], path)
    if not runs(path):  # a generator's own mistake: shapes that do not fit
        return False
    try:
        looked_at(path, -0.1, 0.2, may_be_infinite=True)
    except UnsupportedError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operators", "seeds"),
    [(1, range(k, ONE, 10)) for k in range(10)]
    + [(2 + k % 5, range(k, SEVERAL, 10)) for k in range(10)],
)
def test_drawn_networks(operators: int, seeds: range, tmp_path: Path) -> None:
    assert sum(check_drawn(seed, operators, tmp_path) for seed in seeds) > len(seeds) // 2


def test_a_few_drawn_networks(tmp_path: Path) -> None:
    assert sum(check_drawn(seed, 1 + seed % 5, tmp_path) for seed in range(10)) > 5


def table() -> None:
    """Print a row for every variant."""
    head = ("variant", "off by", "widest bound", "sampled", "said")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        for variant in VARIANTS:
            onnx.save(model_of(variant), path)
            try:
                found = looked_at(path, variant.low, WIDTH)
                cells = (
                    f"{found.difference:.0e}",
                    f"{found.width:.3g}",
                    f"{found.sampled:.3g}",
                    "",
                )
            except BitcrownError as error:
                runtime = "" if runs(path) else "onnxruntime refuses it; "
                cells = ("", "", "", runtime + str(error).replace("|", "/"))
            except AssertionError:
                cells = ("", "", "", "WRONG")
            print("| " + " | ".join((str(variant), *cells)) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(table())
