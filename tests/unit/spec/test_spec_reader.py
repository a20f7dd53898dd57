"""Files: plain or gzipped, by path or path.gz, damaged, missing, too large; and that reading
imports nothing heavy."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from bitcrown.errors import PropertyError
from bitcrown.spec.reader import parse_query, read_query

TEXT = "(declare-const X_0 Real)\n(declare-const Y_0 Real)\n(assert (<= X_0 1))\n"


def test_plain_and_gzipped_files_read_the_same_whatever_their_names(tmp_path: Path) -> None:
    (tmp_path / "plain.vnnlib").write_text(TEXT)
    (tmp_path / "plain.gz").write_text(TEXT)
    (tmp_path / "packed.vnnlib").write_bytes(gzip.compress(TEXT.encode()))
    (tmp_path / "only.vnnlib2.gz").write_bytes(gzip.compress(TEXT.encode()))
    expected = parse_query(TEXT)
    for name in ("plain.vnnlib", "plain.gz", "packed.vnnlib", "only.vnnlib2", "only.vnnlib2.gz"):
        assert read_query(tmp_path / name) == expected


def test_the_plain_file_wins_over_the_gz_next_to_it(tmp_path: Path) -> None:
    (tmp_path / "p.vnnlib").write_text(TEXT)
    (tmp_path / "p.vnnlib.gz").write_bytes(gzip.compress(b"garbage"))
    assert read_query(tmp_path / "p.vnnlib") == parse_query(TEXT)


def test_byte_order_mark_line_ends_and_odd_comments(tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_bytes(b"\xef\xbb\xbf; caf\xe9\r\n" + TEXT.replace("\n", "\r\n").encode())
    assert read_query(path) == parse_query(TEXT)


def test_a_missing_file_names_both_paths(tmp_path: Path) -> None:
    with pytest.raises(
        PropertyError, match=r"p\.vnnlib: no such file, nor p\.vnnlib\.gz; check the path"
    ):
        read_query(tmp_path / "p.vnnlib")


def test_a_folder_is_no_property(tmp_path: Path) -> None:
    with pytest.raises(PropertyError, match="is a folder"):
        read_query(tmp_path)


def test_a_name_too_long_is_an_ordinary_error(tmp_path: Path) -> None:
    with pytest.raises(PropertyError, match="cannot be read"):
        read_query(tmp_path / ("x" * 5000))


@pytest.mark.parametrize("cut", [5, 30])
def test_damaged_gzip_data(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "p.vnnlib.gz"
    path.write_bytes(gzip.compress(TEXT.encode() * 50)[:cut])
    with pytest.raises(PropertyError, match="damaged gzip data"):
        read_query(path)


def test_a_decompression_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitcrown.spec.reader._MAX_BYTES", 1000)
    path = tmp_path / "p.vnnlib.gz"
    path.write_bytes(gzip.compress(b";" * 100_000))
    with pytest.raises(PropertyError, match="holds more than 1000 bytes"):
        read_query(path)


@pytest.mark.parametrize("text", ["", "; only a comment\n", "   \n"])
def test_an_empty_file_says_so(text: str) -> None:
    with pytest.raises(PropertyError, match="the file holds no property"):
        parse_query(text)


def test_errors_name_the_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.vnnlib"
    path.write_text(TEXT + "(assert (<= X_3 1))\n")
    with pytest.raises(PropertyError, match=r"broken\.vnnlib, line 4: 'X_3' is neither"):
        read_query(path)


def test_reading_imports_nothing_heavier_than_numpy() -> None:
    code = (
        "import sys; import bitcrown.spec.reader, bitcrown.spec.normalise, bitcrown.spec.words;"
        "print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
