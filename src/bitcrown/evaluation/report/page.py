"""One file to show: what an evaluation found, as a page without scripts or anything from outside.

The sandwich: true robust accuracy lies between the share that no attack broke and the share that is
proved, ``clean >= attacked >= verified``; what lies between is open. Shares come with Wilson's 95 %
interval for the sample.

A record is a mapping, one for each network and radius (as JSON has it; absent or None means not
measured):

* ``model``, ``data``, ``norm``: names; ``eps``: radius, pixels in [0, 1]; ``suite``, ``bpda``: what
  attacked;
* ``counts``: ``images``, ``clean`` (right without attack), ``attacked`` (right after all attacks),
  ``verified`` (proved, or None);
* ``per_attack``: ``name``, ``attempted``, ``broken``, ``seconds`` of each, in their order;
* ``per_image``: ``index``, ``label``, ``result`` (``wrong``, ``broken``, ``proved`` or ``open``),
  ``by``;
* ``warnings``: ``name``, ``sentence`` and ``measurement`` (a mapping of what was measured) of each;
* ``statements``: sentences on what the attacks could and could not do.

Everything that comes from a record is text and is escaped. ``html_report`` raises ``RecordError``
where the numbers contradict each other: such a page must not exist.

Legend: ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitcrown.attacks.images.hygiene import confidence_interval
from bitcrown.errors import RecordError
from bitcrown.evaluation.report.curves import Curve, accuracy_curves, radius_text
from bitcrown.evaluation.report.png import data_address, levels

Record = Mapping[str, Any]
RESULTS = ("wrong", "broken", "proved", "open")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1c1c; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d6d6d6; text-align: right;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
small, .note { color: #555; } .none { color: #777; }
.curves { width: 100%; max-width: 44rem; font: 12px system-ui, sans-serif; }
.curves .name { font-weight: 600; } .grid { stroke: #e2e2e2; } .tick { stroke: #777; }
.warning { border-left: 4px solid #b5461c; background: #fbf1ec; padding: .5rem .8rem;
  margin: .6rem 0; }
.warning code { font-size: 13px; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; }
figure img { width: 96px; height: 96px; image-rendering: pixelated; margin-right: 4px; }
figcaption { font-size: 13px; }
"""


@dataclass(frozen=True)
class Picture:
    """A row of the grid: ``clean`` and ``adversarial [C, H, W]`` in [0, 1]; ``eps``: radius of a
    Linf ball, or None."""

    caption: str
    clean: NDArray[np.floating[Any]]
    adversarial: NDArray[np.floating[Any]]
    eps: float | None = None


def html_report(
    records: Sequence[Record], pictures: Sequence[Picture] = (), title: str = "Robust accuracy"
) -> str:
    """The whole page."""
    for record in records:
        _check(record)
    heading = escape(title)
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>{heading}</title><style>{STYLE}</style></head><body><h1>{heading}</h1>",
        _summary(records),
        _warnings(records),
        "<h2>Accuracy against radius</h2>",
        *_curves(records),
        *(_attacks(record) for record in records),
        _grid(pictures),
        *(_images(record) for record in records),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _check(record: Record) -> None:
    try:
        name, eps, counts = str(record["model"]), float(record["eps"]), record["counts"]
        images, clean, attacked = (int(counts[key]) for key in ("images", "clean", "attacked"))
        verified = None if counts.get("verified") is None else int(counts["verified"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(
            f"a record needs model, eps and counts of images, clean and attacked: {error!r}"
        ) from error
    if not (math.isfinite(eps) and eps >= 0):
        raise RecordError(f"{name}: eps must be a radius, not {eps}")
    if not images >= clean >= attacked >= (verified or 0) >= 0 or not images:
        raise RecordError(
            f"{name} at {eps}: images {images} >= clean {clean} >= attacked {attacked} >= "
            f"verified {verified} does not "
            "hold; a count is wrong, or an image is both broken and proved"
        )
    results = [row.get("result") for row in record.get("per_image") or ()]
    if strange := sorted({str(result) for result in results} - set(RESULTS)):
        raise RecordError(
            f"{name}: per_image has results {', '.join(strange)}; allowed are {', '.join(RESULTS)}"
        )
    seen = results.count("proved") + results.count("open")
    if results and (
        len(results) != images or seen != attacked or results.count("wrong") != images - clean
    ):
        raise RecordError(f"{name} at {eps}: per_image and counts disagree; evaluate again")
    if results and verified is not None and results.count("proved") != verified:
        raise RecordError(
            f"{name} at {eps}: {verified} verified images, but {results.count('proved')} marked so"
        )


# ---- Tables


def _summary(records: Sequence[Record]) -> str:
    header = ("network", "radius", "attack", "images", "clean", "attacked", "verified", "open")
    rows = []
    for record in records:
        counts = record["counts"]
        images, verified = int(counts["images"]), counts.get("verified")
        attack = " ".join(str(record[key]) for key in ("suite", "bpda") if record.get(key))
        gap = None if verified is None else int(counts["attacked"]) - int(verified)
        rows.append(
            (
                escape(str(record["model"])),
                escape(_radius(record)),
                escape(attack) or _NONE,
                str(images),
                *(_share(counts.get(key), images) for key in ("clean", "attacked", "verified")),
                _NONE if gap is None else f"{gap / images:.2%}",
            )
        )
    note = (
        '<p class="note">Attacked: right after every attack, an upper bound of the true robust '
        "accuracy. Verified: "
        "proved, a lower bound. Small numbers: 95 % interval for a sample of this size.</p>"
    )
    return "<h2>Clean &ge; attacked &ge; verified</h2>" + _table(header, rows) + note


_NONE = '<span class="none">&ndash;</span>'


def _share(count: int | None, images: int) -> str:
    if count is None:
        return _NONE
    low, high = confidence_interval(int(count), images)
    return f"{int(count) / images:.2%}<br><small>{low:.1%} &ndash; {high:.1%}</small>"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells of ``rows`` are HTML already; those of ``header`` are text."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _attacks(record: Record) -> str:
    attacks = record.get("per_attack") or ()
    if not attacks:
        return ""
    left, images = int(record["counts"]["clean"]), int(record["counts"]["images"])
    rows = []
    for attack in attacks:
        broken = int(attack["broken"])
        left -= broken
        seconds = attack.get("seconds")
        rows.append(
            (
                escape(str(attack["name"])),
                str(int(attack["attempted"])),
                str(broken) if broken else "0 (added nothing)",
                f"{left / images:.2%}",
                _NONE if seconds is None else f"{float(seconds):.1f}",
            )
        )
    notes = "".join(
        f'<p class="note">{escape(str(said))}</p>' for said in record.get("statements") or ()
    )
    table = _table(("attack", "images", "broken", "left", "seconds"), rows)
    return f"<h2>Attacks: {_heading(record)}</h2>{table}{notes}"


def _images(record: Record) -> str:
    images = record.get("per_image") or ()
    if not images:
        return ""
    cells = [
        [escape(str(row.get(key, ""))) or _NONE for key in ("index", "label", "result")]
        + [escape(str(row["by"])) if row.get("by") else _NONE]
        for row in images
    ]
    table = _table(("image", "label", "result", "by"), cells)
    return f"<details><summary>Every image: {_heading(record)}</summary>{table}</details>"


def _heading(record: Record) -> str:
    rule = f", BPDA {record['bpda']}" if record.get("bpda") else ""
    return escape(f"{record['model']} at {_radius(record)}{rule}")


def _radius(record: Record) -> str:
    norm = str(record.get("norm", "Linf"))
    return f"{norm} {radius_text(float(record['eps']), norm)}"


# ---- Warnings, curves, pictures


def _warnings(records: Sequence[Record]) -> str:
    parts = []
    for record in records:
        for warning in record.get("warnings") or ():
            measured = ", ".join(
                f"{key} = {_number(value)}" for key, value in _measurement(warning).items()
            )
            parts.append(
                f'<div class="warning"><b>{escape(str(warning.get("name", "")))}</b> '
                f"({_heading(record)}): "
                f"{escape(str(warning.get('sentence', '')))}<br>"
                f"<code>{escape(measured)}</code></div>"
            )
    body = "\n".join(parts) or '<p class="note">None: every check that ran found nothing.</p>'
    return f"<h2>Warnings</h2>{body}"


def _measurement(warning: Record) -> Mapping[str, Any]:
    found = warning.get("measurement") or {}
    return found if isinstance(found, Mapping) else {"measured": found}


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _curves(records: Sequence[Record]) -> list[str]:
    """One drawing a norm; records of the same network, suite and rule make a curve that begins at
    radius 0."""
    drawings = []
    for norm in dict.fromkeys(str(record.get("norm", "Linf")) for record in records):
        groups: dict[str, list[Record]] = {}
        for record in records:
            if str(record.get("norm", "Linf")) == norm:
                words = (str(record[key]) for key in ("model", "suite", "bpda") if record.get(key))
                groups.setdefault(" ".join(words), []).append(record)
        drawings.append(
            accuracy_curves([_curve(name, found) for name, found in groups.items()], norm)
        )
    return drawings


def _curve(name: str, records: Sequence[Record]) -> Curve:
    ordered = sorted(records, key=lambda record: float(record["eps"]))
    first = ordered[0]["counts"]
    clean = int(first["clean"]) / int(first["images"])
    points: list[tuple[float, float, float | None]] = []
    if float(ordered[0]["eps"]) > 0:
        # At radius 0 nothing can be attacked, and being right is the proof.
        points.append((0.0, clean, None if first.get("verified") is None else clean))
    for record in ordered:
        counts = record["counts"]
        images, verified = int(counts["images"]), counts.get("verified")
        share = None if verified is None else int(verified) / images
        points.append((float(record["eps"]), int(counts["attacked"]) / images, share))
    radii, attacked, proved = zip(*points, strict=True)
    return Curve(name, radii, attacked, proved)


def _grid(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    figures = "\n".join(_figure(picture) for picture in pictures)
    note = (
        '<p class="note">Original, adversarial, and their difference: grey is no change, black '
        "and white are a change "
        "by the radius (in other balls than Linf: by the largest change of a pixel). Shown in 8 "
        "bits; success is "
        "judged on the exact float32 pixels.</p>"
    )
    return f'<h2>Images</h2>{note}<div class="pictures">{figures}</div>'


def _figure(picture: Picture) -> str:
    difference = np.asarray(picture.adversarial, np.float64) - np.asarray(picture.clean, np.float64)
    peak = float(np.abs(difference).max(initial=0.0))
    scale = max(picture.eps or 0.0, peak) or 1.0
    shown = (picture.clean, picture.adversarial, 0.5 + difference / (2 * scale))
    names = ("original", "adversarial", "difference")
    tags = "".join(
        f'<img alt="{name}" title="{name}" src="{data_address(levels(image))}">'
        for name, image in zip(names, shown, strict=True)
    )
    return f"<figure>{tags}<figcaption>{escape(picture.caption)}</figcaption></figure>"
