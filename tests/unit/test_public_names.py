"""The library's functions are verbs and its packages are nouns, so that neither ever hides the
other."""

from __future__ import annotations

from pathlib import Path

import bitcrown

SOURCE = Path(bitcrown.__file__).parent


def test_no_public_name_is_also_a_module() -> None:
    modules = {
        path.stem
        for path in SOURCE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert not modules & set(bitcrown.__all__)


def test_every_public_name_loads() -> None:
    assert all(getattr(bitcrown, name).__name__ == name for name in bitcrown.__all__)
