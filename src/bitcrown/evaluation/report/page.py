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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bitcrown.attacks.images.hygiene import confidence_interval
from bitcrown.errors import RecordError
from bitcrown.evaluation.report.curves import AccuracyCurve, accuracy_curves, radius_text
from bitcrown.evaluation.report.png import data_address, levels
from bitcrown.evaluation.report.templates import filled

if TYPE_CHECKING:
    from markupsafe import Markup

_Record = Mapping[str, Any]
_RESULTS = ("wrong", "broken", "proved", "open")


@dataclass(frozen=True)
class Picture:
    """A row of the grid: images ``[C, H, W]`` in [0, 1]; ``eps``: radius if Linf. An open image has
    no adversarial one."""

    caption: str
    clean: NDArray[np.floating[Any]]
    adversarial: NDArray[np.floating[Any]] | None = None
    eps: float | None = None


def html_report(
    records: Sequence[_Record],
    pictures: Sequence[Picture] = (),
    title: str = "Robust accuracy",
    origin: str = "",
) -> str:
    """The whole page; ``origin`` says what made the numbers."""
    for record in records:
        _check(record)
    return filled(
        "page.html.jinja",
        title=title,
        origin=origin,
        records=[_shown(record) for record in records],
        drawings=_curves(records),
        figures=[_figure(picture) for picture in pictures],
    )


def _check(record: _Record) -> None:
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
            f"verified {verified} does not hold; a count is wrong, or an image is both broken and "
            "proved"
        )
    results = [row.get("result") for row in record.get("per_image") or ()]
    if strange := sorted({str(result) for result in results} - set(_RESULTS)):
        raise RecordError(
            f"{name}: per_image has results {', '.join(strange)}; allowed are {', '.join(_RESULTS)}"
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


# ---- What the template shows: words and numbers, "" or None where there is nothing to say


def _shown(record: _Record) -> dict[str, Any]:
    counts = record["counts"]
    images, verified = int(counts["images"]), counts.get("verified")
    rule = f", BPDA {record['bpda']}" if record.get("bpda") else ""
    return {
        "heading": f"{record['model']} at {_radius(record)}{rule}",
        "model": record["model"],
        "radius": _radius(record),
        "attack": " ".join(str(record[key]) for key in ("suite", "bpda") if record.get(key)),
        "images": images,
        "shares": [_share(counts.get(key), images) for key in ("clean", "attacked", "verified")],
        "open": None if verified is None else (int(counts["attacked"]) - int(verified)) / images,
        "attacks": _attacks(record),
        "statements": record.get("statements") or (),
        "warnings": [
            {
                "name": warning.get("name", ""),
                "sentence": warning.get("sentence", ""),
                "measured": ", ".join(
                    f"{key} = {_number(value)}" for key, value in _measurement(warning).items()
                ),
            }
            for warning in record.get("warnings") or ()
        ],
        "rows": [
            [str(row.get(key, "")) for key in ("index", "label", "result")] + [row.get("by")]
            for row in record.get("per_image") or ()
        ],
    }


def _share(count: int | None, images: int) -> tuple[float, float, float] | None:
    """A share with its interval."""
    if count is None:
        return None
    return int(count) / images, *confidence_interval(int(count), images)


def _attacks(record: _Record) -> list[dict[str, Any]]:
    left, images = int(record["counts"]["clean"]), int(record["counts"]["images"])
    rows = []
    for attack in record.get("per_attack") or ():
        broken, seconds = int(attack["broken"]), attack.get("seconds")
        left -= broken
        rows.append(
            {
                "name": attack["name"],
                "attempted": int(attack["attempted"]),
                "broken": broken,
                "left": left / images,
                "seconds": None if seconds is None else float(seconds),
            }
        )
    return rows


def _radius(record: _Record) -> str:
    norm = str(record.get("norm", "Linf"))
    return f"{norm} {radius_text(float(record['eps']), norm)}"


def _measurement(warning: _Record) -> Mapping[str, Any]:
    found = warning.get("measurement") or {}
    return found if isinstance(found, Mapping) else {"measured": found}


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _curves(records: Sequence[_Record]) -> list[Markup]:
    """One drawing a norm; a curve is a network, suite and rule, and begins at radius 0."""
    drawings = []
    for norm in dict.fromkeys(str(record.get("norm", "Linf")) for record in records):
        groups: dict[str, list[_Record]] = {}
        for record in records:
            if str(record.get("norm", "Linf")) == norm:
                words = (str(record[key]) for key in ("model", "suite", "bpda") if record.get(key))
                groups.setdefault(" ".join(words), []).append(record)
        drawings.append(
            accuracy_curves([_curve(name, found) for name, found in groups.items()], norm)
        )
    return drawings


def _curve(name: str, records: Sequence[_Record]) -> AccuracyCurve:
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
    return AccuracyCurve(name, radii, attacked, proved)


def _figure(picture: Picture) -> dict[str, Any]:
    """Grey is no change, black and white are a change by ``scale``."""
    if picture.adversarial is None:
        return {
            "caption": picture.caption,
            "addresses": {"original": data_address(levels(picture.clean))},
        }
    difference = np.asarray(picture.adversarial, np.float64) - np.asarray(picture.clean, np.float64)
    peak = float(np.abs(difference).max(initial=0.0))
    scale = max(picture.eps or 0.0, peak) or 1.0
    shown = {
        "original": picture.clean,
        "adversarial": picture.adversarial,
        "difference": 0.5 + difference / (2 * scale),
    }
    addresses = {name: data_address(levels(image)) for name, image in shown.items()}
    return {"caption": picture.caption, "addresses": addresses}
