"""Packed files read as plain ones, limits and damage in one sentence; files replaced whole."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from bitcrown.errors import ModelError, PropertyError, ResourceError
from bitcrown.files import digest, find_file, no_model, read_packed, write_whole


def content(path: Path, limit: int = 1 << 20) -> bytes:
    return read_packed(path, limit, "the network file", ModelError)


def test_gzip_is_seen_in_the_bytes_and_not_in_the_name(tmp_path: Path) -> None:
    (tmp_path / "plain.gz").write_bytes(b"content")
    (tmp_path / "packed").write_bytes(gzip.compress(b"content"))
    (tmp_path / "only.onnx.gz").write_bytes(gzip.compress(b"content"))
    (tmp_path / "empty").write_bytes(b"")
    for name in ("plain.gz", "packed", "only.onnx", "only.onnx.gz"):
        assert content(tmp_path / name) == b"content"
    assert content(tmp_path / "empty") == b""


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    for data in (b"content", gzip.compress(b"content")):
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        assert content(Path(f"/dev/fd/{reader}")) == b"content"
        os.close(reader)


@pytest.mark.parametrize("cut", [3, 12, 20, -9, -1])
def test_damage_is_said_with_the_class_that_the_caller_names(tmp_path: Path, cut: int) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"content" * 9)[:cut])
    with pytest.raises(ModelError, match=r"the network file .*cut\.gz cannot be read"):
        content(tmp_path / "cut.gz")
    with pytest.raises(PropertyError, match=r"the property .*cut\.gz cannot be read"):
        read_packed(tmp_path / "cut.gz", 99, "the property", PropertyError)


@pytest.mark.parametrize("name", ["missing", "a\0b", "x" * 5000, "."])
def test_what_is_no_file_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        content(tmp_path / name)


@pytest.mark.parametrize("packed", [False, True])
def test_the_limit_is_on_what_comes_out(tmp_path: Path, packed: bool) -> None:
    data = bytes(1000)
    (tmp_path / "file").write_bytes(gzip.compress(data) if packed else data)
    assert content(tmp_path / "file", 1000) == data
    with pytest.raises(ModelError, match="is larger than 0 GiB"):
        content(tmp_path / "file", 999)


def test_file_or_its_gz(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.onnx", tmp_path / "a.onnx.gz"
    assert find_file(plain) is None
    packed.write_bytes(b"")
    assert find_file(plain) == packed
    plain.write_bytes(b"")
    assert find_file(plain) == plain


def test_digest_is_sha_256_in_hexadecimal() -> None:
    # FIPS 180-4's example of one block
    assert digest(b"abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "out.txt"
    write_whole(file, "first\n")
    write_whole(file, "second\n")
    assert file.read_text() == "second\n"
    assert [path.name for path in file.parent.iterdir()] == ["out.txt"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_whole(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"


def test_folder_in_place_of_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be written"):
        write_whole(tmp_path, "text")


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\x89HDF\r\n\x1a\n", "an .h5 file"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        (b"PK\x03\x04", "torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"TFL3", "cut short"),
        (b"", "cut short"),
    ],
)
def test_other_kinds_of_files_are_named_by_all_readers(
    tmp_path: Path, head: bytes, what: str
) -> None:
    from bitcrown.check.qonnx import standard_content
    from bitcrown.model.file import NetworkFile

    data = head + b"\xff" * 40
    assert what in str(no_model("n", data))
    (tmp_path / "n.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=what):
        _ = NetworkFile(tmp_path / "n.onnx").outputs
    with pytest.raises(ModelError, match=what):
        standard_content(data, "n.onnx")
