"""The readers that ``parsers`` tries, sound little files for each, and how to damage a format below
its checksums.

Networks are small enough that most bytes matter. ``INSIDE`` takes a format apart (gzip, zip
members, protobuf fields, a table with checksums), damages a part and packs it again, so that damage
gets past the first check.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import pickle
import random
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sound_networks import (
    ROOT,
    Damage,
    dense,
    float_models,
    floats,
    odd_models,
    onnx_inside,
    quantized_models,
)

from bitcrown.errors import PropertyError

PROPERTY = """(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(assert (>= X_0 -0.5))
(assert (<= X_0 0.25))
(assert (>= X_1 0))
(assert (<= X_1 1e-1))
(assert (or (and (<= Y_0 Y_1) (>= Y_1 1.5)) (and (>= Y_0 20.0))))
"""
PROPERTY_1 = """(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(assert (and (>= X_0 -0.5) (<= X_0 0.25) (>= X_1 0) (<= X_1 0.1)))
(assert (>= Y_0 2.23))
"""
PROPERTY_2 = """(vnnlib-version <2.0>)
(declare-network N
    (declare-input X float32 [1,2])
    (declare-output Y float32 [1,2]))
(assert (and (<= X[0,0] 0.5) (>= X[0,0] -0.5) (<= X[0,1] 1.0) (>= X[0,1] 0.0)))
(assert (or (> (+ Y[0,0] (* 2.0 Y[0,1])) 30.0) (!= Y[0,0] Y[0,1])))
"""


def gzip_inside(data: bytes, rng: random.Random, damage: Damage) -> bytes:
    return gzip.compress(
        damage(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data, rng), mtime=0
    )


def zip_inside(data: bytes, rng: random.Random, damage: Damage) -> bytes:
    """One member of the archive damaged, or its name, with right checksums."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(written, "w") as out:
        names = archive.namelist()
        chosen = rng.choice(names)
        for name in names:
            content = archive.read(name)
            if name == chosen and rng.random() < 0.9:
                content = damage(content, rng)
            elif name == chosen:
                name = rng.choice([*names, name + "x", "x", "a/b.npy", ""]) or "empty"
            if out.namelist().count(name) == 0:
                out.writestr(name, content, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return written.getvalue()


def json_inside(data: bytes, rng: random.Random, damage: Damage) -> bytes:
    """One value of the JSON lines becomes another type or number."""
    lines = data.decode().splitlines()
    place = rng.randrange(len(lines))
    content = json.loads(lines[place])
    key = rng.choice(sorted(content))
    content[key] = rng.choice(
        [None, True, -1, 1.5, 10**400, float("nan"), "", "x", [], {}, [1], {"a": []}, "9" * 50]
    )
    if rng.random() < 0.2:
        del content[key]
    lines[place] = json.dumps(content)
    return ("\n".join(lines) + "\n").encode()


# ---- Sound files


def _npy(array: np.ndarray) -> bytes:
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue()


def npz(**arrays: Any) -> bytes:
    written = io.BytesIO()
    np.savez_compressed(written, **arrays)
    return written.getvalue()


def _levels(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


def _image_archives() -> list[bytes]:
    labels = np.array([0, 1, 2])
    return [
        npz(images=_levels(3, 4, 4), labels=labels),
        npz(x_test=_levels(3, 4, 4, 3), y_test=labels[:, None]),
    ]


def _idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + b"".join(n.to_bytes(4, "big") for n in array.shape)
        + array.tobytes()
    )


def _pickles() -> list[bytes]:
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2], b"batch_label": b"x"}
    return [pickle.dumps(batch, protocol) for protocol in (2, 3, 4)]


def _h5() -> list[bytes]:
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = np.array(["a", "flat"], dtype="S")
            file.create_group("flat").attrs["weight_names"] = np.array([], dtype=np.float64)
            group = file.create_group("a")
            group.attrs["weight_names"] = ["a/kernel:0", "a/bias:0"]
            group["a/kernel:0"], group["a/bias:0"] = floats(3, 2), floats(2)
        return [path.read_bytes()]


def _train_checkpoint() -> list[bytes]:
    from bitcrown.train.architectures import Architecture, Stage
    from bitcrown.train.checkpoint import save_checkpoint
    from bitcrown.train.images import Normalisation
    from bitcrown.train.settings import TrainSettings
    from bitcrown.train.training import new_run

    tiny = Architecture("tiny", (1, 4, 4), 2, 2, 1, (Stage(2, 1, 1),), 2, 2)
    settings = TrainSettings.from_mapping(
        {"eps": 0.1, "epochs": 2, "padding": 0, "flip": "off", "device": "cpu"}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pt"
        save_checkpoint(new_run(tiny, settings, Normalisation((0.4,), (0.3,))), path)
        return [path.read_bytes()]


def _picture() -> bytes:
    from bitcrown.evaluation.report.png import png

    return png(_levels(4, 400, 1))


def _standing() -> Any:
    import torch

    from bitcrown.attacks.images.progress import Standing

    return Standing.fresh(torch.zeros(2, 1, 2, 2), 3)


def _attack_state() -> list[bytes]:
    import torch

    from bitcrown.attacks.images.progress import save_state

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "suite.npz"
        save_state(path, _standing(), "question", torch.zeros(2, 3))
        return [path.read_bytes()]


def _record() -> dict[str, Any]:
    return {
        "format": 1, "version": "0.1", "commit": "c", "settings": {"device": "cpu"}, "seed": 0,
        "machine": {"cpu": "x"},
        "category": "c", "network": "n", "vnnlib": "v", "timeout": 3.0, "result": "unsat",
        "expected": "sat",
        "wall_s": 1.5, "peak_mib": 100, "phases": {"a": 1.0}, "counters": {}, "key": ["a", 1],
    }  # fmt: skip


# ---- Readers


def _put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _sound(folder: Path) -> tuple[str, Path]:
    """A network and a property that fit each other."""
    return str(_put(folder, "net.onnx", dense())), _put(folder, "sound.vnnlib", PROPERTY.encode())


def _onnx(data: bytes, folder: Path) -> None:
    from bitcrown.model.describe import describe
    from bitcrown.model.onnx_reader import read_graph

    path = _put(folder, "net.onnx", data)
    describe(read_graph(path))


def _quantized(data: bytes, folder: Path) -> None:
    from bitcrown.model.file import NetworkFile
    from bitcrown.quant.formats.onnx_file import read_onnx

    path = _put(folder, "net.onnx", data)
    if NetworkFile(path).is_quantized:
        read_onnx(path)


def _verified(data: bytes, folder: Path) -> None:
    """The whole way of a network of two inputs and two outputs, or one."""
    from bitcrown.api import load, verify

    path = _put(folder, "net.onnx", data)
    try:
        verify(load(path, _put(folder, "two.vnnlib", PROPERTY.encode())), cpu_seconds=2.0)
    except PropertyError:
        verify(load(path, _put(folder, "one.vnnlib", PROPERTY_1.encode())), cpu_seconds=2.0)


def _asked(data: bytes, folder: Path) -> None:
    """The whole way of a property."""
    from bitcrown.api import load, verify
    from bitcrown.spec.words import property_in_words

    problem = load(_put(folder, "net.onnx", dense()), _put(folder, "p.vnnlib", data))
    property_in_words(problem)
    verify(problem, cpu_seconds=2.0)


def _asked_in_integers(data: bytes, folder: Path) -> None:
    from bitcrown.api import load, verify

    model = quantized_models()[0] if len(data) % 2 else odd_models()[2]
    verify(load(_put(folder, "net.onnx", model), _put(folder, "p.vnnlib", data)), cpu_seconds=2.0)


def _property(data: bytes, folder: Path) -> None:
    from bitcrown.spec.normalise import problem_from_query
    from bitcrown.spec.reader import read_query

    path = _put(folder, "p.vnnlib", data)
    query = read_query(path)
    problem_from_query(query, {network.name: path for network in query.networks})


def _images(name: str, **beside: bytes) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        from bitcrown.evaluation.data.sets import read_images

        for other, content in beside.items():
            _put(folder, other.replace("__", "-").replace("_dot_", "."), content)
        read_images(_put(folder, name, data))

    return read


def _labels(data: bytes, folder: Path) -> None:
    from bitcrown.evaluation.data.sets import read_images

    _put(folder, "sheet.labels.npy", data)
    read_images(_put(folder, "sheet.png", _picture()))


def _result(data: bytes, folder: Path) -> None:
    from bitcrown.check.result_file import check_result

    network, prop = _sound(folder)
    check_result(_put(folder, "out.txt", data), network, prop)


def _result_2(data: bytes, folder: Path) -> None:
    from bitcrown.check.result_file import check_result

    network, _ = _sound(folder)
    check_result(
        _put(folder, "out.txt", data), network, _put(folder, "two.vnnlib", PROPERTY_2.encode())
    )


def _records(data: bytes, folder: Path) -> None:
    from bitcrown.cli.main import main

    page = str(folder / "page.html")
    code = main(["report", str(_put(folder, "records.jsonl", data)), "--html", page])
    assert code in (0, 1, 2)


def _instances(data: bytes, folder: Path) -> None:
    from bitcrown.harness.instance import find_suites, read_instances

    _put(folder, "instances.csv", data)
    for suite in find_suites(folder):
        read_instances(suite.file)


def _expected(data: bytes, folder: Path) -> None:
    from bitcrown.harness.instance import read_expected

    read_expected(_put(folder, "expected.csv", data))


def _weights(data: bytes, folder: Path) -> None:
    from bitcrown.quant.formats.fixed_point import read_h5

    read_h5(_put(folder, "a.h5", data))


def _bundle(data: bytes, folder: Path) -> None:
    from bitcrown.zoo.checkpoint import open_checkpoint

    tiny = ROOT / "tests/data/zoo/tiny"
    _put(
        folder, "tiny.data-00000-of-00001", tiny.with_name("tiny.data-00000-of-00001").read_bytes()
    )
    _put(folder, "tiny.index", data)
    checkpoint = open_checkpoint(folder / "tiny")
    for name in checkpoint.entries:
        checkpoint.read(name)


def _zoo_archive(data: bytes, folder: Path) -> None:
    from bitcrown.zoo.networks import build_network
    from bitcrown.zoo.weights import load_weights

    load_weights(build_network("small"), _put(folder, "w.npz", data))


@functools.cache
def _zoo_archives() -> tuple[bytes, ...]:
    from bitcrown.zoo.networks import build_network
    from bitcrown.zoo.weights import variables

    return (
        npz(
            **{
                name: variable.exported()
                for name, variable in variables(build_network("small")).items()
            }
        ),
    )


def _checkpoint(data: bytes, folder: Path) -> None:
    from bitcrown.train.checkpoint import load_checkpoint

    load_checkpoint(_put(folder, "a.pt", data))


def _state(data: bytes, folder: Path) -> None:
    import torch

    from bitcrown.attacks.images.progress import load_state

    load_state(_put(folder, "suite.npz", data), _standing(), "question", torch.zeros(2, 3))


def _journal(data: bytes, folder: Path) -> None:
    from bitcrown.evaluation.journal import Journal

    _put(folder, "setup.json", b'{"eps": "1/255"}')
    _put(folder, "images.jsonl", data)
    journal = Journal(folder, {"eps": "1/255"})
    journal.missing("clean", range(3))


def _setup(data: bytes, folder: Path) -> None:
    from bitcrown.evaluation.journal import Journal

    _put(folder, "setup.json", data)
    Journal(folder, {"eps": "1/255"})


def _field(data: bytes, folder: Path) -> None:
    from bitcrown.harness.request import check_files

    check_files(data.decode("utf-8", "surrogateescape"), str(_put(folder, "p", b"")))


WITNESS = b"sat\n((X_0 0.125)\n (X_1 0.0625)\n (Y_0 1.5)\n (Y_1 -2e-3))\n"
WITNESS_2 = b"sat\nX float32 [1,2]\n0.25\n0.5\nY float32 [1,2]\n1.5\n-2e-3\n"
JOURNAL = (
    b'{"stage": "clean", "image": 0, "is_right": true}\n{"stage": "bounds", "image": 1, '
    b'"proved_by": "bab"}\n'
)
ROWS = b"onnx/a.onnx,vnnlib/p.vnnlib,60\n\"[('f', 'a.onnx'), ('g', 'b.onnx')]\",p.vnnlib,1.5\n"
TRUTH = b"onnx,vnnlib,expected\na.onnx,p.vnnlib,sat\n"
TINY_INDEX = ROOT / "tests/data/zoo/tiny.index"
_LABELS = _idx(np.array([1, 2, 3], dtype=np.uint8))


def _properties() -> list[bytes]:
    """Both versions, a case without constraints, and constraints on inputs only."""
    box, _, _ = PROPERTY.rpartition("(assert")
    return [
        text.encode()
        for text in (PROPERTY, PROPERTY_2, box, box + "(assert (or (<= X_0 0.1) (>= Y_0 100.0)))\n")
    ]


READERS: dict[str, Callable[[bytes, Path], None]] = {
    "onnx": _onnx,
    "quantized": _quantized,
    "verified": _verified,
    "property": _property,
    "asked": _asked,
    "asked_in_integers": _asked_in_integers,
    "npz": _images("a.npz"),
    "idx": _images("t10k-images-idx3-ubyte", t10k__labels__idx1__ubyte=_LABELS),
    "idx_gz": _images("t10k-images-idx3-ubyte.gz", t10k__labels__idx1__ubyte=_LABELS),
    "cifar_binary": _images("test_batch.bin"),
    "cifar_pickle": _images("test_batch"),
    "sheet": _images("sheet.png", sheet_dot_labels_dot_npy=_npy(np.arange(3))),
    "sheet_labels": _labels,
    "result": _result,
    "result_2": _result_2,
    "records": _records,
    "instances": _instances,
    "expected": _expected,
    "h5": _weights,
    "bundle": _bundle,
    "zoo_archive": _zoo_archive,
    "checkpoint": _checkpoint,
    "attack_state": _state,
    "journal": _journal,
    "setup": _setup,
    "network_field": _field,
}
SEEDS: dict[str, Callable[[], Sequence[bytes]]] = {
    "onnx": lambda: (*float_models(), *quantized_models()),
    "quantized": quantized_models,
    "verified": lambda: (dense(), quantized_models()[0], quantized_models()[2], *odd_models()),
    "property": lambda: (PROPERTY.encode(), PROPERTY_2.encode()),
    "asked": _properties,
    "asked_in_integers": _properties,
    "npz": functools.cache(_image_archives),
    "idx": lambda: (_idx(_levels(3, 4, 4)),),
    "idx_gz": lambda: (gzip.compress(_idx(_levels(3, 4, 4)), mtime=0),),
    "cifar_binary": lambda: (_levels(2 * 3073).tobytes(),),
    "cifar_pickle": functools.cache(_pickles),
    "sheet": lambda: (_picture(),),
    "sheet_labels": lambda: (_npy(np.arange(3)),),
    "result": lambda: (WITNESS, gzip.compress(WITNESS, mtime=0)),
    "result_2": lambda: (WITNESS_2,),
    "records": lambda: (
        json.dumps(_record()).encode() + b"\n" + json.dumps(_record()).encode() + b"\n",
    ),
    "instances": lambda: (ROWS,),
    "expected": lambda: (TRUTH,),
    "h5": functools.cache(_h5),
    "bundle": lambda: (TINY_INDEX.read_bytes(),),
    "zoo_archive": _zoo_archives,
    "checkpoint": functools.cache(_train_checkpoint),
    "attack_state": functools.cache(_attack_state),
    "journal": lambda: (JOURNAL,),
    "setup": lambda: (b'{"eps": "1/255"}\n',),
    "network_field": lambda: (b"[('f', 'a.onnx'), ('g', 'b.onnx')]", b"a.onnx"),
}
INSIDE: dict[str, Callable[[bytes, random.Random, Damage], bytes]] = {
    "onnx": onnx_inside,
    "quantized": onnx_inside,
    "verified": onnx_inside,
    "npz": zip_inside,
    "zoo_archive": zip_inside,
    "attack_state": zip_inside,
    "checkpoint": zip_inside,
    "idx_gz": gzip_inside,
    "records": json_inside,
    "journal": json_inside,
    "setup": json_inside,
    "bundle": lambda data, rng, damage: signed_again(damage(data, rng)),
}


def signed_again(data: bytes) -> bytes:
    """A damaged table with the checksums that its blocks would have: of the index block and of
    those it names."""
    from bitcrown.errors import BitcrownError
    from bitcrown.zoo.sstable import FOOTER_BYTES, _entries, masked_crc32c, read_varint

    changed = bytearray(data)

    def sign(offset: int, size: int) -> bytes:
        end = offset + size
        if end + 5 <= len(changed) - FOOTER_BYTES:
            changed[end + 1 : end + 5] = masked_crc32c(bytes(changed[offset : end + 1])).to_bytes(
                4, "little"
            )
        return bytes(changed[offset:end])

    try:
        footer, at, handle = bytes(changed[-FOOTER_BYTES:]), 0, []
        for _ in range(4):
            value, at = read_varint(footer, at)
            handle.append(value)
        for _, pointer in list(_entries(sign(handle[2], handle[3]))):
            offset, at = read_varint(pointer, 0)
            sign(offset, read_varint(pointer, at)[0])
        sign(handle[2], handle[3])
    except (BitcrownError, MemoryError, OverflowError):
        pass
    return bytes(changed)
