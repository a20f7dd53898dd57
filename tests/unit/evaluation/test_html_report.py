"""The page: numbers that agree, pictures that decode, text that stays text."""

from __future__ import annotations

import base64
import copy
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bitcrown.attacks.images.hygiene import confidence_interval
from bitcrown.errors import RecordError
from bitcrown.evaluation.report.curves import AccuracyCurve, accuracy_curves, radius_text
from bitcrown.evaluation.report.page import Picture, html_report
from bitcrown.evaluation.report.png import levels, png


def record(
    eps: float = 2 / 255, attacked: int = 3, verified: int | None = 2, **changes: Any
) -> dict[str, Any]:
    results = ["wrong"] * 2 + ["broken"] * (8 - attacked) + ["proved"] * (verified or 0)
    results += ["open"] * (10 - len(results))
    found: dict[str, Any] = {
        "model": "resnet",
        "norm": "Linf",
        "eps": eps,
        "suite": "standard",
        "counts": {"images": 10, "clean": 8, "attacked": attacked, "verified": verified},
        "per_attack": [
            {"name": "apgd-ce", "attempted": 8, "broken": 8 - attacked, "seconds": 1.25},
            {"name": "square", "attempted": attacked, "broken": 0, "seconds": None},
        ],
        "per_image": [
            {"index": i, "label": 3, "result": word, "by": None} for i, word in enumerate(results)
        ],
        "warnings": [],
    }
    return found | changes


class Tags(HTMLParser):
    """Every element and text of a page; fails where elements do not nest."""

    EMPTY = ("meta", "br", "img", "line", "circle", "polyline", "polygon")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_nests_and_says_the_numbers() -> None:
    page = Tags(html_report([record(), record(eps=8 / 255, attacked=1, verified=0)]))
    text = " ".join(page.text)
    for word in (
        "80.00%",
        "30.00%",
        "20.00%",
        "10.00%",
        "Linf 2/255",
        "Linf 8/255",
        "0 (added nothing)",
        "1.2",
    ):
        assert word in text, word
    assert [tag for tag, _ in page.seen].count("svg") == 1
    assert "None: every check that ran found nothing." in text


def test_names_are_text_and_never_markup() -> None:
    nasty = "<script>alert('x')</script>\"><img src=x onerror=1>&amp;"
    attacked = record(model=nasty, suite=nasty, bpda=nasty, norm=nasty)
    attacked["per_attack"][0]["name"] = nasty
    attacked["per_image"][0] |= {"by": nasty, "label": nasty}
    attacked["warnings"] = [{"name": nasty, "sentence": nasty, "measurement": {nasty: nasty}}]
    image = np.zeros((1, 2, 2))
    whole = html_report([attacked], [Picture(nasty, image, image)], title=nasty)
    page = Tags(whole)
    tags = {tag for tag, _ in page.seen}
    assert "script" not in tags
    assert all("onerror" not in attributes for _, attributes in page.seen)
    assert sum(nasty in part for part in page.text) >= 8
    for tag, attributes in page.seen:
        assert tag != "img" or str(attributes["src"]).startswith("data:image/png;base64,")
        assert not {"href", "onload", "action"} & set(attributes)
    policy = [attributes["content"] for tag, attributes in page.seen if "http-equiv" in attributes]
    assert policy and "default-src 'none'" in str(policy[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": {"images": 10, "clean": 8, "attacked": 9}}, "does not hold"),
        ({"counts": {"images": 10, "clean": 8, "attacked": 3, "verified": 4}}, "does not hold"),
        ({"counts": {"images": 0, "clean": 0, "attacked": 0}}, "does not hold"),
        ({"counts": {"images": 10}}, "needs model"),
        ({"counts": {"images": 10, "clean": "many", "attacked": 3}}, "needs model"),
        ({"eps": float("nan")}, "must be a radius"),
        ({"counts": {"images": 10, "clean": 8, "attacked": 2, "verified": 2}}, "disagree"),
        (
            {"counts": {"images": 10, "clean": 8, "attacked": 3, "verified": 1}},
            "1 verified images, but 2",
        ),
        ({"per_image": [{"index": 0, "result": "safe"}]}, "safe"),
    ],
)
def test_numbers_that_contradict_each_other_make_no_page(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecordError, match=message):
        html_report([record(**change)])


def test_warnings_come_with_their_measurements() -> None:
    warned = record()
    warned["warnings"] = [
        {
            "name": "nan-gradients",
            "sentence": "Gradients are NaN.",
            "measurement": {"with_nan": 7, "share": 0.123456},
        }
    ]
    text = " ".join(Tags(html_report([warned])).text)
    assert "Gradients are NaN." in text and "with_nan = 7, share = 0.1235" in text
    assert "every check that ran found nothing" not in text


def test_what_was_not_verified_has_no_gap_and_no_band() -> None:
    one = record(verified=None)
    page = html_report([one])
    assert "polygon" not in page and "polygon" in html_report([record()])
    minimal = {key: one[key] for key in ("model", "eps", "counts")}
    assert "polyline" in html_report([copy.deepcopy(minimal)])


def points_of(element: str) -> list[tuple[float, float]]:
    found = re.search(r'points="([^"]*)"', element)
    assert found
    return [tuple(float(number) for number in pair.split(",")) for pair in found.group(1).split()]  # type: ignore[misc]


def test_curves_are_at_the_shares_they_stand_for() -> None:
    drawn = accuracy_curves(
        [AccuracyCurve("net", (0.0, 0.01, 0.02), (1.0, 0.5, 0.0), (1.0, 0.25, None))], "Linf"
    )
    band, proved, attacked = (line for line in drawn.splitlines() if "<pol" in line)
    ys = [y for _, y in points_of(attacked)]
    assert ys[1] == pytest.approx((ys[0] + ys[2]) / 2)
    low = [y for _, y in points_of(proved)]
    assert (
        len(low) == 2
        and low[0] == ys[0]
        and low[1] == pytest.approx(0.25 * ys[0] + 0.75 * ys[2], abs=0.1)
    )
    xs = [x for x, _ in points_of(attacked)]
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2)
    assert len(points_of(band)) == 4


def test_many_curves_keep_their_names_apart() -> None:
    drawn = accuracy_curves(
        [AccuracyCurve(f"net {i}", (0.0, 1.0), (0.9, 0.3), (None, None)) for i in range(8)], "L2"
    )
    heights = [float(y) for y in re.findall(r'class="name" x="[0-9.]+" y="([0-9.]+)"', drawn)]
    assert len(heights) == 8 and min(abs(a - b) for a in heights for b in heights if a != b) >= 14


def test_radii_are_written_as_people_write_them() -> None:
    assert [radius_text(radius, "Linf") for radius in (0.0, 8 / 255, 0.5 / 255, 0.3)] == [
        "0",
        "8/255",
        "0.5/255",
        "0.3",
    ]
    assert radius_text(0.5, "L2") == "0.5" and radius_text(0.1234, "Linf") == "0.1234"


def test_wilson_interval_of_the_textbook() -> None:
    low, high = confidence_interval(533, 1000)
    assert (round(low, 3), round(high, 3)) == (0.502, 0.564)
    assert confidence_interval(0, 10)[0] == 0 and confidence_interval(10, 10)[1] == pytest.approx(1)
    assert confidence_interval(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)
    assert confidence_interval(0, 0) == (0.0, 1.0)


# ---- Pictures


def decoded(data: bytes) -> np.ndarray:
    """``[H, W, C]`` of a PNG file."""
    pixels = np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


@pytest.mark.parametrize(("channels", "kept"), [(1, 1), (2, 1), (3, 3), (4, 3)])
def test_pictures_hold_the_pixels(channels: int, kept: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    assert np.array_equal(decoded(png(pixels)), pixels[:, :, :kept])
    assert np.array_equal(levels(pixels.transpose(2, 0, 1) / np.float32(255)), pixels)


def test_the_difference_is_grey_where_nothing_changed_and_full_at_the_radius() -> None:
    clean = np.full((1, 1, 3), 0.5)
    changed = clean + np.array([[[0.0, 0.1, -0.1]]])
    page = Tags(html_report([record()], [Picture("0", clean, changed, eps=0.1)]))
    shown = {
        attributes["alt"]: str(attributes["src"]) for tag, attributes in page.seen if tag == "img"
    }
    pixels = decoded(base64.b64decode(shown["difference"].partition(",")[2]))[0, :, 0]
    assert pixels.tolist() == [128, 255, 0]
    # Values outside the range and NaN are drawn, not refused: the page is where one looks for what
    # went wrong.
    assert levels(np.array([[[np.nan, 2.0, -1.0]]]))[0, :, 0].tolist() == [0, 255, 0]
