"""Answers from messages, records that survive a killed writer, tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bitcrown.errors import SettingsError
from bitcrown.files import append_record, read_records
from bitcrown.harness.answer import answer_of, parse_message
from bitcrown.harness.bench import write_results_csv
from bitcrown.harness.instance import read_expected
from bitcrown.harness.tables import markdown, percentile, plain_table, wrong_rows
from bitcrown.harness.watchdog import safety_margin
from bitcrown.provenance import commit, machine, version
from bitcrown.settings import Settings, measured_limit
from bitcrown.verdict import Status


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[1]", b"3", b"\xff", b'{"status": "unsat"}', b'{"kind": 1}', b"[" * 99999]
)
def test_what_is_no_message(line: bytes) -> None:
    assert parse_message(line) is None


@pytest.mark.parametrize(
    "message",
    [{}, {"status": "SAT"}, {"status": "sat"}, {"status": "sat", "witness": " \n"},
    {"status": "sat", "witness": 3},
     {"status": ["unsat"]}, {"status": None}],
)  # fmt: skip
def test_no_verdict_without_its_evidence(message: dict[str, Any]) -> None:
    assert answer_of(message).status is Status.UNKNOWN


def test_only_sat_carries_a_witness() -> None:
    assert answer_of({"status": "unsat", "witness": "((X_0 1))"}).text() == "unsat\n"
    assert answer_of({"status": "sat", "witness": "((X_0 1))\n"}).text() == "sat\n((X_0 1))\n"


@pytest.mark.parametrize(
    ("timeout", "margin"), [(0.2, 0.1), (1.0, 0.3), (20.0, 0.3), (60.0, 0.9), (3600.0, 1.5)]
)
def test_margin_grows_and_stays_below_the_limit(timeout: float, margin: float) -> None:
    assert safety_margin(timeout) == pytest.approx(margin)


def test_record_after_a_killed_writer(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    append_record(file, {"a": 1})
    with file.open("a") as stream:
        stream.write('{"a": 2, "b"')
    append_record(file, {"a": 3})
    assert [record["a"] for record in read_records(file)] == [1, 3]


def row(result: str, expected: str = "", wall: float = 1.0, **more: Any) -> dict[str, Any]:
    facts = {
        "category": "acas",
        "network": "n.onnx",
        "vnnlib": "p.vnnlib",
        "wall_s": wall,
        "peak_mib": 100,
    }
    return facts | {"result": result, "expected": expected} | more


def test_wrong_answers_are_loud() -> None:
    rows = [
        row("sat", "sat"),
        row("unsat", "sat"),
        row("unknown", "sat"),
        row("unsat", "unknown"),
        row("sat"),
    ]
    assert wrong_rows(rows) == [rows[1]]
    text = markdown(rows)
    assert "n.onnx with p.vnnlib is sat, but the answer was unsat" in text
    assert "| acas | 5 | 2 | 2 | 1 | 0 | 0 | 2/3 | 1 | 1.00 | 1.00 | 100 |" in text


def test_record_names_what_it_ran_on() -> None:
    facts = {
        "machine": {"cpu": "Z80", "cores": 1, "gpu": []},
        "commit": "c0ffee",
        "seed": 7,
        "settings": {"seed": 7},
    }
    text = markdown([row("sat", **facts), row("unsat", **facts)])
    assert "Machine: cpu Z80, cores 1" in text and "Commit: c0ffee" in text and "Seed: 7" in text


def test_table_counts_foreign_words_as_errors() -> None:
    lines = plain_table([row("error_exit_code_3"), row("timeout", wall=9.0)]).splitlines()
    assert lines[1].split() == [
        "acas",
        "2",
        "0",
        "0",
        "0",
        "1",
        "1",
        "0/0",
        "0",
        "5.00",
        "9.00",
        "100",
    ]


def test_percentile_is_a_value() -> None:
    assert [percentile(list(range(1, 11)), share) for share in (0.1, 0.9, 1.0)] == [1, 9, 10]
    assert percentile([], 0.9) == 0.0


def test_results_csv_is_the_harness_format(tmp_path: Path) -> None:
    network = "[('f', 'a.onnx'), ('g', 'b.onnx')]"
    facts = {
        "category": "c",
        "network": network,
        "vnnlib": "p",
        "prepare_s": 1,
        "result": "sat",
        "wall_s": 2.5,
    }
    write_results_csv(tmp_path / "results.csv", [facts])
    with (tmp_path / "results.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["c", network, "p", "1.000000", "sat", "2.500000"]]


def test_expected_may_have_commas_in_later_columns(tmp_path: Path) -> None:
    (tmp_path / "expected.csv").write_text(
        "onnx,vnnlib,expected,evidence\n./a.onnx,./p.vnnlib,SAT,claimed by 5, witness not "
        "checkable,1.0\n"
    )
    assert read_expected(tmp_path / "expected.csv") == {("a.onnx", "p.vnnlib"): "sat"}
    assert read_expected(tmp_path / "none.csv") == {}


def test_commit_is_read_without_git(tmp_path: Path) -> None:
    git = tmp_path / ".git"
    git.mkdir()
    assert commit(tmp_path) == ""
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text("# pack-refs\nabc123 refs/heads/main\n")
    assert commit(tmp_path) == "abc123"
    (git / "refs/heads").mkdir(parents=True)
    (git / "refs/heads/main").write_text("def456\n")
    assert commit(tmp_path) == "def456"
    (git / "HEAD").write_text("feed00\n")
    assert commit(tmp_path) == "feed00"


def test_machine_and_version_are_plain_data() -> None:
    assert json.loads(json.dumps(machine()))["cores"] >= 1
    assert version()[0].isdigit()


def test_settings_refuse_what_they_do_not_know() -> None:
    assert Settings.from_environment({"BITCROWN_SEED": "7", "BITCROWN_THREADS": ""}) == Settings(
        seed=7
    )
    assert Settings.from_mapping(Settings(threads=2).as_dict()) == Settings(threads=2)
    with pytest.raises(SettingsError, match="no option 'speed'"):
        Settings.from_mapping({"speed": 9})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "abacus"),
        ("seed", -1),
        ("seed", "1.5"),
        ("threads", 10**6),
        ("memory_gib", "nan"),
        ("memory_gib", -1.0),
    ],
)
def test_settings_outside_their_range(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"option {name} needs"):
        Settings.from_mapping({name: value})


def test_memory_is_measured_or_given() -> None:
    assert 0 < Settings().memory_bytes() < Settings().process_bytes()
    assert 0 < measured_limit() < 1 << 62
    assert Settings(memory_gib=2.0).process_bytes() == 2 << 30
