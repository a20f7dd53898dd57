"""What ``prepare`` has read is what the run finds, and nothing else is ever believed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import re
from pathlib import Path

import pytest

from bitcrown.errors import PropertyError
from bitcrown.spec import kept
from bitcrown.spec.kept import keep_property, kept_problem
from bitcrown.spec.loading import load_files

N = 200


def text_of(n_networks: int = 1, seed: int = 0, n: int = N) -> str:
    """Many bounds as arrays, a few odd ones, and an ``or`` of cases."""
    rng = random.Random(seed)
    lines = ["(vnnlib-version <2.0>)"]
    for k in range(n_networks):
        lines.append(f"(declare-network f{k} (declare-input X{k} float32 [{n}])")
        lines.append(f"    (declare-output Y{k} float32 [3]))")
    for k in range(n_networks):
        for i in range(n):
            low = rng.uniform(-1, 1)
            lines.append(f"(assert (<= X{k}[{i}] {low + 0.25}))")
            lines.append(f"(assert (>= X{k}[{i}] {low:.25f}))")
    lines.append(f"(assert (or (<= Y0[0] Y0[1]) (and (> Y0[2] 0.1) (<= X0[{n - 1}] 0.125))))")
    return "\n".join(lines)


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_LEAST_BYTES", 1000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    return private


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "p.vnnlib"
    path.write_text(text)
    return path


def only_file(folder: Path) -> Path:
    (place,) = folder.iterdir()
    return place


@pytest.mark.parametrize("n_networks", [1, 2])
def test_kept_problem_is_the_problem(folder: Path, tmp_path: Path, n_networks: int) -> None:
    path = written(tmp_path, text_of(n_networks))
    networks = {f"f{k}": tmp_path / f"{k}.onnx" for k in range(n_networks)}
    assert kept_problem(folder, networks, path) is None
    assert keep_property(folder, path)
    found, expected = kept_problem(folder, networks, path), load_files(networks, path)
    assert found == expected
    assert found is not None and found.cases[0].lower.nearest().tolist() == [
        float(value) for value in expected.cases[0].lower
    ]


def test_numbers_of_any_length_are_kept(folder: Path, tmp_path: Path) -> None:
    long = "(* 1e-1999 1e-1999 1e-1999 X0[0])"  # more digits than Python writes
    path = written(tmp_path, f"{text_of()}\n(assert (<= {long} Y0[0]))")
    networks = {"f0": tmp_path / "0.onnx"}
    assert keep_property(folder, path)
    assert kept_problem(folder, networks, path) == load_files(networks, path)


def test_it_is_not_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, text_of())
    assert keep_property(folder, path)
    monkeypatch.setattr(kept, "read_query", lambda path: pytest.fail("read again"))
    assert keep_property(folder, path)
    assert kept_problem(folder, tmp_path / "n.onnx", path) is not None


def test_another_text_or_reader_finds_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, text_of())
    assert keep_property(folder, path)
    with monkeypatch.context() as patch:
        patch.setattr(kept, "_reader", lambda: "a later one")
        assert kept_problem(folder, tmp_path / "n.onnx", path) is None
    assert kept_problem(folder, tmp_path / "n.onnx", path) is not None
    path.write_text(path.read_text().replace("0.125", "0.625"))
    assert kept_problem(folder, tmp_path / "n.onnx", path) is None


def test_a_damaged_file_is_ignored(folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path, text_of())
    assert keep_property(folder, path)
    place = only_file(folder)
    whole = place.read_bytes()
    rng = random.Random(0)
    for _ in range(8):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        for content in (bytes(data), whole[: rng.randrange(len(whole))]):
            place.write_bytes(content)
            assert kept_problem(folder, tmp_path / "n.onnx", path) is None
    assert keep_property(folder, path)  # and is replaced
    assert place.read_bytes() == whole


def test_content_of_another_kind_is_ignored(folder: Path, tmp_path: Path) -> None:
    """Whatever lies there, with the right digest or not: it is no property, and nothing happens."""
    path = written(tmp_path, text_of())
    assert keep_property(folder, path)
    place = only_file(folder)
    whole = place.read_bytes()
    start = len(kept._MAGIC) + kept._DIGEST
    body = whole[start:]
    assert place.read_bytes() == kept._MAGIC + hashlib.sha256(body).digest() + body
    size = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + size])
    bodies = [b"", b"\0" * 64, pickle.dumps([1]), body[:-8], body[8:], body[: size // 2]]
    for change in (
        {"arrays": []},
        {"arrays": [[name, "object", *shape] for name, _, *shape in header["arrays"]]},
        {"content": [1]},
        {"content": {**header["content"], "networks": [{"name": 1}]}},
        {"content": {**header["content"], "problem": [1]}},
    ):
        text = json.dumps({**header, **change}).encode().ljust(size)
        bodies.append(len(text).to_bytes(8, "little") + text + body[8 + size :])
    for bad in bodies:
        place.write_bytes(kept._MAGIC + hashlib.sha256(bad).digest() + bad)
        assert kept_problem(folder, tmp_path / "n.onnx", path) is None
    place.write_bytes(whole)
    assert kept_problem(folder, tmp_path / "n.onnx", path) is not None


def test_nothing_in_the_package_unpickles() -> None:
    """Pickles are programs. Tasks of the cluster's own processes are the one thing that is sent
    that way, between processes of one user; torch's reader is told to take tensors only."""
    allowed = {"cluster/hosts.py", "cluster/host.py"}
    source = Path(kept.__file__).parents[1]
    pattern = re.compile(r"pickle\.loads?\(|Pickler\.loads|Unpickler\b|allow_pickle=True")
    found = {
        str(file.relative_to(source))
        for file in source.rglob("*.py")
        if pattern.search(file.read_text())
    }
    assert found == allowed


def test_what_others_could_have_written_is_ignored(folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path, text_of())
    assert keep_property(folder, path)
    place = only_file(folder)
    for mode in (0o620, 0o602):
        place.chmod(mode)
        assert kept_problem(folder, tmp_path / "n.onnx", path) is None
    place.chmod(0o600)
    for mode in (0o770, 0o705):
        folder.chmod(mode)
        assert kept_problem(folder, tmp_path / "n.onnx", path) is None
        assert not keep_property(folder, path)
    folder.chmod(0o700)
    assert kept_problem(folder, tmp_path / "n.onnx", path) is not None
    elsewhere = place.rename(tmp_path / "elsewhere")
    place.symlink_to(elsewhere)
    assert kept_problem(folder, tmp_path / "n.onnx", path) is None
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert kept_problem(link, tmp_path / "n.onnx", path) is None


def test_small_files_are_not_kept(folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path, "(declare-const X_0 Real)")
    assert not keep_property(folder, path)
    assert kept_problem(folder, "n.onnx", path) is None
    assert kept_problem(folder, "n.onnx", tmp_path / "nothing") is None
    assert not list(folder.iterdir())


def test_the_oldest_make_room(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for seed in range(3):
        path = tmp_path / f"{seed}.vnnlib"
        path.write_text(text_of(seed=seed))
        paths.append(path)
        if seed == 1:
            size = sum(file.stat().st_size for file in folder.iterdir())
            monkeypatch.setattr(kept, "_MOST_BYTES", int(2.5 * size))
        assert keep_property(folder, path)
        for place in folder.iterdir():
            os.utime(place, (place.stat().st_atime, place.stat().st_mtime - 10))
    found = [kept_problem(folder, tmp_path / "n.onnx", path) is not None for path in paths]
    assert found == [False, True, True]


def test_wrong_networks_are_told_as_ever(folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path, text_of())
    assert keep_property(folder, path)
    with pytest.raises(PropertyError, match="f0"):
        kept_problem(folder, {"g": tmp_path / "n.onnx"}, path)


def test_prepare_keeps_for_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitcrown.harness import prepare
    from bitcrown.harness.leftovers import runtime_folder

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = written(tmp_path, text_of(n=4000))
    monkeypatch.setattr(prepare, "_warm_up", lambda: None)
    assert prepare.main(["v1", "any", str(tmp_path / "n.onnx"), str(path)]) == 0
    folder = runtime_folder()
    assert folder is not None and folder.parent == tmp_path
    assert kept_problem(folder, tmp_path / "n.onnx", path) == load_files(tmp_path / "n.onnx", path)
