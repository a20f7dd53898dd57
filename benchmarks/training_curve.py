"""The curve of a training run as SVG: training_curve.py RECORD.json CURVE.svg

Accuracy on augmented training images and on held-out images, and the radius as a share of its full
value, by epoch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 300, 44, 36, 12, 170
LINES = (
    ("accuracy", "training images", "#0b6aa2"),
    ("held_out_accuracy", "held-out images", "#b5461c"),
    ("eps", "radius, share of full", "#888888"),
)


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    record = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(
        drawn(record["history"], record["settings"]["eps"]), encoding="utf-8"
    )
    return 0


def drawn(history: list[dict[str, float]], eps: float) -> str:
    epochs, right, low = int(history[-1]["epoch"]), WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]

    def place(epoch: float, share: float) -> tuple[float, float]:
        return LEFT + (right - LEFT) * epoch / epochs, low - (low - TOP) * share

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = place(0, share)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{right}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for epoch in range(0, epochs + 1, max(1, epochs // 5)):
        x, y = place(epoch, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{epoch}</text>')
    parts.append(
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 4}" text-anchor="middle">epoch</text>'
    )
    for number, (key, name, colour) in enumerate(LINES):
        scale = eps if key == "eps" else 1.0
        points = [place(row["epoch"], row[key] / scale) for row in history if key in row]
        if points:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
            parts.append(
                f'<text x="{right + 10}" y="{TOP + 16 + 18 * number}" fill="{colour}">{name}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
