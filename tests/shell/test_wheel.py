"""What ``pip install`` gives: a wheel with everything that the package reads, and a command that
works without the repository."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

SOURCE = ROOT / "src" / "bitcrown"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PATIENCE = 600
"""Seconds after which a step hangs."""
IMPORTED_AS = {
    "PIL": "pillow",
    "google_crc32c": "google-crc32c",
    "google": "protobuf",
}
"""Names of modules that are not those of their packages."""
WHERE_THERE = {"bitwuzla"}
"""Asked for by name, used by those who have it."""


def names_of(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in requirements}


def foreign_imports() -> dict[str, Path]:
    """Top-level modules that the package imports and neither Python nor itself brings."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "bitcrown":
                    found.setdefault(IMPORTED_AS.get(top, top), file)
    return found


def test_every_import_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = names_of(PROJECT["dependencies"]).union(
        *(names_of(rows) for extra, rows in extras.items() if extra != "dev")
    )
    assert {"torch", "numpy", "onnx"} <= set(foreign_imports())
    missing = {name: file for name, file in foreign_imports().items() if name not in declared}
    assert set(missing) == WHERE_THERE, missing


def test_extras_are_there() -> None:
    assert {"images", "report", "smt", "zoo", "dev"} <= set(PROJECT["optional-dependencies"])


def test_syntax_and_names_of_the_oldest_python() -> None:
    """Every file parses as 3.11 does, the least that is required."""
    assert PROJECT["requires-python"] == ">=3.11"
    for file in SOURCE.rglob("*.py"):
        ast.parse(file.read_text(), feature_version=(3, 11))


def run(*words: str | Path, cwd: Path) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=clean | {"BITCROWN_RECORD": ""},
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the repository."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", copy / "src", ignore=ignored)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", "dist", ".", cwd=copy)
    (found,) = (copy / "dist").glob("bitcrown-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a new environment with the wheel; dependencies are this interpreter's."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    run(*pip, "--force-reinstall", wheel, cwd=folder)
    return folder / "bin"


@pytest.mark.slow
def test_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(file.relative_to(ROOT / "src"))
        for file in SOURCE.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert any(name.endswith(".jinja") for name in wanted)
    assert wanted <= inside, wanted - inside


@pytest.mark.slow
def test_installed_command_works_in_another_folder(installed: Path, tmp_path: Path) -> None:
    python, bitcrown = installed / "python", installed / "bitcrown"
    where = run(python, "-c", "import bitcrown; print(bitcrown.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    version = run(python, "-c", "import bitcrown; print(bitcrown.__version__)", cwd=tmp_path)
    assert version.strip() == PROJECT["version"]
    said = run(bitcrown, "--version", cwd=tmp_path)
    assert said.startswith(f"bitcrown {PROJECT['version']} ")
    assert run(python, "-m", "bitcrown", "--version", cwd=tmp_path) == said
    suite = ROOT / "benchmarks" / "quickstart"
    for kind, name in (("onnx", "cartpole.onnx"), ("vnnlib", "cartpole_case_unsafe_3.vnnlib")):
        shutil.copy(suite / kind / name, tmp_path)
    words = ["verify", "cartpole.onnx", "cartpole_case_unsafe_3.vnnlib", "--timeout", "120"]
    assert run(bitcrown, *words, cwd=tmp_path).startswith("unsat")
    # There are no scripts here; a suite runs all the same.
    (tmp_path / "instances.csv").write_text("cartpole.onnx,cartpole_case_unsafe_3.vnnlib,120\n")
    (tmp_path / "expected.csv").write_text(
        "onnx,vnnlib,expected\ncartpole.onnx,cartpole_case_unsafe_3.vnnlib,unsat\n"
    )
    assert "1/1" in run(bitcrown, "bench", ".", "--out", "results", "--need-all", cwd=tmp_path)
