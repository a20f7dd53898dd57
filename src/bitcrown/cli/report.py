"""``bitcrown report``: result sets as a Markdown table and as a page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bitcrown.cli.exit_codes import DONE, WRONG


def add_report_command(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="tables, a page and the competition's score of any results",
        description="Results side by side: records of bench, single runs and evaluate, and the "
        "competition's results.csv of any tool. Prints Markdown.",
    )
    add = parser.add_argument
    add(
        "records",
        nargs="+",
        metavar="[NAME=]PATH",
        help="records.jsonl, record.json, results.csv or a folder with such; paths with one NAME "
        "are one set",
    )
    add("--html", type=Path, metavar="FILE", help="write a page: one file, no script, no network")
    add(
        "--suite",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="suites as bench takes them: known truths, time limits, files for pictures",
    )
    parser.set_defaults(run=report_command)


def report_command(options: argparse.Namespace) -> int:
    from bitcrown.report.comparison import compared, contradictions, with_truth
    from bitcrown.report.markdown import markdown_report
    from bitcrown.report.sets import read_sets, read_suites

    sets = read_sets(options.records)
    suites = read_suites(options.suite)
    instances = compared(sets, suites)
    sets = [with_truth(found, instances) for found in sets]
    instances = compared(sets, suites)
    for found in sets:
        if found.repeated:
            print(
                f"bitcrown: {found.name}: {found.repeated} records are of instances that were run "
                "again later; the last run of each counts",
                file=sys.stderr,
            )
    if options.html is not None:
        from bitcrown.files import write_whole
        from bitcrown.report.gallery import exhibits
        from bitcrown.report.page import Shown, html_page

        pictures = [exhibits(found, suites) for found in sets]
        write_whole(options.html, html_page(Shown(sets, instances, pictures)))
    print(markdown_report(sets, instances), end="")
    return WRONG if contradictions(sets, instances) else DONE
