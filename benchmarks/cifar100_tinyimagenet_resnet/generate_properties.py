"""Writes the properties of the ResNet benchmark: generate_properties.py SEED --cifar100 PATH
--tinyimagenet PATH.

The question of a property: may any image within eps = 1/255 of a test image (L-infinity, pixels
staying in [0, 1]) get another label? What is asked is fixed by four choices, made here exactly as
in the published set, so that SEED 0 and the published lists give the published 98 properties, bit
for bit:

* *Order.* Test images are shuffled once by numpy's legacy generator with seed 111; a selected list
  (``selected_list/``) names places ``sidx`` in that order. ``prop_idx`` in a file name is the place
  of number ``sidx`` in the permutation; the image itself is number ``permutation[sidx]`` of the
  data set.
* *Draw.* For each network the generator starts anew with SEED and keeps the first entries of a
  permutation of the list; properties are written in the order of the list.
* *Box.* ``((clip(x -+ eps, 0, 1) - mean) / std``, every step in float32, printed with the digits
  that give the same float32 back.
* *Form.* VNN-LIB 1.0, upper bound before lower, one OR over all other labels, ``>=``: a tie
  violates.

Data paths are read by bitcrown (CIFAR-100 in torchvision's order; TinyImageNet's validation images
in one folder a class, of which the centre 56 x 56 is taken), or are ``.npz`` files of single images
with their ``dataset_idx``. JPEG decoders differ: only the decoder of the authors gives their
TinyImageNet pixels.

``--own NAME:LIST:COUNT:SECONDS`` writes properties of another network, and may be repeated: LIST
then holds numbers of images, as ``bitcrown evaluate --select`` writes them.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitcrown.errors import BitcrownError, DataError
from bitcrown.evaluation.data.sets import centre_crop, read_images, unit_pixels

HERE = Path(__file__).resolve().parent
EPS = np.float32(1 / 255)
SHUFFLE_SEED = 111
IMAGES = 10000


@dataclass(frozen=True)
class Dataset:
    """``mean`` and ``std`` are what the networks expect their input to be normalised with; ``size``
    after cropping."""

    name: str
    classes: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CIFAR100 = Dataset("CIFAR100", 100, 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))
TINYIMAGENET = Dataset("TinyImageNet", 200, 56, (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))
DATASETS = {"cifar100": CIFAR100, "tinyimagenet": TINYIMAGENET}


@dataclass(frozen=True)
class Model:
    """One network of the benchmark: how many properties are drawn for it, and their time limit in
    seconds."""

    dataset: Dataset
    size: str
    count: int
    seconds: int

    @property
    def name(self) -> str:
        return f"{self.dataset.name}_resnet_{self.size}"


MODELS = (
    Model(CIFAR100, "small", 10, 240),
    Model(CIFAR100, "medium", 24, 200),
    Model(CIFAR100, "large", 24, 200),
    Model(CIFAR100, "super", 16, 300),
    Model(TINYIMAGENET, "medium", 24, 200),
)


@dataclass(frozen=True)
class Task:
    """One property: the file's name without suffix, the network, and which image of the data set it
    is about."""

    name: str
    network: str
    dataset: Dataset
    image: int
    seconds: int


def drawn(entries: Sequence[int], count: int, seed: int) -> list[int]:
    """``count`` of ``entries`` in their order; the legacy generator starts anew for every
    network."""
    if count > len(entries):
        raise SystemExit(
            f"{count} properties were asked for, but the list has {len(entries)} entries"
        )
    chosen = np.random.RandomState(seed).permutation(len(entries))[:count]
    return [entries[place] for place in sorted(chosen.tolist())]


def read_list(path: Path) -> list[int]:
    try:
        return [int(line) for line in path.read_text(encoding="ascii").split()]
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} is no list of whole numbers: {error}") from error


def published_tasks(seed: int, models: Sequence[Model], lists: Path) -> list[Task]:
    """The properties of the benchmark's networks, in the order of its CSV."""
    permutation = np.random.RandomState(SHUFFLE_SEED).permutation(IMAGES)
    inverse = np.argsort(permutation)
    tasks = []
    for model in models:
        for sidx in drawn(read_list(lists / f"{model.name}_list.txt"), model.count, seed):
            name = f"{model.name}_prop_idx_{inverse[sidx]}_sidx_{sidx}_eps_0.0039"
            tasks.append(
                Task(name, model.name, model.dataset, int(permutation[sidx]), model.seconds)
            )
    return tasks


def own_tasks(seed: int, words: str, dataset: Dataset) -> list[Task]:
    """``NAME:LIST:COUNT:SECONDS``."""
    name, _, rest = words.partition(":")
    path, _, numbers = rest.partition(":")
    count, _, seconds = numbers.partition(":")
    if not (name and path and count.isdigit() and seconds.isdigit()):
        raise SystemExit("--own needs NAME:LIST:COUNT:SECONDS")
    images = drawn(read_list(Path(path)), int(count), seed)
    return [
        Task(f"{name}_idx_{image}_eps_0.0039", name, dataset, image, int(seconds))
        for image in images
    ]


class Images:
    """Images ``[C, H, W]`` (float32 in [0, 1]) and labels by their number in the data set."""

    def __init__(self, path: Path, dataset: Dataset) -> None:
        self.path = path
        numbers: np.ndarray | None = None
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                if "dataset_idx" in file:
                    numbers, images = file["dataset_idx"], unit_pixels(file["x"])
                    labels = file["label"] if "label" in file else file["y"]
        if numbers is None:
            found = read_images(path)
            images, labels, numbers = found.images, found.labels, np.arange(len(found))
        if images.shape[1] != 3 and images.shape[-1] == 3:
            images = images.transpose(0, 3, 1, 2)
        self.images = centre_crop(images, dataset.size)
        self.labels = labels
        self.places = {int(number): place for place, number in enumerate(numbers)}

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        if number not in self.places:
            raise DataError(f"{self.path} lacks image {number}, which a property is about")
        place = self.places[number]
        return self.images[place], int(self.labels[place])


def input_box(image: np.ndarray, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds ``[C, H, W]`` of the network's input, float32: clipped first, then
    normalised."""
    mean, std = (
        np.array(values, dtype=np.float32)[:, None, None] for values in (dataset.mean, dataset.std)
    )
    lower, upper = (
        np.clip(moved, np.float32(0), np.float32(1)) for moved in (image - EPS, image + EPS)
    )
    return (lower - mean) / std, (upper - mean) / std


def property_text(image: np.ndarray, label: int, dataset: Dataset) -> str:
    """The VNN-LIB file; its first line says CIFAR100 whatever the data set, as the published files
    do."""
    lower, upper = input_box(image, dataset)
    lines = [f"; CIFAR100 property with label: {label}.", ""]
    lines += [f"(declare-const X_{i} Real)" for i in range(lower.size)]
    lines += ["", ""]
    lines += [f"(declare-const Y_{i} Real)" for i in range(dataset.classes)]
    lines += ["", "; Input constraints:"]
    for i, (low, high) in enumerate(
        zip(lower.ravel().tolist(), upper.ravel().tolist(), strict=True)
    ):
        lines += [f"(assert (<= X_{i} {high!r}))", f"(assert (>= X_{i} {low!r}))", ""]
    lines += ["", "; Output constraints:", "(assert (or"]
    lines += [f"\t(and (>= Y_{i} Y_{label}))" for i in range(dataset.classes) if i != label]
    return "\n".join([*lines, "))", ""])


def write(tasks: Sequence[Task], images: dict[str, Images], folder: Path, networks: Path) -> None:
    """Properties into ``folder/generated_vnnlib``; older ones there are removed. Two CSV files
    beside it.

    ``cifar100_tinyimagenet_instances.csv`` has bare names, as published; ``instances.csv`` the
    paths of the files.
    """
    place = folder / "generated_vnnlib"
    place.mkdir(parents=True, exist_ok=True)
    for old in place.glob("*.vnnlib"):
        old.unlink()
    bare, paths = [], []
    for task in tasks:
        image, label = images[task.dataset.name][task.image]
        file = place / f"{task.name}.vnnlib"
        file.write_text(property_text(image, label, task.dataset), encoding="ascii", newline="\n")
        network = networks / f"{task.network}.onnx"
        bare.append((network.name, file.name, task.seconds))
        paths.append((network.as_posix(), f"{place.name}/{file.name}", task.seconds))
    for name, rows in (("cifar100_tinyimagenet_instances.csv", bare), ("instances.csv", paths)):
        with (folder / name).open("w", encoding="ascii", newline="") as table:
            csv.writer(table, lineterminator="\n").writerows(rows)
    missing = sorted(
        {
            path
            for path, _, _ in paths
            if not any((folder / (path + end)).is_file() for end in ("", ".gz"))
        }
    )
    for path in missing:
        print(f"note: the network {folder / path} is not there", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seed", type=int, help="seed of the draw; 0 gives the published properties")
    parser.add_argument("--cifar100", type=Path, metavar="PATH", help="CIFAR-100 test images")
    parser.add_argument(
        "--tinyimagenet", type=Path, metavar="PATH", help="TinyImageNet validation images"
    )
    parser.add_argument(
        "--lists", type=Path, default=HERE / "selected_list", help="folder of the selected lists"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="networks to write for (repeat; default: all)",
    )
    parser.add_argument(
        "--networks", type=Path, default=Path("onnx"), help="where networks lie, seen from --out"
    )
    parser.add_argument(
        "--own",
        action="append",
        metavar="NAME:LIST:COUNT:SECONDS",
        help="another network, instead of the benchmark's",
    )
    parser.add_argument("--dataset", choices=DATASETS, default="cifar100", help="data set of --own")
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE,
        metavar="DIR",
        help="where to write (default: this folder)",
    )
    options = parser.parse_args()
    models = [model for model in MODELS if options.only is None or model.name in options.only]
    if options.only and len(models) != len(options.only):
        parser.error(f"--only takes {', '.join(model.name for model in MODELS)}")
    if options.own:
        dataset = DATASETS[options.dataset]
        tasks = [task for words in options.own for task in own_tasks(options.seed, words, dataset)]
    else:
        tasks = published_tasks(options.seed, models, options.lists)
    try:
        images = {}
        for option, dataset in DATASETS.items():
            if any(task.dataset is dataset for task in tasks):
                path = getattr(options, option)
                if path is None:
                    parser.error(f"these properties need --{option} PATH")
                images[dataset.name] = Images(path, dataset)
        write(tasks, images, options.out, options.networks)
    except BitcrownError as error:
        raise SystemExit(f"generate_properties.py: {error}") from error
    print(f"{len(tasks)} properties written to {options.out / 'generated_vnnlib'}")


if __name__ == "__main__":
    main()
