"""The picture of the README as SVG: three_answers.py FILE

A network, a question, three answers. The digit, the sentences and the counterexample are what
`bitcrown.robust` says of a network of this repository; nothing in it is drawn by hand.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import bitcrown

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "benchmarks" / "qnn_robustness"
NETWORK, DIGITS = SUITE / "networks" / "mnist_mlp.onnx", SUITE / "mnist_20.npz"
PROVED, BROKEN = "2/255", "40/255"
WIDTH, HEIGHT, CARD, GAP = 960, 300, 80, 15
STYLE = """
.ground { fill: #f6f8fa; stroke: #d0d7de } .card { fill: #ffffff; stroke: #d0d7de }
text { fill: #1f2328; font: 14px system-ui, sans-serif } .faint { fill: #59636e; font-size: 13px }
.word { font: 600 17px ui-monospace, monospace } .line { stroke: #59636e; fill: none }
.unsat { fill: #1a7f37 } .sat { fill: #bc4c00 } .unknown { fill: #59636e }
@media (prefers-color-scheme: dark) {
  .ground { fill: #151b23; stroke: #3d444d } .card { fill: #0d1117; stroke: #3d444d }
  text { fill: #f0f6fc } .faint { fill: #9198a1 } .line { stroke: #9198a1 }
  .unsat { fill: #3fb950 } .sat { fill: #f0883e } .unknown { fill: #9198a1 }
}
"""


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    image = np.load(DIGITS)["images"][0]
    answers = [
        bitcrown.robust(NETWORK, image[None], eps, cpu_seconds=60) for eps in (PROVED, BROKEN)
    ]
    Path(sys.argv[1]).write_text(drawn(image, *answers), encoding="utf-8")
    return 0


def drawn(image: np.ndarray, proved: object, broken: object) -> str:
    """``image``: levels [28, 28]; ``proved``, ``broken``: the answers at both radii."""
    if (proved.status, broken.status) != ("unsat", "sat"):
        raise SystemExit(f"the answers are {proved.status} and {broken.status}")
    found = np.rint(np.asarray(broken.adversarial, dtype=float).reshape(28, 28) * 255)
    cards = (
        ("unsat", said(proved), "Proved. A second program can check the proof.", None),
        ("sat", said(broken), "Found, and replayed on the original file.", found),
        (
            "unknown",
            "No answer within the time that was given.",
            "Why, how far, what to try.",
            None,
        ),
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>A network and a question go in; unsat, sat or unknown comes out</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="ground" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="10"/>',
        *network(36, 40),
        '<text x="28" y="160">a network</text>',
        '<text class="faint" x="28" y="180">ONNX, torch, int8</text>',
        picture(image, 180, 48, 84),
        '<text x="180" y="160">a question</text>',
        '<text class="faint" x="180" y="180">does every image within</text>',
        f'<text class="faint" x="180" y="198">eps of it stay a {proved.label}?</text>',
        *(arrow(350, 150, 415, middle(number)) for number in range(len(cards))),
    ]
    for number, (word, sentence, proof, level) in enumerate(cards):
        parts += card(number, word, sentence, proof, level)
    return "\n".join([*parts, "</svg>"]) + "\n"


def said(answer: object) -> str:
    """The sentence without the name of the input."""
    name = answer.name
    return answer.sentence().replace(f" of {name}", "").replace(" (pixels in [0, 1])", "")


def middle(number: int) -> float:
    return GAP + number * (CARD + GAP) + CARD / 2


def card(number: int, word: str, sentence: str, proof: str, level: np.ndarray | None) -> list[str]:
    top = GAP + number * (CARD + GAP)
    parts = [
        f'<rect class="card" x="420" y="{top}" width="525" height="{CARD}" rx="8"/>',
        f'<text class="word {word}" x="438" y="{top + 46}">{word}</text>',
        f'<text x="528" y="{top + 35}">{sentence}</text>',
        f'<text class="faint" x="528" y="{top + 57}">{proof}</text>',
    ]
    if level is not None:
        parts.append(picture(level, 874, top + 10, 60))
    return parts


def network(left: float, top: float) -> list[str]:
    """A small perceptron, for the eye."""
    layers = [
        [(left + 50 * column, top + 50 + 28 * (place - (size - 1) / 2)) for place in range(size)]
        for column, size in enumerate((3, 4, 2))
    ]
    lines = [
        f'<path class="line" stroke-width="0.7" d="M{a} {b}L{c} {d}"/>'
        for one, other in zip(layers, layers[1:], strict=False)
        for a, b in one
        for c, d in other
    ]
    dots = [f'<circle class="card" cx="{x}" cy="{y}" r="8"/>' for layer in layers for x, y in layer]
    return lines + dots


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    bend = (x + to_x) / 2
    path = f"M{x} {y}C{bend} {y} {bend} {to_y} {to_x} {to_y}"
    return f'<path class="line" stroke-width="1.5" d="{path}"/>'


def picture(levels: np.ndarray, x: float, y: float, size: float) -> str:
    """8-bit ``levels [H, W]`` as an embedded PNG."""
    out = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(out, "PNG")
    data = base64.b64encode(out.getvalue()).decode()
    return (
        f'<image x="{x}" y="{y}" width="{size}" height="{size}" style="image-rendering: pixelated" '
        f'href="data:image/png;base64,{data}"/>'
    )


if __name__ == "__main__":
    raise SystemExit(main())
