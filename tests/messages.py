"""Every sentence with which bitcrown refuses something, read from its sources.

What varies is ``…``: a message is a template. ``docs/troubleshooting.md`` has a row for each.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "bitcrown"
PAGE = ROOT / "docs" / "troubleshooting.md"
VARIES = "…"
ERRORS = frozenset(
    {
        "ModelError",
        "UnsupportedError",
        "QuantError",
        "NoRule",
        "PropertyError",
        "DataError",
        "SettingsError",
        "ResourceError",
        "RecordError",
    }
)
_ROW = re.compile(r"^\| (`.*?`) \|", re.MULTILINE)


def text_of(node: ast.expr) -> str:
    """A message as a template; nothing where it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else VARIES for part in node.values
        )
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return ""


def messages() -> dict[str, str]:
    """Templates of everything that is raised for a user, with the place that raises them."""
    found: dict[str, str] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = ast.unparse(node.func)
            if name in ERRORS:
                text = text_of(node.args[0])
            elif name.endswith("source.error") and len(node.args) == 3:
                text = f"{VARIES}, line {VARIES}: {text_of(node.args[1]) or VARIES}"
            else:
                continue
            if text.strip(f"{VARIES}:;, "):
                found[text] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


def rows() -> list[str]:
    """The messages that the page explains, of all its tables."""
    cells = _ROW.findall(PAGE.read_text())
    return [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]


def explains(row: str, message: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in row.split(VARIES))
    return re.fullmatch(pattern, message) is not None
