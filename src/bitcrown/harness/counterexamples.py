"""Counterexamples of a bench, kept beside its records as the competition keeps them:
``CATEGORY/NETWORK_PROPERTY.counterexample.gz``, the results file without its first line."""

from __future__ import annotations

import gzip
from pathlib import Path, PurePosixPath

from bitcrown.errors import BitcrownError
from bitcrown.files import part_beside, write_whole
from bitcrown.harness.instance import Instance
from bitcrown.spec.network_field import parse_network

COUNTEREXAMPLES = "counterexamples"
_MOST_BYTES = 256 << 20
_LONGEST_STEM = 200
"""Letters; a file's name has at most 255 bytes."""


def keep_counterexample(out: Path, category: str, instance: Instance, text: str) -> str:
    """Write what a results file says after ``sat``; where, relative to ``out``.

    Raises ``ResourceError``.
    """
    place = f"{COUNTEREXAMPLES}/{category}/{_stem(instance)}.counterexample.gz"
    body = text.partition("\n")[2].encode()
    write_whole(out / place, gzip.compress(body, mtime=0))
    return place


def _stem(instance: Instance) -> str:
    """Names of the networks (2026) or the stem of the one, then that of the property, which may
    stand in a folder of its own (safenlp's medical and ruarobot)."""
    pairs = parse_network(instance.network)
    path = PurePosixPath(instance.vnnlib)
    folder = [part for part in path.parts[:-1] if part not in ("vnnlib", "..", "/")][-1:]
    networks = [name or PurePosixPath(file).stem for name, file in pairs]
    stems = [name.removesuffix(".onnx") for name in networks]
    words = [*folder, *stems, path.name.removesuffix(".gz").removesuffix(".vnnlib")]
    return "_".join(words).replace("/", "_")[-_LONGEST_STEM:]


def read_counterexample(out: Path, place: str) -> str | None:
    """The text of a counterexample that a record in ``out`` names; None where there is none (any
    more), or where the name leads out of the folder."""
    try:
        return gzip.decompress(part_beside(out, place, 0, None, _MOST_BYTES)).decode()
    except (BitcrownError, OSError, ValueError, EOFError):
        return None
