"""The walls between the rooms, the size of files and functions, and what an import may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "bitcrown"
FILES = sorted(SOURCE.rglob("*.py"))
LEAVES = {
    "errors",
    "verdict",
    "settings",
    "budget",
    "files",
    "archives",
    "child_process",
    "provenance",
}
MAY_IMPORT = {
    "errors": set(),
    "verdict": set(),
    "budget": {"errors"},
    "settings": {"errors"},
    "files": {"errors"},
    "archives": {"errors"},
    "provenance": {"errors"},
    "child_process": {"errors", "budget", "verdict"},
    "model": LEAVES,
    "spec": LEAVES,
    "check": LEAVES | {"spec"},
    "bounds": LEAVES | {"model", "spec"},
    "attacks": LEAVES | {"model", "spec", "check"},
    "quant": LEAVES | {"model", "spec"},
    "search": LEAVES | {"model", "spec", "bounds", "quant", "attacks", "check"},
    "certificates": LEAVES | {"check", "search", "quant", "model", "spec", "api"},
    "train": LEAVES | {"model", "spec", "bounds", "attacks"},
    "zoo": LEAVES,
}
"""Rooms that a room may import besides itself; a room that is not listed (api, harness, cli,
evaluation) sees all."""
HEAVY = {
    "torch",
    "onnx",
    "PIL",
    "onnxruntime",
    "h5py",
    "jinja2",
    "pyboolector",
    "highspy",
    "psutil",
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """Absolute names of what a file imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "relative imports hide the room"
            yield node.module
            if node.module == "bitcrown":
                yield from (f"bitcrown.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_rooms_see_only_what_they_may(file: Path) -> None:
    room = room_of(file)
    if room not in MAY_IMPORT:
        return
    for name in imported_modules(ast.parse(file.read_text())):
        parts = name.split(".")
        if parts[0] == "bitcrown" and len(parts) > 1 and parts[1] != room:
            assert parts[1] in MAY_IMPORT[room], f"{room} imports {name}"


def test_check_does_not_compute_as_the_prover_does() -> None:
    for file in (SOURCE / "check").rglob("*.py"):
        assert "torch" not in {
            name.partition(".")[0] for name in imported_modules(ast.parse(file.read_text()))
        }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_and_functions_stay_small(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_print_and_no_drawer_modules(file: Path) -> None:
    assert file.name not in ("utils.py", "common.py", "helpers.py", "misc.py")
    if not room_of(file).startswith("cli"):
        calls = [
            node.func
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Call)
        ]
        assert not [
            name
            for name in calls
            if isinstance(name, ast.Name) and name.id in ("print", "eval", "exec")
        ]


def modules_after(statement: str) -> set[str]:
    script = (
        f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in "
        f"sys.modules}}))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_of_the_package_is_light() -> None:
    assert not modules_after("import bitcrown") & HEAVY


@pytest.mark.parametrize("module", ["run", "prepare", "watchdog", "worker"])
def test_parent_imports_nothing_heavy(module: str) -> None:
    assert not modules_after(f"import bitcrown.harness.{module}") & (HEAVY | {"numpy"})


def test_command_line_starts_light() -> None:
    assert not modules_after("import bitcrown.cli.main") & (HEAVY | {"numpy"})
