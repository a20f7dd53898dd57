"""Fifteen models as their own tools write them, each asked one question: an answer, or a sentence?

own_models.py FOLDER [--make] [--ask] [--eps E] [--cpu-seconds S] [--only NAME ...]

``--make`` trains small networks on scikit-learn's digits (8 x 8, values in [0, 1]) and writes them
with both exporters of torch, skl2onnx and onnxruntime's quantizer, each with its defaults, and a
property beside it: around the first image that the file itself classifies rightly, within ``eps``,
no other label. It needs ``onnxscript``, ``scikit-learn`` and ``skl2onnx``; a file that its tool
cannot write is reported and left out. ``--ask`` verifies every pair and prints a Markdown table.
Without either, both are done.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bitcrown import BitcrownError, load, verify
from bitcrown.model.file import NetworkFile
from bitcrown.model.one_output import with_one_output
from bitcrown.provenance import commit, version
from bitcrown.spec.robustness import decimal_ends, other_label_query, vnnlib_text

STEPS = 150
ADVISED = {"sklearn_mlp": "probabilities", "sklearn_zipmap": "output_probability"}
"""What the refusals of these say to choose with ``--output``; asked once more with that."""
NAMES = {
    **{
        f"{kind}_{exporter}": f"torch {title}, {words}"
        for kind, title in (
            ("mlp", "MLP"),
            ("cnn", "CNN"),
            ("resnet", "ResNet: batch norm, max pooling"),
            ("transformer", "transformer block"),
            ("lstm", "LSTM"),
        )
        for exporter, words in (
            ("default", "`torch.onnx.export` as it is"),
            ("traced", "`dynamo=False`"),
        )
    },
    "float16": "torch MLP in float16",
    "int8_static": "CNN, `quantize_static`",
    "int8_dynamic": "MLP, `quantize_dynamic`",
    "sklearn_mlp": "scikit-learn `MLPClassifier`, ZipMap off",
    "sklearn_zipmap": "scikit-learn scaler and `MLPClassifier`, skl2onnx as it is (ZipMap)",
}


def torch_networks() -> dict[str, Any]:
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.BatchNorm2d(8),
            )

        def forward(self, x: Any) -> Any:
            return nn.functional.relu(x + self.inner(x))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(8, 16)
            self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.block(self.embed(x[:, 0])).mean(dim=1))

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 16, batch_first=True)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x[:, 0])[0][:, -1])

    convolution = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return {
        "mlp": nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        "cnn": nn.Sequential(
            *convolution,
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 10),
        ),
        "resnet": nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            Block(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        ),
        "transformer": Transformer(),
        "lstm": Recurrent(),
    }


def trained(network: Any, images: np.ndarray, labels: np.ndarray) -> Any:
    import torch

    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    order = np.random.default_rng(0)
    for _ in range(STEPS):
        rows = order.integers(0, len(images), 64)
        optimiser.zero_grad()
        outputs = network(torch.from_numpy(images[rows]))
        loss = torch.nn.functional.cross_entropy(outputs, torch.from_numpy(labels[rows]))
        torch.autograd.backward(loss)
        optimiser.step()
    return network.eval()


def make(folder: Path, eps: Fraction, only: list[str]) -> None:
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    torch.manual_seed(0)
    networks = {
        name: trained(network, images, labels) for name, network in torch_networks().items()
    }
    writers: dict[str, Callable[[Path], object]] = {}
    example = torch.from_numpy(images[:1])
    for name, network in networks.items():
        writers[f"{name}_default"] = partial(torch.onnx.export, network, (example,))
        writers[f"{name}_traced"] = partial(torch.onnx.export, network, (example,), dynamo=False)
    writers["float16"] = lambda path: torch.onnx.export(
        networks["mlp"].half(), (example.half(),), path, dynamo=False
    )
    writers["int8_static"] = lambda path: quantized(folder / "cnn_traced.onnx", path, images)
    writers["int8_dynamic"] = lambda path: quantized(folder / "mlp_traced.onnx", path, None)
    for name, is_bare in (("sklearn_mlp", True), ("sklearn_zipmap", False)):
        writers[name] = partial(classical, images, labels, is_bare)
    # (Half precision last: it changes the network in place.)
    for name in sorted(writers, key=lambda name: name == "float16"):
        path = folder / f"{name}.onnx"
        if only and name not in only:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                writers[name](path)
            ask_around(path, images, labels, eps)
            print(f"{name}: written", file=sys.stderr)
        except Exception as error:  # noqa: BLE001 - whatever another tool raises
            path.unlink(missing_ok=True)
            print(f"{name}: {type(error).__name__}: {error}"[:300], file=sys.stderr)


def quantized(source: Path, path: Path, images: np.ndarray | None) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static

    if images is None:
        quantize_dynamic(source, path)
        return

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, images: np.ndarray) -> None:
            self.rest = iter(images[:50])

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rest, None)
            return None if image is None else {input_of(source).name: image[None]}

    quantize_static(source, path, Reader(images))


def classical(images: np.ndarray, labels: np.ndarray, is_bare: bool, path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    flat = images.reshape(len(images), -1)
    network = MLPClassifier((16,), max_iter=60, random_state=0)
    model = network if is_bare else make_pipeline(StandardScaler(), network)
    model.fit(flat, labels)
    options = {"zipmap": False} if is_bare else None
    path.write_bytes(to_onnx(model, flat[:1], options=options).SerializeToString())


def session_of(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def input_of(path: Path) -> Any:
    return session_of(path).get_inputs()[0]


def ask_around(path: Path, images: np.ndarray, labels: np.ndarray, eps: Fraction) -> None:
    """Write the property of the first image that the file classifies rightly."""
    session = session_of(path)
    slot = session.get_inputs()[0]
    shape = [extent if isinstance(extent, int) else 1 for extent in slot.shape]
    kind = np.float16 if "float16" in slot.type else np.float32
    for image, label in zip(images, labels, strict=True):
        outputs = session.run(None, {slot.name: image.reshape(shape).astype(kind)})
        last = outputs[-1]
        scores = list(last[0].values()) if isinstance(last, list) else last.ravel()
        if int(np.argmax(scores)) == label:
            break
    values = [Fraction(float(value)) for value in image.ravel()]
    lower, upper = decimal_ends(
        [max(value - eps, Fraction(0)) for value in values],
        [min(value + eps, Fraction(1)) for value in values],
    )
    query = other_label_query(lower, upper, int(label), len(scores))
    text = vnnlib_text(query, f"label {label} within {eps} of an image of scikit-learn's digits")
    path.with_suffix(".vnnlib").write_text(text)


def ask(folder: Path, cpu_seconds: float, only: list[str]) -> None:
    print("| model | answer | seconds (CPU) | decided by, or what is said |\n|---|---|---|---|")
    for name, title in NAMES.items():
        path = folder / f"{name}.onnx"
        if only and name not in only:
            continue
        if not path.exists():
            print(f"| {title} | not written | | its tool failed, or is not installed |")
            continue
        print(f"| {title} | {' | '.join(answer(path, path, cpu_seconds))} |", flush=True)
        if name in ADVISED:
            chosen = path.with_name(f"{name}-chosen.onnx")
            chosen.write_bytes(with_one_output(NetworkFile(path), ADVISED[name]))
            found = " | ".join(answer(chosen, path, cpu_seconds))
            print(f"| the same with `--output {ADVISED[name]}` | {found} |", flush=True)
    print(
        f"\nbitcrown {version()}, commit {commit()[:12]}; at most {cpu_seconds:g} CPU seconds each."
    )


def answer(path: Path, asked: Path, cpu_seconds: float) -> tuple[str, str, str]:
    """The verdict, CPU seconds of reading and deciding, and what decided or stands in the way."""
    started = time.process_time()
    try:
        verdict = verify(load(path, asked.with_suffix(".vnnlib")), cpu_seconds=cpu_seconds)
        word, said = str(verdict.status), verdict.decided_by or verdict.detail
    except BitcrownError as error:
        word, said = "refused", str(error)
    used = time.process_time() - started
    return word, f"{used:.1f}", said.replace("|", "/").replace(f"{path.parent}/", "")


def main() -> int:
    parser = argparse.ArgumentParser(description="models of other tools, asked", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where models are")
    parser.add_argument("--make", action="store_true", help="only write the models")
    parser.add_argument("--ask", action="store_true", help="only ask about those that are there")
    parser.add_argument("--eps", type=Fraction, default=Fraction(1, 50), metavar="E")
    parser.add_argument("--cpu-seconds", type=float, default=30.0, metavar="S")
    parser.add_argument("--only", nargs="+", default=[], choices=NAMES, metavar="NAME")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.make or not options.ask:
        make(options.folder, options.eps, options.only)
    if options.ask or not options.make:
        ask(options.folder, options.cpu_seconds, options.only)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
