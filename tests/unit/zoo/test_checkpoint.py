"""The checkpoint reader: a real file of TensorFlow, damaged files, hostile files."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import block, entry, field, index_of, signed, table, varint

from bitcrown.errors import BitcrownError, ModelError, ResourceError, UnsupportedError
from bitcrown.zoo.checkpoint import open_checkpoint
from bitcrown.zoo.sstable import FOOTER_BYTES, MAGIC, masked_crc32c, read_table, read_varint

REAL = Path(__file__).resolve().parents[2] / "data" / "zoo" / "tiny"
"""Written by TensorFlow 2.21 with tests/oracles/write_tf1_checkpoint.py."""


def plain_crc32c(data: bytes) -> int:
    """The definition, bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def unmasked(stored: int) -> int:
    """The inverse of what TensorFlow does to a checksum before it stores it."""
    rotated = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        # RFC 3720, appendix B.4, and the customary check value.
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"", 0),
    ],
)
def test_checksums_of_the_standard(data: bytes, crc: int) -> None:
    assert plain_crc32c(data) == crc
    assert unmasked(masked_crc32c(data)) == crc


@pytest.mark.parametrize("size", [1, 77, 1024, 5 * 1024 + 3])
def test_the_checksum_is_the_one_of_the_definition(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    assert unmasked(masked_crc32c(data)) == plain_crc32c(data)


def test_without_the_library_of_checksums_one_sentence_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(ResourceError, match=r"pip install 'bitcrown\[zoo\]'"):
        open_checkpoint(REAL)


def test_a_checkpoint_of_tensorflow_is_read_whole() -> None:
    checkpoint = open_checkpoint(REAL)
    assert checkpoint.shards == 1
    assert checkpoint.entries["logit/FC/DW"].shape == (4, 10)
    assert checkpoint.entries["stride_1/sub1/conv1/DW"].shape == (3, 3, 2, 4)
    values = {name: checkpoint.read(name) for name in checkpoint.entries}
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in values.values())
    assert (
        sum(value.nbytes for value in values.values())
        == REAL.with_name("tiny.data-00000-of-00001").stat().st_size
    )
    scale = values["unit_last/BN/DN_Variance"]
    assert scale.shape == (1, 1, 1, 4) and (scale >= 0.5).all() and (scale < 1.5).all()


def test_prefix_index_file_and_folder_are_the_same_checkpoint() -> None:
    found = open_checkpoint(REAL)
    assert open_checkpoint(REAL.with_suffix(".index")) == found
    assert open_checkpoint(REAL.parent) == found


def copied(folder: Path) -> Path:
    for file in REAL.parent.glob("tiny.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / "tiny"


def test_every_changed_byte_of_the_index_is_noticed() -> None:
    data = REAL.with_suffix(".index").read_bytes()
    table_before = read_table(data)
    for at in range(0, len(data) - FOOTER_BYTES, 23):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        try:
            # Bytes of the unused metaindex block may change; nothing that is read may.
            assert read_table(bytes(damaged)) == table_before
        except ModelError as error:
            assert "checksum" in str(error)
    for end in range(0, len(data), 101):
        with pytest.raises(ModelError):
            read_table(data[:end])


def test_damaged_and_missing_data_is_noticed(tmp_path: Path) -> None:
    prefix = copied(tmp_path)
    file = prefix.with_name("tiny.data-00000-of-00001")
    data = bytearray(file.read_bytes())
    entries = open_checkpoint(prefix).entries
    data[entries["logit/FC/biases"].offset] ^= 4
    file.write_bytes(data)
    with pytest.raises(ModelError, match="checksum of 'logit/FC/biases'"):
        open_checkpoint(prefix).read("logit/FC/biases")
    open_checkpoint(prefix).read("logit/FC/DW")
    file.write_bytes(data[:100])
    last = max(entries, key=lambda name: entries[name].offset)
    with pytest.raises(ModelError, match="passes the end"):
        open_checkpoint(prefix).read(last)
    file.unlink()
    with pytest.raises(ModelError, match="belongs beside"):
        open_checkpoint(prefix).read(last)
    with pytest.raises(ModelError, match="no variable 'absent'"):
        open_checkpoint(prefix).read("absent")


def test_what_is_no_checkpoint_of_version_2_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"version 1")
    with pytest.raises(UnsupportedError, match="version 1"):
        open_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(ModelError, match="cannot be read"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(ModelError, match="0 .index files"):
        open_checkpoint(tmp_path)
    (tmp_path / "a.index").write_bytes(table(block([(b"variable", entry())])))
    with pytest.raises(UnsupportedError, match="without the header"):
        open_checkpoint(tmp_path / "a")
    (tmp_path / "a.index").write_bytes(table(block([(b"", field(1, 1))]), kind=1))
    with pytest.raises(UnsupportedError, match="compressed"):
        open_checkpoint(tmp_path / "a")


def written(folder: Path, entries: dict[str, bytes], data: bytes = b"", shards: int = 1) -> Path:
    (folder / "x.index").write_bytes(index_of(entries, shards))
    (folder / f"x.data-00000-of-{shards:05d}").write_bytes(data)
    return folder / "x"


def test_types_and_shapes_as_tensorflow_lays_them_out(tmp_path: Path) -> None:
    values = {
        "double": (2, np.array([1.5, -2.0])),
        "long": (9, np.array([[1, 2, 3]])),
        "half": (19, np.array([0.5], np.float16)),
        "scalar": (1, np.array(3.0, np.float32)),
        "empty": (1, np.zeros((0, 4), np.float32)),
    }
    data, entries = b"", {}
    for name, (number, value) in values.items():
        raw = value.tobytes()
        entries[name] = entry(number, value.shape, len(data), len(raw), masked_crc32c(raw))
        data += raw
    checkpoint = open_checkpoint(written(tmp_path, entries, data))
    for name, (_, value) in values.items():
        found = checkpoint.read(name)
        assert (
            found.dtype == value.dtype
            and np.array_equal(found, value)
            and found.shape == value.shape
        )


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (entry(size=1 << 40, shape=(1 << 38,)), "passes the end"),
        (entry(offset=1 << 62), "passes the end"),
        (entry(size=12), "do not fill"),
        (entry(shape=(1 << 62, 1 << 62)), "do not fill"),
        (entry(dtype=7), "type number 7"),
        (entry() + field(7, b""), "slices"),
    ],
)
def test_sizes_that_lie_are_refused_before_memory_is_taken(
    tmp_path: Path, hostile: bytes, message: str
) -> None:
    checkpoint = open_checkpoint(written(tmp_path, {"v": hostile}, bytes(8)))
    with pytest.raises(ModelError, match=message):
        checkpoint.read("v")


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (entry(shard=1), "data file 1 of 1"),
        (entry(offset=1 << 63), "not a whole number"),
        (entry(shape=(1,) * 300), "300 axes"),
        (field(2, 5), "not a message"),
        (field(2, field(3, 1)), "no known shape"),
        (b"\x0b", "kind 3"),
        (b"\x0a\x7f", "passes the end of its message"),
        (b"\xff" * 11, "has no end"),
    ],
)
def test_messages_that_lie_are_refused(tmp_path: Path, hostile: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        open_checkpoint(written(tmp_path, {"v": hostile}))


@pytest.mark.parametrize("shards", [0, 1 << 20])
def test_impossible_numbers_of_data_files_are_refused(tmp_path: Path, shards: int) -> None:
    with pytest.raises(ModelError, match="data files are not possible"):
        open_checkpoint(written(tmp_path, {}, shards=shards))


@given(st.binary(max_size=60))
def test_any_block_is_read_or_refused(body: bytes) -> None:
    try:
        found = read_table(table(body))
    except BitcrownError:
        return
    assert sum(len(key) + len(value) for key, value in found.items()) <= len(body) ** 2


@given(st.binary(max_size=40))
def test_any_footer_is_read_or_refused(handles: bytes) -> None:
    data = (
        signed(block([]))
        + handles.ljust(FOOTER_BYTES - 8, b"\0")[: FOOTER_BYTES - 8]
        + MAGIC.to_bytes(8, "little")
    )
    try:
        assert read_table(data) == {}
    except BitcrownError:
        return


@given(st.binary(max_size=40))
def test_any_entry_is_read_or_refused(message: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        try:
            checkpoint = open_checkpoint(written(Path(folder), {"v": message}, bytes(8)))
            checkpoint.read("v")
        except BitcrownError:
            return
        assert checkpoint.read("v").nbytes <= 8


@given(st.integers(0, 2**63 - 1))
def test_varints(value: int) -> None:
    assert read_varint(b"\x80" + varint(value) + b"\x01", 1) == (value, 1 + len(varint(value)))
