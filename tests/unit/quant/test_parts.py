"""The parts of the integer engine import each other in one direction only."""

from __future__ import annotations

import ast

import pytest

from tests.unit.test_structure import SOURCE, imported_modules

MAY_IMPORT = {
    "network": set(),
    "query": {"network"},
    "formats": {"network"},
    "bounds": {"network", "query"},
    "proof": {"network", "query", "bounds"},
    "attack": {"network", "query", "bounds"},
    "search": {"network", "query", "bounds", "proof", "attack"},
    "smt": {"network"},
}
FILES = sorted((SOURCE / "quant").rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_parts_see_only_what_they_may(file) -> None:
    part = file.relative_to(SOURCE / "quant").parts[0].removesuffix(".py")
    if part == "__init__":
        return
    for name in imported_modules(ast.parse(file.read_text())):
        seen = name.split(".")
        if seen[:2] == ["bitcrown", "quant"] and seen[2] != part:
            assert seen[2] in MAY_IMPORT[part], f"{part} imports {name}"
