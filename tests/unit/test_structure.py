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
    "cluster": LEAVES,
    "model": LEAVES,
    "spec": LEAVES,
    "check": LEAVES | {"spec"},
    "bounds": LEAVES | {"model"},
    "attacks": LEAVES | {"model", "spec", "check"},
    "quant": LEAVES | {"model", "spec"},
    "search": LEAVES | {"model", "spec", "bounds", "quant", "attacks", "check"},
    "certificates": LEAVES | {"model", "spec", "quant", "search", "check"},
    "train": LEAVES | {"model", "bounds"},
    "zoo": LEAVES,
    "evaluation": LEAVES
    | {"model", "spec", "bounds", "quant", "search", "attacks", "check", "zoo", "cluster"},
    "api": LEAVES | {"model", "spec", "quant", "search", "attacks", "certificates", "evaluation"},
    "harness": LEAVES | {"spec", "check", "api", "cluster"},
    "report": LEAVES | {"spec", "check", "evaluation", "harness"},
    "cli": LEAVES
    | {"model", "spec", "check", "certificates", "evaluation", "train", "api", "harness"}
    | {"cluster", "report"},
    "__init__": {"api", "budget", "errors", "provenance", "settings", "spec", "verdict"},
    "__main__": {"cli"},
}
"""Rooms that a room may import besides itself; every room has its row."""
QUANT_MAY_IMPORT = {
    "network": set(),
    "query": {"network"},
    "formats": {"network"},
    "bounds": {"network", "query"},
    "proof": {"network", "query", "bounds"},
    "attack": {"network", "query", "bounds"},
    "search": {"network", "query", "bounds", "proof", "attack"},
    "smt": {"network", "query"},
}
"""The same inside the integer engine: networks know no file format, bounds no search, and the
second method (``smt``) nothing of the first."""
MOST_LINES = {
    "model": 9790,
    "spec": 5550,
    "check": 9400,
    "bounds": 8550,
    "attacks": 3620,
    "quant": 9890,
    "search": 8830,
    "certificates": 1300,
    "train": 1500,
    "zoo": 900,
    "evaluation": 4630,
    "harness": 2210,
    "cluster": 940,
    "report": 1520,
    "cli": 2060,
    "modules": 1490,
}
"""Lines of each room; ``modules`` are the files that stand beside the rooms. A change that needs
more says why, in its commit."""
TABLES = {"lowers", "reads", "float_rule", "quantized_rule"}
"""Decorators that enter a function into a table of operators. There it is found by the operator's
name, which is why several tables may have a ``max_pool``."""
HEAVY = {
    "torch",
    "ray",
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


def inner_room_of(file: Path) -> str:
    """The second level: ``formats`` for ``quant/formats/qdq.py``."""
    return file.relative_to(SOURCE).parts[1].removesuffix(".py")


def cycle_in(graph: dict[str, set[str]]) -> list[str] | None:
    """A cycle as the nodes on it, the first one again at the end; None where there is none."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        found = None
        for other in sorted(graph.get(node, set())):
            found = found or walk(other, [*path, node])
        done.add(node)
        return found

    for node in sorted(graph):
        cycle = walk(node, [])
        if cycle is not None:
            return cycle
    return None


def public_names(tree: ast.Module) -> Iterator[str]:
    """Classes, functions, constants and aliases that a module defines for others."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            entered = {
                entry.func.id if isinstance(entry, ast.Call) else entry.id
                for entry in node.decorator_list
                if isinstance(entry.func if isinstance(entry, ast.Call) else entry, ast.Name)
            }
            names = [] if entered & TABLES else [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


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
    for name in imported_modules(ast.parse(file.read_text())):
        parts = name.split(".")
        if parts[0] != "bitcrown" or name == "bitcrown":
            continue
        if parts[1] != room:
            assert parts[1] in MAY_IMPORT[room], f"{room} imports {name}"
        elif room == "quant":
            inner, other = inner_room_of(file), parts[2] if len(parts) > 2 else "__init__"
            allowed = QUANT_MAY_IMPORT.get(inner, set(QUANT_MAY_IMPORT))
            assert other == inner or other in allowed, f"quant.{inner} imports {name}"


@pytest.mark.parametrize("table", [MAY_IMPORT, QUANT_MAY_IMPORT], ids=["rooms", "quant"])
def test_table_of_walls_is_in_order(table: dict[str, set[str]]) -> None:
    assert not set().union(*table.values()) - set(table), "a room that does not exist"
    assert cycle_in(table) is None


def test_every_room_has_its_row() -> None:
    assert {room_of(file) for file in FILES} == set(MAY_IMPORT)
    inner = {inner_room_of(file) for file in FILES if room_of(file) == "quant"}
    assert inner - {"__init__"} == set(QUANT_MAY_IMPORT)


def test_no_two_rooms_need_each_other() -> None:
    """Imports inside functions count too: they hide a cycle from the interpreter, not from a
    reader."""
    graph: dict[str, set[str]] = {room_of(file): set() for file in FILES}
    for file in FILES:
        for name in imported_modules(ast.parse(file.read_text())):
            parts = name.split(".")
            if parts[0] == "bitcrown":
                other = parts[1] if len(parts) > 1 and parts[1] in graph else "__init__"
                graph[room_of(file)] |= {other} - {room_of(file)}
    cycle = cycle_in(graph)
    assert cycle is None, " -> ".join(cycle or [])


def test_search_for_cycles_finds_one() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


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


def test_rooms_keep_their_budgets() -> None:
    lines = dict.fromkeys(MOST_LINES, 0)
    for file in FILES:
        room = room_of(file) if file.parent != SOURCE else "modules"
        lines[room] += len(file.read_text().splitlines())
    over = {room: count for room, count in lines.items() if count > MOST_LINES[room]}
    assert not over, f"lines beyond the budget: {over}"


def test_one_name_has_one_meaning() -> None:
    """A reader who has learned what ``Domains`` are must not meet others elsewhere. ``main`` is the
    name of entry points; functions of operator tables are known by their operator."""
    homes: dict[str, list[str]] = {}
    for file in FILES:
        for name in set(public_names(ast.parse(file.read_text()))) - {"main"}:
            homes.setdefault(name, []).append(str(file.relative_to(SOURCE)))
    twins = {name: places for name, places in sorted(homes.items()) if len(places) > 1}
    assert not twins, "\n".join(f"{name}: {' '.join(places)}" for name, places in twins.items())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_modules_and_packages_say_what_they_are(file: Path) -> None:
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    assert docstring is not None, "no docstring at its top"
    assert docstring.partition("\n\n")[0].rstrip()[-1] in ".?:", "its first paragraph has no end"


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
