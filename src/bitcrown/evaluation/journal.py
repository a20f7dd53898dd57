"""What is known about each image so far, on disk, so that an interrupted evaluation goes on where
it stopped.

A folder holds ``setup.json`` (what is evaluated: another network, data set or setting is refused),
``images.jsonl`` (one line for each finding about one image, only ever appended) and
``adversarial/`` (one float32 array for each broken image, written before the line that names it). A
suite of attacks keeps its state there too (``suite-*.npz``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitcrown.archives import read_array
from bitcrown.errors import DataError, ResourceError, SettingsError
from bitcrown.files import append_record, digest, read_records, replacing, write_whole

CLEAN, ATTACK, BOUNDS = "clean", "attack", "bounds"
_STAGES = (CLEAN, ATTACK, BOUNDS)


def pixels_digest(image: np.ndarray) -> str:
    return digest(np.ascontiguousarray(image).tobytes())[:16]


class Journal:
    """Findings by stage and image number; ``folder`` None keeps them in memory only."""

    def __init__(self, folder: Path | None, setup: Mapping[str, Any], fresh: bool = False) -> None:
        self.folder = folder
        self.findings: dict[str, dict[int, dict[str, Any]]] = {stage: {} for stage in _STAGES}
        self.adversarial: dict[int, np.ndarray] = {}
        if folder is None:
            return
        if fresh:
            self._forget(folder)
        self._open(folder, json.loads(json.dumps(dict(setup))))

    def _forget(self, folder: Path) -> None:
        for file in [
            folder / "setup.json",
            folder / "images.jsonl",
            *folder.glob("adversarial/*.npy"),
            *folder.glob("suite-*.npz"),
        ]:
            file.unlink(missing_ok=True)

    def _open(self, folder: Path, setup: dict[str, Any]) -> None:
        place = folder / "setup.json"
        if place.is_file():
            try:
                found = json.loads(place.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise ResourceError(f"{place} cannot be read: {error}") from error
            if not isinstance(found, dict):
                raise ResourceError(
                    f"{place} is not the setup of an evaluation; choose another --out, or --fresh"
                )
            names = sorted({*found, *setup})
            other = [name for name in names if found.get(name) != setup.get(name)]
            if other:
                raise SettingsError(
                    f"{folder} holds an evaluation with another {', '.join(other)}; choose "
                    "another --out, or --fresh"
                )
        else:
            write_whole(place, json.dumps(setup, indent=1) + "\n")
        if (folder / "images.jsonl").is_file():
            for line in read_records(folder / "images.jsonl"):
                if line.get("stage") in _STAGES and isinstance(line.get("image"), int):
                    self.findings[line["stage"]][line["image"]] = line

    def get(self, stage: str, image: int) -> dict[str, Any] | None:
        return self.findings[stage].get(image)

    def missing(self, stage: str, images: Iterable[int]) -> list[int]:
        return [image for image in images if image not in self.findings[stage]]

    def add(self, stage: str, image: int, finding: Mapping[str, Any]) -> None:
        line = {"stage": stage, "image": image, **finding}
        if self.folder is not None:
            append_record(self.folder / "images.jsonl", line)
        self.findings[stage][image] = line

    def store(self, image: int, pixels: np.ndarray) -> None:
        """Keep the adversarial ``pixels [C, H, W]`` of an image."""
        self.adversarial[image] = pixels
        if self.folder is None:
            return
        try:
            with replacing(self._pixels_file(image)) as file:
                np.save(file, pixels)
        except OSError as error:
            raise ResourceError(
                f"the adversarial image {self._pixels_file(image)} cannot be written: {error}"
            ) from error

    def stored(self, image: int) -> np.ndarray | None:
        """The adversarial pixels kept for an image, or None."""
        if (
            image not in self.adversarial
            and self.folder is not None
            and self._pixels_file(image).is_file()
        ):
            try:
                self.adversarial[image] = read_array(self._pixels_file(image))
            except DataError:
                return None
        return self.adversarial.get(image)

    def _pixels_file(self, image: int) -> Path:
        assert self.folder is not None
        return self.folder / "adversarial" / f"{image:05d}.npy"
