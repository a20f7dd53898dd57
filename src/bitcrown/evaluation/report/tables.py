"""Records as tables for a terminal: what was measured, attack by attack, and what it is worth.

Two shapes, after the two published ones. PGD and bounds: size, layers, clean accuracy, and one
column for each bound and the attack. A suite: clean accuracy, then robust accuracy without and with
BPDA side by side, then what is proved and what is open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from bitcrown.evaluation.journal import ATTACK, CLEAN
from bitcrown.evaluation.plan import PGD
from bitcrown.evaluation.proving import ALPHA, CROWN, SEARCH
from bitcrown.evaluation.radii import radius_words
from bitcrown.evaluation.report.summary import STANDING

_Run = Mapping[str, Any]
_TITLES = {
    CROWN: "CROWN verified",
    ALPHA: "alpha-CROWN verified",
    SEARCH: "branch and bound verified",
}


def tables(record: Mapping[str, Any]) -> str:
    """Everything that is printed at the end of an evaluation."""
    runs: Sequence[_Run] = record["runs"]
    if all(run["attack"] is None or run["attack"]["name"] == PGD for run in runs):
        return "\n".join(bounds_table(record["model"], run, record["data"]) for run in runs)
    return "\n".join([suite_table(record), *(attack_table(run) for run in runs), remarks(runs)])


def bounds_table(name: str, run: _Run, data: str) -> str:
    """One network as a row, accuracies in percent with their 95 % intervals."""
    attack = run["attack"]
    titles = {CLEAN: "Clean acc.", STANDING: "not broken by any", **_TITLES}
    if attack:
        titles[ATTACK] = f"PGD-{attack['steps']}x{attack['restarts']} acc."
    columns = [("Model", name)]
    if "megabytes" in run:
        columns.append(("Model size", f"{run['megabytes']:.1f} MB"))
    if "layers" in run:
        columns.append(("Layers", str(run["layers"])))
    for key, row in run["accuracy"].items():
        columns.append((titles[key], _share(row)))
    lines = aligned([title for title, _ in columns], [[text for _, text in columns]])
    return lines + f"\n{_counts(run)}: {run['images']} images of {data}, {_radius(run)}\n"


def suite_table(record: Mapping[str, Any]) -> str:
    """One row a radius; a column of robust accuracies for each rule of gradients."""
    runs: Sequence[_Run] = record["runs"]
    rules = list(dict.fromkeys(run["bpda"] for run in runs))
    header = ["Model", "Radius", "Clean Accuracy"]
    header += [_rule_title(rule, len(rules)) for rule in rules]
    is_bounded = any(run["bounds"] for run in runs)
    header += ["Verified", "Open"] if is_bounded else []
    rows = []
    for radius in dict.fromkeys(_radius(run) for run in runs):
        group = {run["bpda"]: run for run in runs if _radius(run) == radius}
        first = next(iter(group.values()))
        row = [record["model"], radius, _share(first["accuracy"][CLEAN])]
        row += [_share(_standing(group[rule])) if rule in group else "" for rule in rules]
        if is_bounded:
            deepest = first["accuracy"][first["bounds"][-1]]
            row += [_share(deepest), f"{100 * first['open_gap']:.2f} %"]
        rows.append(row)
    sample = f"{runs[0]['images']} images of {record['data']}, suite {runs[0]['attack']['name']}"
    return f"{sample}; in brackets 95 % intervals\n\n{aligned(header, rows)}"


def _standing(run: _Run) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run["accuracy"].get(STANDING, run["accuracy"][ATTACK])
    return found


def _rule_title(rule: str | None, count: int) -> str:
    if rule is None:
        return "Robust Accuracy" if count == 1 else "Robust Accuracy without BPDA"
    return f"Robust Accuracy with BPDA ({rule})"


def attack_table(run: _Run) -> str:
    """What each attack of a suite added."""
    rule = f", BPDA {run['bpda']}" if run["bpda"] else ""
    rows, left = [], run["accuracy"][CLEAN]["count"]
    for row in run["per_attack"]:
        left -= row["broken"]
        share = f"{100 * left / run['images']:.2f}"
        rows.append(
            [row["name"], str(row["attempted"]), str(row["broken"]), share, f"{row['seconds']:.1f}"]
        )
    table = aligned(["Attack", "Images", "Broken", "Left %", "Seconds"], rows)
    return f"{_radius(run)}{rule}: {_counts(run)}\n\n{table}"


def remarks(runs: Iterable[_Run]) -> str:
    """Warnings and statements, each once for each run it is about."""
    lines = []
    for run in runs:
        rule = f", BPDA {run['bpda']}" if run["bpda"] else ""
        place = f"{_radius(run)}{rule}"
        lines += [
            f"warning ({place}): {found['name']}: {found['sentence']}" for found in run["warnings"]
        ]
        lines += [f"note ({place}): {sentence}" for sentence in run.get("statements", ())]
    return "".join(f"{line}\n" for line in lines)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns of equal width."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |\n"
        for line in lines
    )


def _share(row: Mapping[str, Any]) -> str:
    low, high = row["interval95"]
    return f"{100 * row['share']:.2f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _counts(run: _Run) -> str:
    return ", ".join(f"{count} {name}" for name, count in run["status"].items())


def _radius(run: _Run) -> str:
    return f"{run['norm']} {radius_words(Fraction(run['eps']))}"
