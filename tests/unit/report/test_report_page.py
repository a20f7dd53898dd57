"""The page of ``bitcrown report``: it nests, its numbers are those of the records, text stays
text."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from result_rows import HOSTILE, evaluation, open_row, records_file, results_csv, row

from bitcrown.cli.main import main
from bitcrown.errors import BitcrownError
from bitcrown.harness.counterexamples import keep_counterexample, read_counterexample
from bitcrown.harness.curve import BoundCurve
from bitcrown.harness.instance import Instance
from bitcrown.report.axes import Axis, axis_over
from bitcrown.report.figures import (
    HEIGHT,
    WIDTH,
    bar,
    bound_curve,
    cactus,
    scatter,
    short_number,
)
from bitcrown.report.sets import finite_number, read_sets
from tests.unit.evaluation.test_html_report import Tags


class Elements(Tags):
    """The elements of a page by their names."""

    EMPTY = ("meta", "br", "img", "input")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(folder: Path, *words: str) -> Elements:
    main(["report", *words, "--html", str(folder / "page.html")])
    return Elements((folder / "page.html").read_text())


def three_sets(folder: Path) -> list[str]:
    """Ours with everything, another tool, and an evaluation."""
    ours = records_file(
        folder / "ours",
        row("unsat", "a", wall=2.0),
        row("sat", "b", wall=0.5, category="mnist"),
        row("unsat", "c", wall=30.0, expected="sat"),
        open_row(network="d"),
        row("error", HOSTILE, category="mnist", decided_by=HOSTILE, reason=HOSTILE),
    )
    lines = [
        "acas,a,vnnlib/p.vnnlib,0,unsat,7",
        "acas,c,vnnlib/p.vnnlib,0,sat,9",
        "acas,d,vnnlib/p.vnnlib,0,unsat,9",
    ]
    theirs = results_csv(folder / "theirs.csv", *lines)
    images = folder / "record.json"
    images.write_text(json.dumps(evaluation()))
    return [f"ours={ours}", f"theirs={theirs}", f"images={images}"]


def test_everything_is_on_the_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, *three_sets(tmp_path))
    ids = {attributes["id"] for _, attributes in page.seen if attributes.get("id")}
    sections = {"totals", "time", "score", "families", "phases", "open", "accuracies", "machine"}
    assert sections | {"instances", "contradictions"} <= ids
    links = [link["href"] or "" for link in page.all("a")]
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)
    # One cactus plot, one scatter of each other set with results, one curve, one of accuracies.
    assert [svg["class"] for svg in page.all("svg")] == ["plot", "plot", "spark", "curves"]
    assert all(re.fullmatch(r"0 0 \d+ \d+", svg["viewbox"] or "") for svg in page.all("svg"))
    words = page.words()
    assert "1 contradiction" in words
    assert (
        "c with vnnlib/p.vnnlib: ours says unsat and theirs says sat, but it is known to be sat"
        in words
    )
    assert "3 of 5 decided, 1 wrong" in words
    assert "neuron split, worst bound -0.5, 7 open, 40 bounded" in words


def test_totals_are_counts(tmp_path: Path) -> None:
    rng = random.Random(3)
    words = ["unsat", "sat", "timeout", "unknown", "error_exit_code_3"]
    drawn = [rng.choice(words) for _ in range(60)]
    rows = [row(word, f"n{k}", category=f"f{k % 4}") for k, word in enumerate(drawn)]
    text = page_of(tmp_path, str(records_file(tmp_path, *rows))).words()
    unsat, sat, timeout, unknown, error = (drawn.count(word) for word in words)
    assert f"{unsat + sat} of 60 decided" in text
    assert f"unsat / sat {unsat} / {sat} " in text
    assert f"timeout / unknown / error {timeout} / {unknown} / {error} " in text
    for family in range(4):
        decided = sum(word in ("sat", "unsat") for word in drawn[family::4])
        assert f"f{family} 15 {decided} of 15" in text


def test_nothing_comes_from_outside_and_nothing_runs(tmp_path: Path) -> None:
    page = page_of(tmp_path, *three_sets(tmp_path))
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    addresses = [
        value for _, a in page.seen for name, value in a.items() if name in ("src", "href")
    ]
    assert all((value or "").startswith(("#", "data:image/png")) for value in addresses)
    assert not [name for _, attributes in page.seen for name in attributes if name.startswith("on")]
    assert "url(" not in (tmp_path / "page.html").read_text()


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    text = (page_of(tmp_path, *three_sets(tmp_path)), (tmp_path / "page.html").read_text())
    assert "<script" not in text[1] and "alert(" in text[1]
    assert HOSTILE in "".join(text[0].text)


def test_repeated_instances_are_said(tmp_path: Path) -> None:
    file = records_file(tmp_path, row("unsat"), row("unsat", timeout=20.0))
    assert "1 results are of instances that were run again" in page_of(tmp_path, str(file)).words()


def test_many_contradictions_are_all_there(tmp_path: Path) -> None:
    names = [f"n{k}" for k in range(30)]
    ours = records_file(tmp_path, *(row("unsat", name) for name in names))
    lines = [f"acas,{name},vnnlib/p.vnnlib,0,sat,1" for name in names]
    theirs = results_csv(tmp_path / "theirs.csv", *lines)
    text = page_of(tmp_path, f"ours={ours}", f"theirs={theirs}").words()
    assert "30 contradictions" in text and "10 more" in text
    assert text.count("at most one is right") == 30


JUNK = [None, True, "x" * 40, -1, 10**400, 1e308, math.nan, -math.inf, [], [[1]], {}, {"a": [None]}]


@pytest.mark.parametrize("seed", range(12))
def test_records_of_any_form_are_shown_or_refused(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows = []
    for base in [row("sat"), open_row(network="d"), row("error", "e"), evaluation()] * 3:
        for name in rng.sample(sorted(base), 3):
            base[name] = rng.choice(JUNK)
        rows.append(base)
    rows.append(evaluation(contradictions=rng.choice(JUNK)))
    file = records_file(tmp_path, *rows)
    code = main(["report", str(file), f"again={file}", "--html", str(tmp_path / "page.html")])
    assert code in (0, 1, 2)
    if code < 2:
        Elements((tmp_path / "page.html").read_text())


# -- drawings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_log", [False, True])
def test_places_keep_their_order_and_stay_inside(is_log: bool) -> None:
    axis = axis_over([0.3, 12.0, 700.0], 50.0, 400.0, is_log, 0.1)
    values = [0.0, 0.1, 0.3, 1.0, 12.0, 699.0, 1e9, math.inf]
    places = [axis.place(value) for value in values]
    assert places == sorted(places) and places[0] >= 50.0 and places[-1] <= 400.0
    assert 50.0 <= axis.place(math.nan) <= 400.0
    for place, word in axis.ticks():
        assert place == pytest.approx(axis.place(float(word)))
    assert 2 <= len(axis.ticks()) <= 6


@pytest.mark.parametrize("values", [[], [5.0], [0.0, 0.0], [1e-9], [math.nan], [1e250, 1.0]])
@pytest.mark.parametrize("is_log", [False, True])
def test_axes_of_little(values: list[float], is_log: bool) -> None:
    axis = axis_over(values, 0.0, 100.0, is_log, 0.1)
    assert axis.low < axis.high and len(axis.ticks()) <= 6


def test_powers_are_thinned() -> None:
    assert [word for _, word in Axis(0.1, 10.0, 0, 1, True).ticks()] == ["0.1", "1", "10"]
    assert [word for _, word in Axis(1.0, 5.0, 0, 1, True).ticks()] == ["1", "2", "5"]


def test_cactus_counts_what_was_decided(tmp_path: Path) -> None:
    times = [3.0, 1.0, 2.0]
    rows = [row("unsat", f"n{k}", wall=wall) for k, wall in enumerate(times)] + [row("timeout")]
    sets = read_sets([str(records_file(tmp_path, *rows))])
    drawing = cactus(sets)
    assert drawing is not None
    (line,) = drawing["lines"]
    points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    assert line["count"] == len(points) == 3
    assert points == sorted(points) and [y for _, y in points] == sorted(
        (y for _, y in points), reverse=True
    )
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert cactus(read_sets([str(records_file(tmp_path, row("timeout")))])) is None


def test_scatter_has_the_undecided_on_its_edges(tmp_path: Path) -> None:
    from bitcrown.report.comparison import compared

    one = records_file(
        tmp_path / "a", row("sat", "a", wall=2.0), row("sat", "b"), row("timeout", "c")
    )
    other = records_file(
        tmp_path / "b", row("sat", "a", wall=9.0), row("timeout", "b"), row("unsat", "c")
    )
    drawing = scatter(compared(read_sets([str(one), str(other)])), 0, 1)
    assert drawing is not None and drawing["count"] == 3
    inner, above, right = drawing["dots"]
    edge_x, edge_y = drawing["edge"]
    assert inner["x"] <= edge_x and inner["y"] >= edge_y
    assert above["x"] < edge_x and above["y"] < edge_y
    assert right["x"] > edge_x and right["y"] > edge_y


def test_pieces_of_a_bar_fill_it() -> None:
    pieces = bar({"a": 1.0, "b": 3.0, "c": 0.0, "strange": 4.0}, ["a", "b", "other"], 8.0)
    assert [(piece["place"], piece["width"]) for piece in pieces] == [
        (0, 12.5),
        (1, 37.5),
        (2, 50.0),
    ]
    assert bar({"a": 1.0}, ["a"], 0.0) == []


def test_a_curve_rises_to_the_zero_that_would_do() -> None:
    drawing = bound_curve(open_row())
    assert drawing is not None and drawing["unit"] == "bound"
    heights = [float(point.split(",")[1]) for point in drawing["points"].split()]
    assert heights == sorted(heights, reverse=True) and heights[-1] > drawing["zero"]
    counts = bound_curve(row("timeout", curve=[[1.0, None, 4], [2.0, None, 8], ["x"], None]))
    assert counts is not None and counts["unit"] == "open" and counts["said"] == "8 at 2.0 s"
    assert bound_curve(row("timeout")) is None


@pytest.mark.parametrize(
    ("value", "word"),
    [(0.0, "0"), (-0.12345, "-0.123"), (12.3, "12.3"), (-5462.4, "-5462"), (2.5e7, "2.5e+07")],
)
def test_numbers_are_short(value: float, word: str) -> None:
    assert short_number(value) == word


@pytest.mark.parametrize("value", [None, "1", True, math.nan, math.inf, 10**400, []])
def test_what_is_no_number(value: Any) -> None:
    assert finite_number(value) is None


# -- what runs leave for it ------------------------------------------------------------------------


def test_curve_is_short_whatever_the_run() -> None:
    curve = BoundCurve()
    for step in range(100_000):
        curve.add(step / 100, {"worst": -1e5 + step, "open": step})
    points = curve.points()
    seconds = [point[0] for point in points]
    assert 12 <= len(points) <= 49 and seconds == sorted(set(seconds))
    assert points[0] == (0.0, -1e5, 0) and points[-1] == (999.99, -1.0, 99_999)
    gaps = np.diff(seconds[:-1])
    assert gaps.max() < 2.5 * gaps.min()


def test_curve_keeps_what_can_be_drawn() -> None:
    curve = BoundCurve()
    for facts in ({}, {"worst": math.nan}, {"worst": None, "open": -1}, {"domains": 3}):
        curve.add(1.0, facts)
    assert curve.points() == []
    curve.add(1.0, {"worst": -math.inf, "left": 4})
    curve.add(2.0, {"worst": -0.5})
    assert curve.points() == [(1.0, None, 4), (2.0, -0.5, None)]


def test_counterexamples_lie_beside_their_records(tmp_path: Path) -> None:
    instance = Instance("onnx/n.onnx", "vnnlib/medical/p_1.vnnlib", 20.0)
    place = keep_counterexample(tmp_path, "safenlp", instance, "sat\n((X_0 1)\n(Y_0 2))\n")
    assert place == "counterexamples/safenlp/medical_n_p_1.counterexample.gz"
    assert read_counterexample(tmp_path, place) == "((X_0 1)\n(Y_0 2))\n"
    pair = Instance("[('f', 'a.onnx'), ('g', 'b.onnx')]", "vnnlib/i.vnnlib.gz", 20.0)
    assert keep_counterexample(tmp_path, "x", pair, "sat\n").endswith("x/f_g_i.counterexample.gz")
    (tmp_path / "secret").write_text("no")
    for name in ("../secret", "/etc/passwd", "secret", "gone", ""):
        assert read_counterexample(tmp_path / "counterexamples", name) is None


def image_suite(folder: Path) -> Path:
    """One network of 1 x 3 x 6 x 6 inputs, whose only output is their sum."""
    suite = folder / "images"
    (suite / "onnx").mkdir(parents=True)
    (suite / "vnnlib").mkdir()
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])]
    weights = helper.make_tensor(
        "w", TensorProto.FLOAT, [108, 2], np.ones((108, 2), np.float32).ravel()
    )
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "net", inputs, outputs, [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    onnx.save(model, str(suite / "onnx" / "sum.onnx"))
    lines = [f"(declare-const X_{k} Real)" for k in range(108)]
    lines += ["(declare-const Y_0 Real)", "(declare-const Y_1 Real)"]
    lines += [f"(assert (>= X_{k} 0.25))\n(assert (<= X_{k} 0.75))" for k in range(108)]
    (suite / "vnnlib" / "p.vnnlib").write_text("\n".join([*lines, "(assert (>= Y_0 50))"]))
    (suite / "instances.csv").write_text("onnx/sum.onnx,vnnlib/p.vnnlib,60\n")
    return suite


def test_counterexamples_are_shown_as_pictures(tmp_path: Path) -> None:
    suite = image_suite(tmp_path)
    pairs = [f"(X_{k} 0.75)" for k in range(108)] + ["(Y_0 81.0)", "(Y_1 81.0)"]
    instance = Instance("onnx/sum.onnx", "vnnlib/p.vnnlib", 60.0)
    out = tmp_path / "out"
    place = keep_counterexample(out, "images", instance, "sat\n(" + "\n".join(pairs) + ")\n")
    facts = {"category": "images", "counterexample": place}
    file = records_file(out, row("sat", "onnx/sum.onnx", "vnnlib/p.vnnlib", **facts))
    page = page_of(tmp_path, str(file), "--suite", str(suite))
    assert [picture["alt"] for picture in page.all("img")] == [
        "middle of the box",
        "counterexample",
        "difference",
    ]
    assert "largest output: 0 in the middle of the box, 0 here" in page.words()
    # Without the suite, or with another counterexample than the property's, there is none.
    assert not page_of(tmp_path, str(file)).all("img")
    keep_counterexample(out, "images", instance, "sat\n((X_0 0.75))\n")
    assert not page_of(tmp_path, str(file), "--suite", str(suite)).all("img")


def test_a_page_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = records_file(tmp_path, row("sat"))
    assert main(["report", str(file), "--html", str(file / "page.html")]) == 2
    assert "cannot be" in capsys.readouterr().err
    with pytest.raises(BitcrownError, match="cannot be read"):
        read_sets([str(tmp_path / "gone.jsonl")])
