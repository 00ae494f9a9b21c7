import json
import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from wronai import contamination
from wronai.contamination import SHORTEST_NGRAM, Benchmark, Matcher

TALE = (
    "kiedy młynarz wrócił z jarmarku zastał w izbie trzech obcych ludzi którzy siedzieli przy piecu suszyli buty i "
    "rozmawiali o tym czy rzeka zamarznie przed świętem a jeden z nich trzymał na kolanach kota który nie był jego"
)
WORDS = TALE.split()


def benchmark(folder: Path, *items: dict[str, Any], name: str = "czytanie", n: int = 13) -> Benchmark:
    tiny.bundle(folder, name, items)
    return next(found for found in contamination.read_benchmarks(folder, n) if found.name == name)


def shared(found: Benchmark, *keys: str) -> list[dict[str, int]]:
    return Matcher([found]).shared(pa.array(keys, pa.string()))


def test_a_text_that_quotes_an_item_shares_its_ngrams(tmp_path: Path) -> None:
    item = benchmark(tmp_path, {"passage": " ".join(WORDS[5:20]).upper() + "!", "answer": 1})
    assert shared(item, TALE, "co innego", " ".join(WORDS[5:18])) == [{"czytanie": 3}, {}, {"czytanie": 1}]


def test_an_ngram_is_counted_once_however_often_it_is_quoted(tmp_path: Path) -> None:
    item = benchmark(tmp_path, {"passage": " ".join(WORDS[:13])}, {"passage": " ".join(WORDS[:13])})
    assert shared(item, f"{TALE} {TALE}") == [{"czytanie": 1}]


def test_more_hits_than_expected_are_all_found(tmp_path: Path) -> None:
    numbers = " ".join(map(str, range(1000)))
    assert shared(benchmark(tmp_path, {"passage": numbers}), numbers) == [{"czytanie": 988}]


def test_twelve_shared_words_are_no_contamination(tmp_path: Path) -> None:
    item = benchmark(tmp_path, {"passage": " ".join([*WORDS[10:22], "jednakowoż"])})
    assert shared(item, TALE) == [{}]


def test_shared_words_with_others_between_are_no_contamination(tmp_path: Path) -> None:
    item = benchmark(tmp_path, {"passage": " ".join(WORDS[:24])})
    spread = " ".join(f"{word} jednakowoż" if i % 6 == 5 else word for i, word in enumerate(WORDS))
    assert shared(item, spread) == [{}]


@pytest.mark.parametrize("field", ["text", "choices"])
def test_a_short_item_is_recognized_whole(field: str, tmp_path: Path) -> None:
    def item(words: list[str]) -> dict[str, Any]:
        return {field: " ".join(words) if field == "text" else ["Tak.", " ".join(words)], "answer": 1}

    eight = benchmark(tmp_path, item(WORDS[10:18]), name="osiem")
    seven = benchmark(tmp_path, item(WORDS[10:17]), name="siedem")
    assert (eight.items, eight.items_too_short) == (1, 0)
    assert (seven.items, seven.items_too_short) == (1, 1)
    assert Matcher([eight, seven]).shared(pa.array([TALE])) == [{"osiem": 1}]


def test_words_that_only_begin_alike_are_no_contamination(tmp_path: Path) -> None:
    item = benchmark(tmp_path, {"text": " ".join(WORDS[:9])})
    assert shared(item, f"{' '.join(WORDS[:9])}a", f"a{TALE}", " ".join(WORDS[:9])) == [{}, {}, {"czytanie": 1}]


def test_benchmarks_are_told_apart_and_may_share_items(tmp_path: Path) -> None:
    one = benchmark(tmp_path, {"text": " ".join(WORDS[:13])}, {"text": " ".join(WORDS[20:33])}, name="jeden")
    other = benchmark(tmp_path, {"text": " ".join(WORDS[:13])}, name="drugi")
    matcher = Matcher([one, other])
    assert matcher.shared(pa.array([TALE, " ".join(WORDS[20:])])) == [{"jeden": 2, "drugi": 1}, {"jeden": 1}]
    assert matcher.counts(pa.array([TALE])).tolist() == [[2, 1]]


def test_a_hash_alone_convicts_no_text(tmp_path: Path) -> None:
    matcher = Matcher([benchmark(tmp_path, {"text": TALE})])
    matcher._pool = matcher._pool ^ np.uint8(1)  # other words under the same hashes
    assert matcher.shared(pa.array([TALE])) == [{}]


def test_a_matcher_travels_as_its_texts(tmp_path: Path) -> None:
    item = benchmark(tmp_path, {"text": TALE})
    sent = pickle.dumps(Matcher([item]))
    assert len(sent) < len(TALE) + 500
    assert pickle.loads(sent).shared(pa.array([TALE])) == Matcher([item]).shared(pa.array([TALE])) != [{}]


def test_without_items_or_texts_nothing_is_shared(tmp_path: Path) -> None:
    too_short = benchmark(tmp_path, {"text": "Za krótkie."})
    assert too_short.items_too_short == 1
    assert shared(too_short, TALE) == [{}]
    assert Matcher([]).shared(pa.array([TALE])) == [{}]
    assert shared(benchmark(tmp_path, {"text": TALE})) == []


KEYS = st.lists(st.sampled_from(["a", "b", "ab", "ą", "1"]), max_size=30).map(" ".join)


@settings(deadline=None, database=None)
@given(
    st.lists(st.tuples(st.integers(8, 13), st.lists(KEYS, max_size=4)), min_size=1, max_size=3),
    st.lists(KEYS, max_size=4),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=4),
)
def test_counts_equal_those_of_comparing_tuples_of_words(
    items: list[tuple[int, list[str]]], keys: list[str], cuts: list[tuple[int, int]]
) -> None:
    quotes = [" ".join(text.split()[a:b]) for _, texts in items for text in texts for a, b in cuts]
    keys = [*keys, *quotes, *(f"b {quote} ą" for quote in quotes)]
    benchmarks, expected = [], [Counter[str]() for _ in keys]
    for number, (n, texts) in enumerate(items):
        long = tuple(text for text in texts if len(text.split()) >= SHORTEST_NGRAM)
        benchmarks.append(Benchmark(str(number), n, len(texts), len(texts) - len(long), long))
        grams = set()
        for words in map(str.split, long):
            grams |= {tuple(words[i : i + n]) for i in range(max(len(words) - n, 0) + 1)}
        for key, counter in zip(keys, expected, strict=True):
            words = key.split()
            runs = {tuple(words[i : i + size]) for size in range(8, 14) for i in range(len(words) - size + 1)}
            counter[str(number)] = len(grams & runs)
    assert Matcher(benchmarks).shared(pa.array(keys, pa.string())) == [dict(+counter) for counter in expected]


def test_a_folder_without_bundles_fails(tmp_path: Path) -> None:
    (tmp_path / "czytanie.jsonl").write_text(json.dumps({"text": TALE}), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"holds no bundle .*; prepare_benchmarks makes them$"):
        contamination.read_benchmarks(tmp_path, 13)


def test_every_task_of_every_bundle_is_read_by_its_name(tmp_path: Path) -> None:
    tiny.bundle(tmp_path, "zagadki", [{"text": " ".join(WORDS[13:26])}])
    tiny.bundle(tmp_path, "czytanie", [{"text": " ".join(WORDS[:13])}])
    (tmp_path / "zagadki" / "czytanki").mkdir()
    shutil.copyfile(tmp_path / "czytanie/czytanie/test.parquet", tmp_path / "zagadki/czytanki/validation.parquet")
    tasks = {"zagadki": {"asked": "test"}, "czytanki": {"asked": "validation"}}
    (tmp_path / "zagadki" / "bundle.json").write_text(json.dumps({"tasks": tasks}), encoding="utf-8")
    found = contamination.read_benchmarks(tmp_path, 13)
    assert [item.name for item in found] == ["czytanie", "czytanki", "zagadki"]
    assert Matcher(found).shared(pa.array([TALE])) == [{"czytanie": 1, "czytanki": 1, "zagadki": 1}]


def test_only_the_split_that_is_asked_counts(tmp_path: Path) -> None:
    tiny.bundle(tmp_path, "czytanie", [{"text": TALE}])
    asked = tmp_path / "czytanie/czytanie/test.parquet"
    asked.rename(asked.with_name("train.parquet"))
    assert shared(benchmark(tmp_path, {"text": "Za krótkie."}), TALE) == [{}]


def test_the_turns_of_a_conversation_count_as_texts_of_the_item(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Co było w izbie?"}, {"role": "assistant", "content": " ".join(WORDS[5:20])}]
    found = benchmark(tmp_path, {"id": "a", "turns": turns}, {"id": "b", "turns": turns[:1]})
    assert (found.items, found.items_too_short) == (2, 1)
    assert shared(found, TALE) == [{"czytanie": 3}]


def test_numbers_and_empty_fields_are_no_texts(tmp_path: Path) -> None:
    item = {"text": TALE, "answer": 1, "note": None, "about": {"kind": "proza", "pages": [3, 4]}}
    assert len(benchmark(tmp_path, item).texts) == 1
