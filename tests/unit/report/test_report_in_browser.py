"""The page in a real browser: nothing on its console, every figure has a size, nothing is wider
than the window, in light and in dark.

Frames of several widths hold the page in another one, whose script measures them: the page itself
has no script.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from typing import Any

import pytest
from result_rows import HOSTILE
from test_report_page import three_sets

from bitcrown.cli.main import main

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
WIDTHS, THEMES = (360, 768, 1600), ("light", "dark")
PATIENCE = 300
MEASURE = """
const page = JSON.parse(document.getElementById('page').textContent), found = [];
for (const frame of document.querySelectorAll('iframe')) {
  frame.onload = () => {
    const inner = frame.contentDocument, root = inner.documentElement;
    inner.getElementById('theme-' + frame.dataset.theme).checked = true;
    for (const closed of inner.querySelectorAll('details')) closed.open = true;
    const size = (element) => element.getBoundingClientRect();
    const figures = [...inner.querySelectorAll('svg, img, figure, .bar')];
    const wide = [...inner.querySelectorAll('main *, header *')].filter(
      (one) => !one.closest('.scroll, nav') && size(one).right > root.clientWidth + 1);
    found.push({
      width: Number(frame.width), theme: frame.dataset.theme, scroll: root.scrollWidth,
      figures: figures.length, empty: figures.filter((one) => size(one).width < 2 || size(one).height < 8).length,
      wide: wide.map((one) => one.tagName + ' ' + one.className), scripts: inner.scripts.length,
      paper: getComputedStyle(inner.body).backgroundColor, ink: getComputedStyle(inner.body).color,
    });
    document.getElementById('found').textContent = JSON.stringify(found);
  };
  frame.srcdoc = page;
}
"""  # noqa: E501

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` (WCAG 2.2)."""
    levels = [int(level) / 255 for level in re.findall(r"\d+", colour)[:3]]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """What the frames say, and what the browser wrote on its console."""
    folder = tmp_path_factory.mktemp("page")
    main(["report", *three_sets(folder), "--html", str(folder / "page.html")])
    page = json.dumps((folder / "page.html").read_text()).replace("</", "<\\/")
    frames = "".join(
        f'<iframe width="{width}" height="900" data-theme="{theme}"></iframe>'
        for width in WIDTHS
        for theme in THEMES
    )
    outer = folder / "outer.html"
    outer.write_text(
        f'<!DOCTYPE html><meta charset="utf-8">{frames}<pre id="found"></pre>'
        f'<script type="application/json" id="page">{page}</script><script>{MEASURE}</script>'
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += ["--virtual-time-budget=4000", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [str(BROWSER), *options, "--dump-dom", outer.as_uri()],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match is not None and match[1], done.stderr
    return json.loads(html.unescape(match[1])), done.stderr


def test_console_is_silent(measured: tuple[list[dict[str, Any]], str]) -> None:
    assert ":CONSOLE" not in measured[1]


def test_every_frame_was_measured(measured: tuple[list[dict[str, Any]], str]) -> None:
    seen = {(frame["width"], frame["theme"]) for frame in measured[0]}
    assert seen == {(width, theme) for width in WIDTHS for theme in THEMES}
    assert all(frame["figures"] >= 8 and not frame["scripts"] for frame in measured[0])


def test_figures_have_a_size(measured: tuple[list[dict[str, Any]], str]) -> None:
    assert [frame["empty"] for frame in measured[0]] == [0] * len(measured[0])


def test_nothing_is_wider_than_the_window(measured: tuple[list[dict[str, Any]], str]) -> None:
    for frame in measured[0]:
        assert frame["scroll"] <= frame["width"], frame
        assert not frame["wide"], frame


def test_text_stands_out_in_both_themes(measured: tuple[list[dict[str, Any]], str]) -> None:
    for frame in measured[0]:
        paper, ink = luminance(frame["paper"]), luminance(frame["ink"])
        assert (paper > ink) == (frame["theme"] == "light")
        assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) >= 7.0  # WCAG 2.2, level AAA


def test_hostile_text_ran_nowhere(measured: tuple[list[dict[str, Any]], str]) -> None:
    assert "<script" in HOSTILE and "alert" not in measured[1]
