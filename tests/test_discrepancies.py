"""Two files that differ are told apart by what they hold: the tensor, the row, the value, and how far."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from wronai import discrepancies


def told(recorded: Path, found: Path) -> list[str]:
    comparison = discrepancies.compare(recorded, found)
    return [str(comparison), *map(str, comparison.shown)]


def tensors(tmp_path: Path, recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    for name, content in (("a.safetensors", recorded), ("b.safetensors", found)):
        save_file(content, tmp_path / name)
    return told(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def texts(tmp_path: Path, suffix: str, recorded: str, found: str) -> list[str]:
    for name, content in (("a", recorded), ("b", found)):
        (tmp_path / f"{name}{suffix}").write_text(content, encoding="utf-8")
    return told(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_the_tensor_its_index_and_the_distance_are_named(dtype: torch.dtype, tmp_path: Path) -> None:
    old = {"one": torch.zeros(2), "two": torch.ones(3, 4, dtype=dtype)}
    new = {"one": torch.zeros(2), "two": torch.ones(3, 4, dtype=dtype)}
    new["two"][1, 2] = 3
    new["two"][0, 0] = 2
    named = str(dtype).removeprefix("torch.")
    assert tensors(tmp_path, old, new) == [
        "1 tensor differs",
        f"two {named} [3, 4] at [1, 2]: 1 recorded, 3 found, 2 apart at most, relative 2; 2 of 12 values",
    ]


def test_the_last_bit_of_a_float_is_seen(tmp_path: Path) -> None:
    old = {"w": torch.ones(2)}
    (_, line) = tensors(tmp_path, old, {"w": torch.nextafter(torch.ones(2), torch.tensor(2.0))})
    assert "1 recorded, 1.00000012 found, 1.19e-07 apart at most" in line


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ({"w": torch.ones(2)}, {"v": torch.ones(2)}, "v: nothing recorded, a tensor found"),
        ({"w": torch.ones(2)}, {"w": torch.ones(3)}, "w: float32 [2] recorded, float32 [3] found"),
        ({"w": torch.ones(2)}, {"w": torch.ones(2).half()}, "w: float32 [2] recorded, float16 [2] found"),
        ({"w": torch.zeros(1)}, {"w": -torch.zeros(1)}, "equal as numbers, not in their bits"),
        ({"w": torch.tensor([1.0])}, {"w": torch.tensor([float("nan")])}, "1 recorded, nan found, inf apart at most"),
    ],
)
def test_tensors_that_cannot_be_subtracted_are_told_too(old: Any, new: Any, line: str, tmp_path: Path) -> None:
    assert line in tensors(tmp_path, old, new)[1]


def test_metadata_of_tensors_counts(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    save_file({"w": torch.ones(1)}, tmp_path / "b.safetensors", metadata={"format": "np"})
    assert told(tmp_path / "a.safetensors", tmp_path / "b.safetensors")[1].startswith("metadata: {'format': 'pt'}")


def test_the_row_and_the_place_in_it_are_named(tmp_path: Path) -> None:
    rows = [{"id": number, "ids": [1, 2, 3], "text": "zażółć gęślą jaźń"} for number in range(9000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    rows[5000]["ids"] = [1, 2, 4]
    rows[8999]["text"] = "zażółć gęślą jaśń"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    assert told(tmp_path / "a.parquet", tmp_path / "b.parquet") == [
        "2 rows differ",
        "row 5,000 ids[2]: 3 recorded, 4 found, 1 apart (relative 0.33)",
        "row 8,999 text: 'zażółć gęślą jaźń' recorded, 'zażółć gęślą jaśń' found, from character 15 on",
    ]


def test_rows_and_columns_that_are_missing_are_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2], "b": [1, 2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "b.parquet")
    assert told(tmp_path / "a.parquet", tmp_path / "b.parquet")[1:] == [
        "columns.b: 'int64' recorded, nothing found",
        "row 1: {'a': 2} recorded, nothing found",
    ]


def test_the_same_rows_packed_otherwise_are_told_by_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "b.parquet", compression="gzip")
    assert told(tmp_path / "a.parquet", tmp_path / "b.parquet")[1].startswith("byte ")


@pytest.mark.parametrize(
    ("suffix", "old", "new", "lines"),
    [
        (
            ".json",
            '{"a": {"b": 1.0, "c": [1]}}',
            '{"a": {"b": 1.5, "c": [1, 2]}}',
            ["a.b: 1.0 recorded, 1.5 found, 0.5 apart (relative 0.5)", "a.c[1]: nothing recorded, 2 found"],
        ),
        (".json", '{"a": 1}', '{"a": 1.0}', ["a: 1 recorded, 1.0 found, 0 apart (relative 0)"]),
        (".json", '{"a": 1}', '{"a":1}', ["line 1: '{\"a\": 1}' recorded, '{\"a\":1}' found, from character 5 on"]),
        (
            ".jsonl",
            '{"a": 1}\n{"a": 2}\n',
            '{"a": 1}\n{"a": 3}\n',
            ["line 2 a: 2 recorded, 3 found, 1 apart (relative 0.5)"],
        ),
        (".jsonl", "1\n", "1\n2\n", ["line 2: nothing recorded, 2 found"]),
        (".csv", "x,y\n1,0.25\n", "x,y\n1,0.5\n", ["row 1 y: 0.25 recorded, 0.5 found, 0.25 apart (relative 1)"]),
        (".csv", "x,y\n1,2\n", "x,z\n1,2\n", ["header[1]: 'y' recorded, 'z' found, from character 0 on"]),
        (".csv", "x\n1\n", "x\n1\n2\n", ["row 2: nothing recorded, {'x': 2} found"]),
        (".csv", "x\n0.50\n", "x\n0.5\n", ["row 1 x: '0.50' recorded, 0.5 found"]),
        (".html", "<p>\na\n", "<p>\nb\n", ["line 2: 'a\\n' recorded, 'b\\n' found, from character 0 on"]),
        (".json", "not JSON", "not YAML", ["line 1: 'not JSON' recorded, 'not YAML' found, from character 4 on"]),
    ],
)
def test_the_value_in_a_text_is_named(suffix: str, old: str, new: str, lines: list[str], tmp_path: Path) -> None:
    assert texts(tmp_path, suffix, old, new)[1:] == lines


def test_a_file_that_is_not_what_its_name_says_is_compared_by_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\xff\x00\x01")
    (tmp_path / "b.safetensors").write_bytes(b"\xff\x02\x01\x05")
    assert told(tmp_path / "a.safetensors", tmp_path / "b.safetensors") == [
        "2 bytes differ",
        "byte 1: 0x00 recorded, 0x02 found",
    ]


def test_all_differences_are_counted_and_few_are_spelled_out(tmp_path: Path) -> None:
    old, new = (json.dumps({str(number): number + add for number in range(100)}) for add in (0, 1))
    lines = texts(tmp_path, ".json", old, new)
    assert lines[0] == "100 values differ" and len(lines) == 1 + discrepancies.SHOWN


def test_a_long_value_is_cut_around_what_differs(tmp_path: Path) -> None:
    old, new = ("a" * 500 + letter + "a" * 500 for letter in "bc")
    (line,) = texts(tmp_path, ".json", json.dumps(old), json.dumps(new))[1:]
    assert "…'" + "a" * 30 + "b" + "a" * 29 + "' recorded" in line and line.endswith("from character 500 on")


def test_a_tolerance_excuses_numbers_alone() -> None:
    old = {"loss": 2.0, "count": 100, "name": "a", "ok": True, "list": [1.0]}
    assert discrepancies.outside(old, {**old, "loss": 2.01, "count": 101}, 0.01) == []
    beyond = discrepancies.outside(old, {**old, "loss": 2.1, "name": "b", "ok": False, "list": [1.0, 1.0]}, 0.01)
    assert [difference.where for difference in beyond] == ["list[1]", "loss", "name", "ok"]
    assert discrepancies.outside({"gain": 0.001}, {"gain": -0.001}, 0.01) == []
    assert discrepancies.outside({"loss": 1.0}, {"loss": float("nan")}, 0.01) != []
