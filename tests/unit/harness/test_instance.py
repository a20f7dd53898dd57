"""Instances files of every year, and rows that no year wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitcrown.errors import PropertyError
from bitcrown.harness.instance import (
    Instance,
    find_suites,
    network_field,
    parse_timeout,
    read_instances,
    resolve,
)
from bitcrown.spec.network_field import parse_network

PAIR = "[('f', 'onnx/a.onnx'), ('g', 'onnx/b.onnx')]"


def written(folder: Path, content: str | bytes, name: str = "instances.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.parametrize(
    "content",
    [
        "onnx/a.onnx,vnnlib/p.vnnlib,116\n",
        "onnx/a.onnx,vnnlib/p.vnnlib,116",
        "./onnx/a.onnx,./vnnlib/p.vnnlib,116.0\n",
        "onnx/./a.onnx,vnnlib/././p.vnnlib,116\r\n",
        "onnx/a.onnx,vnnlib/p.vnnlib,116\r",
        "\ufeffonnx/a.onnx,vnnlib/p.vnnlib,116\n",
        " onnx/a.onnx , vnnlib/p.vnnlib , 116 \n\n\n",
        '"onnx/a.onnx","vnnlib/p.vnnlib","116"\n',
        "onnx,vnnlib,timeout\nonnx/a.onnx,vnnlib/p.vnnlib,116\n",
        "onnx/a.onnx,vnnlib/p.vnnlib,1.16e2,\n",
    ],
)
def test_one_row_in_every_dress(tmp_path: Path, content: str) -> None:
    assert read_instances(written(tmp_path, content)) == (
        Instance("onnx/a.onnx", "vnnlib/p.vnnlib", 116.0),
    )


def test_list_of_networks(tmp_path: Path) -> None:
    file = written(
        tmp_path, "\"[('f', './onnx/a.onnx'), ('g', 'onnx/b.onnx')]\",./v/i.vnnlib,100\r\n"
    )
    (instance,) = read_instances(file)
    assert instance == Instance(PAIR, "v/i.vnnlib", 100.0)
    assert parse_network(resolve(instance.network, Path("base"))) == (
        ("f", "base/onnx/a.onnx"),
        ("g", "base/onnx/b.onnx"),
    )


def test_network_field_is_what_the_harness_passes() -> None:
    assert network_field(parse_network(PAIR)) == PAIR
    assert network_field(parse_network("onnx/a.onnx")) == "onnx/a.onnx"


def test_one_property_for_several_networks_has_several_keys(tmp_path: Path) -> None:
    rows = read_instances(
        written(tmp_path, "a.onnx,p.vnnlib,1\nb.onnx,p.vnnlib,1\nb.onnx,x/p.vnnlib,1\n")
    )
    assert len({row.key() for row in rows}) == 3


@pytest.mark.parametrize(
    "field",
    ["", "[]", "[", "[('f',)]", "[('f', 'a', 'b')]", "[['f', 'a']]", "[('f', 3)]", "[('f', '')]",
    "[('', 'a')]",
     "['a']", "[('f', 'a'), ('f', 'b')]", "[__import__('os')]", "[('f', open('x'))]", "[" * 5000],
)  # fmt: skip
def test_network_field_is_refused(field: str) -> None:
    with pytest.raises(PropertyError):
        parse_network(field)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "-inf", "", "ten", "1e999", "0x10"])
def test_timeout_is_refused(text: str) -> None:
    with pytest.raises(PropertyError, match="time limit must be a"):
        parse_timeout(text)


def test_timeout_may_be_decimal() -> None:
    assert parse_timeout(" 210.5\n") == 210.5


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("a.onnx,p.vnnlib\n", "row 1.*2 columns"),
        ("a.onnx,p.vnnlib,1\na.onnx,p.vnnlib,0\n", "row 2.*positive finite"),
        ("a.onnx,p.vnnlib,1,2,3\n", "5 columns"),
        ("[('f', 'a'), ('g', 'b')],p.vnnlib,1\n", "columns"),
        ('"a.onnx,p.vnnlib,1\n', "not a CSV file"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, content: str | bytes, where: str) -> None:
    with pytest.raises(PropertyError, match=where):
        read_instances(written(tmp_path, content))


def test_layouts_of_all_years(tmp_path: Path) -> None:
    for folder, name in [
        ("acasxu", "acasxu_instances.csv"),
        ("cora", "instances.csv"),
        ("vit_2026/1.0", "instances.csv"),
        ("vit_2026/2.0", "instances.csv"),
        ("mono_2026/2.0", "instances.csv"),
        ("not_a_suite", "other.csv"),
    ]:
        written(tmp_path / folder, "a.onnx,p.vnnlib,1\n", name)
    found = [(suite.category, suite.version) for suite in find_suites(tmp_path)]
    assert found == [("acasxu", ""), ("cora", ""), ("mono_2026", "2.0"), ("vit_2026", "1.0")]
    assert find_suites(tmp_path / "vit_2026" / "2.0")[0].category == "vit_2026"
    assert find_suites(tmp_path / "cora" / "instances.csv")[0].category == "cora"
    assert find_suites(tmp_path / "acasxu")[0].category == "acasxu"


def test_no_suite_is_said(tmp_path: Path) -> None:
    with pytest.raises(PropertyError, match="holds no instances.csv"):
        find_suites(tmp_path)
    with pytest.raises(PropertyError, match="does not exist"):
        find_suites(tmp_path / "gone")
