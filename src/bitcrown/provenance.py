"""What a record says about the program and the machine: version, commit, processor, cores, memory,
GPU.

Read from files, without calling git or a driver's tool, because it is read once an instance.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
"""The tool's directory where bitcrown runs from its repository; elsewhere just a folder without
``.git``."""
_PACKAGES = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "highspy",
    "PyBoolector",
    "psutil",
)


def version() -> str:
    """Version in the source tree's ``pyproject.toml``, else of the installed package."""
    for line in _text(ROOT / "pyproject.toml").splitlines():
        if line.startswith("version = "):
            return line.partition("=")[2].strip().strip('"')
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("bitcrown")
    except PackageNotFoundError:
        return "0+unknown"


def dependency_versions() -> dict[str, str]:
    """Installed versions of the packages that can change a verdict; nothing is imported."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    found = {}
    for name in _PACKAGES:
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    return found


def commit(root: Path = ROOT) -> str:
    """Commit of the source tree, read from ``.git``; ``""`` if there is none."""
    # In a linked work tree .git is a file that names a folder of the main repository; HEAD is in
    # that folder, branches are in the common one. A branch is a file, or a line of packed-refs.
    git = root / ".git"
    pointer = _text(git)
    if pointer.startswith("gitdir:"):
        git = (root / pointer.removeprefix("gitdir:").strip()).resolve()
    head = _text(git / "HEAD")
    if not head:
        return ""
    if not head.startswith("ref:"):
        return head
    name = head.removeprefix("ref:").strip()
    common = (git / (_text(git / "commondir") or ".")).resolve()
    for folder in (git, common):
        if value := _text(folder / name):
            return value
        for line in _text(folder / "packed-refs").splitlines():
            if line.endswith(" " + name):
                return line.split()[0]
    return ""


def machine() -> dict[str, Any]:
    """Processor model, usable cores, memory in GiB, GPU names."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1
        ),
        "gpu": [
            _field(str(file), "Model")
            for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        ],
        "python": platform.python_version(),
    }


def _field(path: str, name: str) -> str:
    for line in _text(Path(path)).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
