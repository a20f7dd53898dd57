"""Reading results of any tool, what disagrees in them, and the competition's score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from result_rows import evaluation, records_file, results_csv, row

from bitcrown.cli.main import main
from bitcrown.errors import BitcrownError
from bitcrown.report.comparison import compared, contradictions, pairs, with_truth
from bitcrown.report.score import family_scores, points_of, totals
from bitcrown.report.sets import (
    Suites,
    competition_word,
    identity,
    identity_of,
    read_sets,
    read_suites,
)

ACAS = "acas", "onnx/n.onnx", "vnnlib/p.vnnlib"


@pytest.mark.parametrize(
    ("network", "prop"),
    [
        ("onnx/n.onnx", "vnnlib/p.vnnlib"),
        ("./benchmarks/acas/./onnx/n.onnx", "./benchmarks/acas/./vnnlib/p.vnnlib"),
        ("vnncomp2026/acas/2.0/onnx/n.onnx", "vnncomp2026/acas/2.0/vnnlib/p.vnnlib.gz"),
        ("/home/acas/acas/1.0/onnx/n.onnx.gz", "/home/acas/acas/1.0/vnnlib/p.vnnlib"),
    ],
)
def test_an_instance_is_the_same_for_every_tool(network: str, prop: str) -> None:
    assert identity_of("acas", network, prop) == ACAS


def test_networks_of_a_pair_are_named() -> None:
    field = "[('f', './benchmarks/acas/2.0/onnx/a.onnx'), ('g', 'onnx/b.onnx')]"
    assert identity_of("acas", field, "p")[1] == "f:onnx/a.onnx + g:onnx/b.onnx"
    assert identity_of("acas", "[broken", "p")[1] == "[broken"


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("holds", "unsat"),
        ("VIOLATED", "sat"),
        ("sat", "sat"),
        ("run_instance_timeout", "timeout"),
        ("timed-out", "timeout"),
        ("", "unknown"),
        ("no_result_in_file", "unknown"),
        ("error_nonmaximal", "unknown"),
        ("prepare_instance_error_1", "prepare_instance_error_1"),
    ],
)
def test_words_of_all_years(said: str, word: str) -> None:
    assert competition_word(said) == word


def test_a_results_file_of_another_tool(tmp_path: Path) -> None:
    file = results_csv(
        tmp_path / "other.csv",
        "acas,./benchmarks/acas/onnx/n.onnx,./benchmarks/acas/vnnlib/p.vnnlib,0.5,unsat,3.25",
        "acas,onnx/m.onnx,vnnlib/p.vnnlib,0,prepare_instance_timeout,-1",
        "acas,benchmarks/test/test_nano.onnx,benchmarks/test/test_nano.vnnlib,0,sat,1",
        "",
    )
    (found,) = read_sets([f"tool={file}"])
    assert found.name == "tool" and len(found.rows) == 2
    assert identity(found.rows[0]) == ACAS
    assert [(one["result"], one["wall_s"]) for one in found.rows] == [
        ("unsat", 3.25),
        ("prepare_instance_timeout", 0.0),
    ]


@pytest.mark.parametrize(
    "line", ["a,b,c", "a,b,c,0,sat,soon", "a,b,c,0,sat,nan", "a,b,c,0,sat,inf"]
)
def test_a_line_that_is_no_result(tmp_path: Path, line: str) -> None:
    file = results_csv(tmp_path / "r.csv", line)
    with pytest.raises(BitcrownError, match="row 1"):
        read_sets([str(file)])


def test_names_and_folders(tmp_path: Path) -> None:
    for family in ("one", "two"):
        records_file(tmp_path / "run" / family, row("sat", category=family))
        results_csv(tmp_path / "run" / family / "results.csv", f"{family},n,p,0,sat,1")
    file = records_file(tmp_path / "other", row("unsat"))
    # A folder is one set, of its records and not of what repeats them.
    whole, other, again = read_sets([str(tmp_path / "run"), str(file), str(file)])
    assert (whole.name, len(whole.rows), whole.repeated) == ("run", 2, 0)
    assert (other.name, again.name) == ("other", "other (2)")
    (joined,) = read_sets([f"all={tmp_path / 'run'}", f"all={file}"])
    assert (joined.name, len(joined.rows)) == ("all", 3)


def test_what_holds_no_results(tmp_path: Path) -> None:
    for content in ("", "[1, 2]", "{}", '{"runs": [{}], "model": "m"}', '{"runs": 3}'):
        (tmp_path / "x.jsonl").write_text(content)
        with pytest.raises(BitcrownError, match="no records"):
            read_sets([str(tmp_path / "x.jsonl")])
    with pytest.raises(BitcrownError, match="holds none of"):
        read_sets([str(tmp_path)])


def test_an_instance_counts_once_and_its_last_run(tmp_path: Path) -> None:
    first = row("timeout", timeout=10.0)
    file = records_file(tmp_path, first, row("sat", "onnx/m.onnx"), row("unsat", timeout=20.0))
    (found,) = read_sets([str(file)])
    assert [one["result"] for one in found.rows] == ["sat", "unsat"]
    assert found.repeated == 1 and not found.clashes
    # The same instances from two files of one set, too.
    (joined,) = read_sets([f"x={file}", f"x={file}"])
    assert len(joined.rows) == 2 and joined.repeated == 4


def test_runs_of_one_set_that_contradict_each_other(tmp_path: Path) -> None:
    file = records_file(tmp_path, row("sat"), row("unsat", timeout=20.0))
    (found,) = sets = read_sets([f"x={file}"])
    assert len(found.clashes) == 1
    said = [one.sentence() for one in contradictions(sets, compared(sets))]
    assert said == [
        "acas: onnx/n.onnx with vnnlib/p.vnnlib: two runs of x say sat and unsat; at most one is "
        "right."
    ]


def test_single_runs_stay_side_by_side(tmp_path: Path) -> None:
    runs = [row(word) for word in ("unsat", "unsat")]
    for one in runs:
        del one["key"]
    (found,) = read_sets([str(records_file(tmp_path, *runs))])
    assert len(found.rows) == 2 and len(found.by_instance()) == 1


def two_sets(tmp_path: Path) -> list[str]:
    """Four instances: both unsat, one alone, a contradiction, nobody."""
    ours = records_file(
        tmp_path / "ours",
        row("unsat", "a"),
        row("sat", "b", wall=2.0),
        row("sat", "c"),
        row("timeout", "d", wall=60.0),
    )
    names = {"a": "unsat", "b": "timeout", "c": "unsat", "d": "timeout"}
    lines = [f"acas,{name},vnnlib/p.vnnlib,0,{word},5" for name, word in names.items()]
    return [f"ours={ours}", f"theirs={results_csv(tmp_path / 'theirs.csv', *lines)}"]


def test_disagreement_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = two_sets(tmp_path)
    assert main(["report", *words]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "**Contradictions:**"
    assert lines[2] == (
        "* acas: c with vnnlib/p.vnnlib: ours says sat and theirs says unsat; at most one is right."
    )
    assert "## ours" in lines and "## theirs" in lines
    assert "| ours and theirs | 4 | 2 | 1 | 0 |" in lines


def test_pairs_count_what_both_have(tmp_path: Path) -> None:
    (pair,) = pairs(compared(read_sets(two_sets(tmp_path))))
    assert (pair.common, pair.both, pair.only_one, pair.only_other) == (4, 2, 1, 0)


def test_a_known_truth_holds_for_every_set(tmp_path: Path) -> None:
    sets = read_sets(two_sets(tmp_path))
    suites = Suites(truth={("acas", "c", "vnnlib/p.vnnlib"): "unsat"}, limits={})
    instances = compared(sets, suites)
    (found,) = contradictions(sets, instances)
    assert found.said == "ours says sat and theirs says unsat, but it is known to be unsat"
    assert with_truth(sets[1], instances).rows[2]["expected"] == "unsat"
    # Both sets' limits are the ones that are known of the instance.
    assert with_truth(sets[1], instances).rows[0]["timeout"] == 60.0


def test_suites_say_truth_and_limit(tmp_path: Path) -> None:
    suite = tmp_path / "acas"
    suite.mkdir()
    (suite / "instances.csv").write_text("./onnx/n.onnx,./vnnlib/p.vnnlib,116\n")
    (suite / "expected.csv").write_text("onnx,vnnlib,expected\nonnx/n.onnx,vnnlib/p.vnnlib,sat\n")
    found = read_suites([suite])
    assert (found.truth, found.limits) == ({ACAS: "sat"}, {ACAS: 116.0})
    assert found.folders == {"acas": suite.resolve()}


# -- the score -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "truth", "limit", "points"),
    [
        (row("sat"), "sat", 60.0, (10, 10)),
        (row("unsat"), "sat", 60.0, (-150, -150)),
        (row("timeout"), "sat", 60.0, (0, 0)),
        (row("error_exit_code_1"), "sat", 60.0, (0, 0)),
        (row("sat"), "", 60.0, (0, 0)),
        (None, "sat", 60.0, (0, 0)),
        # Late: within a minute it counted in 2025; in 2026 neither right nor wrong ones do.
        (row("sat", wall=61.0), "sat", 60.0, (10, 0)),
        (row("unsat", wall=61.0), "sat", 60.0, (-150, 0)),
        (row("sat", wall=121.0), "sat", 60.0, (0, 0)),
        (row("sat", wall=1e6), "sat", None, (10, 10)),
    ],
)
def test_points(
    answer: dict[str, object] | None, truth: str, limit: float | None, points: tuple[int, int]
) -> None:
    assert tuple(points_of(answer, truth, limit, rules) for rules in (2025, 2026)) == points


def test_the_best_of_a_family_has_a_hundred(tmp_path: Path) -> None:
    sets = read_sets(two_sets(tmp_path))
    # a: both 10; b: ours 10; c: bitcrown's sat is a replayed one, so theirs is wrong; d: nobody.
    (found,) = family_scores(compared(sets), 2026)
    assert found.points == (30, -140)
    assert found.percent == (100.0, 0.0)
    assert totals([found, found], 2) == ((60, -280), (200.0, 0.0))


def test_nobody_scores_where_claims_alone_differ(tmp_path: Path) -> None:
    words = [
        f"{word}={results_csv(tmp_path / f'{word}.csv', f'acas,n,p,0,{word},1')}"
        for word in ("sat", "unsat")
    ]
    (found,) = family_scores(compared(read_sets(words)), 2025)
    assert (found.points, found.percent) == ((0, 0), (0.0, 0.0))


# -- evaluations -----------------------------------------------------------------------------------


def test_an_evaluation_is_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "record.json").write_text(json.dumps(evaluation(), indent=1))
    assert main(["report", str(tmp_path / "record.json")]) == 0
    out = capsys.readouterr().out
    assert "resnet" in out and "90.00 % [60.0, 98.0]" in out


def test_an_evaluation_that_lacks_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = evaluation()
    del record["runs"][1]["accuracy"]["clean"]["share"]
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert main(["report", str(tmp_path)]) == 2
    assert "evaluate again" in capsys.readouterr().err
