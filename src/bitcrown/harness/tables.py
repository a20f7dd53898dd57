"""Tables over records: plain text for the end of a run, Markdown for ``benchmarks/records/``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_Row = Mapping[str, Any]
_KNOWN = ("sat", "unsat")
_HEADER = (
    "category", "count", "sat", "unsat", "unknown", "timeout", "error",
    "decided/known", "wrong", "median s", "p90 s", "peak MiB",
)  # fmt: skip


def is_known(row: _Row) -> bool:
    return row.get("expected") in _KNOWN


def is_decided(row: _Row) -> bool:
    return row["result"] in _KNOWN


def is_failed(row: _Row) -> bool:
    """Whether there is no answer because the files could not be used, or a script failed."""
    return row["result"] not in (*_KNOWN, "unknown", "timeout")


def failure_sentence(row: _Row) -> str:
    """What failed, and the last line of the reason where one is known."""
    said = str(row.get("detail") or row.get("reason") or "").strip().splitlines()
    why = said[-1] if said else "the script said nothing; run it by hand to see why"
    return f"{_where(row)}: {row['result']}: {why}"


def is_wrong(row: _Row) -> bool:
    """Whether the answer contradicts the known truth."""
    return is_known(row) and is_decided(row) and row["result"] != row["expected"]


def wrong_rows(rows: Iterable[_Row]) -> list[_Row]:
    return [row for row in rows if is_wrong(row)]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of ``values`` do not exceed; 0 for none."""
    ordered = sorted(values)
    # The share in thousandths, so that the ceiling below is one of whole numbers.
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] if ordered else 0.0


def summary(category: str, rows: Sequence[_Row]) -> tuple[str, ...]:
    """One line of the table; any result that is none of the five words counts as error."""
    words = [str(row["result"]) for row in rows]
    counts = [words.count(word) for word in ("sat", "unsat", "unknown", "timeout")]
    known = [row for row in rows if is_known(row)]
    walls = [float(row["wall_s"]) for row in rows]
    peak = max((int(row.get("peak_mib", 0)) for row in rows), default=0)
    return (
        category,
        str(len(rows)),
        *(str(count) for count in counts),
        str(len(rows) - sum(counts)),
        f"{sum(is_decided(row) for row in known)}/{len(known)}",
        str(sum(is_wrong(row) for row in rows)),
        f"{statistics.median(walls):.2f}" if walls else "",
        f"{percentile(walls, 0.9):.2f}",
        str(peak),
    )


def table(rows: Iterable[_Row]) -> list[tuple[str, ...]]:
    """Header, one line a category in order of appearance, and a total if there are several."""
    by_category: dict[str, list[_Row]] = {}
    everything = []
    for row in rows:
        by_category.setdefault(str(row["category"]), []).append(row)
        everything.append(row)
    lines = [_HEADER, *(summary(name, found) for name, found in by_category.items())]
    if len(by_category) > 1:
        lines.append(summary("all", everything))
    return lines


def plain_table(rows: Iterable[_Row]) -> str:
    lines = table(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text) + "\n"


def markdown(rows: Sequence[_Row]) -> str:
    """A record for ``benchmarks/records/``: the table, what it ran on and with, and every wrong
    answer."""
    lines = table(rows)
    text = ["| " + " | ".join(lines[0]) + " |", "|---|" + "---:|" * (len(_HEADER) - 1)]
    text += ["| " + " | ".join(line) + " |" for line in lines[1:]]
    text.append("")
    for name in ("machine", "version", "commit", "settings", "seed"):
        values = _distinct(row[name] for row in rows if name in row)
        text.append(f"{name.capitalize()}: {'; '.join(values) or 'not recorded'}  ")
    caps = _distinct(row["timeout"] for row in rows if "timeout" in row)
    text.append(f"Time limits (s): {', '.join(caps)}")
    wrong = wrong_rows(rows)
    if wrong:
        text += ["", "**Wrong answers:**", ""]
        text += [f"* {wrong_sentence(row)}" for row in wrong]
    return "\n".join(text) + "\n"


def wrong_sentence(row: _Row) -> str:
    return f"{_where(row)} is {row['expected']}, but the answer was {row['result']}"


def _where(row: _Row) -> str:
    return f"{row['category']}: {row['network']} with {row['vnnlib']}"


def _distinct(values: Iterable[Any]) -> list[str]:
    """Distinct values in order of appearance, in a form for readers."""
    return list(dict.fromkeys(readable(value) for value in values))


def readable(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{name} {readable(part)}" for name, part in value.items() if part not in ("", [], None)
        )
    return value if isinstance(value, str) else json.dumps(value)
