"""Several runs of one network over one data set: every radius, every rule of gradients; one record,
one page.

Each run keeps its findings in a folder of its own below ``out``, named after radius and rule, so
that a further radius leaves the finished ones as they are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from bitcrown.cluster.tasks import Scheduler
from bitcrown.errors import RecordError
from bitcrown.evaluation.accuracies import OPEN, Evaluator, ImageOutcome, OnStage
from bitcrown.evaluation.data.sets import ImageSet
from bitcrown.evaluation.journal import CLEAN, Journal
from bitcrown.evaluation.plan import LINF, Plan, open_subject
from bitcrown.evaluation.radii import radius_words
from bitcrown.evaluation.report.page import Picture, html_report
from bitcrown.evaluation.report.summary import document, run_record
from bitcrown.evaluation.report.tables import tables
from bitcrown.evaluation.subjects import Subject

_PICTURES = 12
"""Images shown of each run."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation found: ``record`` is ready for JSON; the others have an entry for each of
    its runs.

    ``adversarial``: the images ``[B, C, H, W]`` that broke the network, clean ones where none was
    found.
    """

    record: dict[str, Any]
    outcomes: tuple[tuple[ImageOutcome, ...], ...]
    adversarial: tuple[np.ndarray, ...]
    images: ImageSet

    def table(self) -> str:
        """What the command prints."""
        return tables(self.record)

    def html(self) -> str:
        """The report as a page. Raises ``RecordError`` where an image is both broken and proved."""
        if self.record["contradictions"]:
            raise RecordError(
                f"images {self.record['contradictions']} are both broken and proved: there is no "
                "report"
            )
        pages = [_page_record(self.record, run) for run in self.record["runs"]]
        pictures: list[Picture] = []
        for run, adversarial in zip(self.record["runs"], self.adversarial, strict=True):
            pictures += _pictures_of(run, self.images, adversarial)
        title = f"Robust accuracy of {self.record['model']}"
        return html_report(pages, pictures, title, _origin(self.record))


def evaluate_runs(
    plan: Plan,
    radii: Sequence[Fraction],
    rules: Sequence[str],
    images: ImageSet,
    out: Path | None = None,
    fresh: bool = False,
    on_progress: OnStage | None = None,
    subject: Subject | None = None,
    scheduler: Scheduler | None = None,
) -> Evaluation:
    """``plan`` at every radius under every rule, on one opened network."""
    started = time.monotonic()
    plans = [replace(plan, eps=eps, bpda=rule) for eps in radii for rule in rules]
    subject = subject or open_subject(plan, images.shape)
    runs, outcomes, adversarial = [], [], []
    for one in plans:
        began = time.monotonic()
        folder = None if out is None else out / folder_name(one)
        journal = Journal(folder, one.identity(subject.digest), fresh)
        evaluator = Evaluator(one, images, journal, on_progress, subject, scheduler)
        found = evaluator.run()
        runs.append(run_record(evaluator, found, time.monotonic() - began))
        outcomes.append(tuple(found))
        adversarial.append(evaluator.adversarial())
    record = document(runs, plan, images.name, time.monotonic() - started)
    return Evaluation(record, tuple(outcomes), tuple(adversarial), images)


def folder_name(plan: Plan) -> str:
    """``Linf-8_255-removed``."""
    words = (plan.norm, str(plan.eps).replace("/", "_"), plan.bpda)
    return "-".join(word for word in words if word)


def _page_record(record: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """A run as the report wants it (see ``html_report``)."""
    status = run["status"]
    proved = status.get("proved", 0)
    counts = {
        "images": run["images"],
        "clean": run["accuracy"][CLEAN]["count"],
        "attacked": proved + status.get("open", 0),
        "verified": proved if run["bounds"] else None,
    }
    attack = run["attack"] or {"name": "no attack"}
    return {
        "model": record["model"],
        "data": record["data"],
        "norm": run["norm"],
        "eps": float(Fraction(run["eps"])),
        "suite": attack["name"],
        "bpda": run["bpda"] and f"BPDA {run['bpda']}",
        "counts": counts,
        "per_attack": run.get("per_attack", ()),
        "per_image": [
            {
                "index": one["image"],
                "label": one["label"],
                "result": one["status"],
                "by": _reason(one),
            }
            for one in run["per_image"]
        ],
        "warnings": run["warnings"],
        "statements": run.get("statements", ()),
    }


def _origin(record: Mapping[str, Any]) -> str:
    """What made the numbers, for whoever wants the same ones again."""
    settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items())
    commit = f" ({record['commit'][:12]})" if record["commit"] else ""
    return f"bitcrown {record['version']}{commit}, {record['time']}; {settings}"


def _reason(one: Mapping[str, Any]) -> str:
    return str(one["broken_by"] or one["proved_by"])


def _pictures_of(
    run: Mapping[str, Any], images: ImageSet, adversarial: np.ndarray
) -> list[Picture]:
    """The first broken images of a run, and the first open ones."""
    broken, left = (
        [one["image"] for one in run["per_image"] if one["status"] == status][:_PICTURES]
        for status in ("broken", OPEN)
    )
    eps = float(Fraction(run["eps"])) if run["norm"] == LINF else None
    rule = f", BPDA {run['bpda']}" if run["bpda"] else ""
    where = f"{run['norm']} {radius_words(Fraction(run['eps']))}{rule}"
    found = []
    for image in broken:
        one = run["per_image"][image]
        caption = (
            f"image {image}, label {one['label']}: taken for {one['broken_as']} after "
            f"{one['broken_by']} ({where})"
        )
        found.append(Picture(caption, images.images[image], adversarial[image], eps))
    for image in left:
        one = run["per_image"][image]
        bound = "" if one["bound"] is None else f", CROWN's bound of the margin {one['bound']:.4g}"
        caption = (
            f"image {image}, label {one['label']}: open, neither broken nor proved{bound} ({where})"
        )
        found.append(Picture(caption, images.images[image]))
    return found
