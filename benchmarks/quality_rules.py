"""Megabytes of text per second on one core: the quality rules of `wronai.quality` beside datatrove's filters.

    python benchmarks/quality_rules.py [--documents FILE.parquet | FOLDER] [--megabytes 4]

The documents (column `text`) are judged by datatrove 0.10.1 (its Gopher quality, Gopher repetition and FineWeb quality
filters, set as FineWeb2 sets them for Polish), by the same rules in plain Python through `datasets.map`, and by ours;
each in a process of its own with one thread, all with the bounds of `clean.rules.web` in params.yaml. Prints the speeds
by processor time and, for each filter, how often ours decides as datatrove does and where it does not. Without
`--documents` they are made from ../shared/data/raw, half of them damaged so that each rule has something to drop.
A difference to expect: datatrove knows stop words in lower case only, ours in any.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from near_duplicates import datatrove_python

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT.parent / "shared" / "data" / "raw"
STOP_WORDS = ["w", "i", "na", "z", "do", "się", "roku", "od", "a", "jest", "przez", "po", "jako", "oraz", "o", "został"]
STOP_WORDS += ["był", "nie"]
PIECE = 4000  # characters of a novel that make a document
# The rules of ours that each of datatrove's filters holds.
FILTERS = {
    "gopher_quality": (
        *("min_words", "max_words", "min_mean_word_length", "max_mean_word_length", "max_symbols_per_word"),
        *("max_share_bullet_lines", "max_share_ellipsis_lines", "min_share_alphabetic_words", "min_stop_words"),
    ),
    "gopher_repetition": (
        "max_share_duplicate_lines",
        *(f"max_share_top_{n}gram" for n in (2, 3, 4)),
        *(f"max_share_duplicate_{n}grams" for n in range(5, 11)),
    ),
    "fineweb_quality": (
        *("min_share_punctuated_lines", "max_new_lines_per_word", "max_share_duplicate_line_characters"),
    ),
}
Verdicts = dict[str, list[str | None]]  # of each filter: for every document the reason, None when it passes


def damaged(text: str, kind: int, chance: random.Random) -> str:
    """One of the ways in which a page is not worth training on, made of `text`."""
    lines = [line for line in text.split("\n") if line.strip()] or [""]
    words = text.split() or [""]
    some = chance.sample(words, min(len(words), chance.randint(3, 60)))
    ways: tuple[Callable[[], str], ...] = (
        lambda: "\n".join(f"- {word}" for word in words[:400]),
        lambda: "\n".join(line for line in lines[:20] for _ in range(chance.randint(1, 3))),
        lambda: ", ".join(chance.choices(sorted(set(some)), k=300)),
        lambda: "\n".join(f"{line[:60].rsplit(' ', 1)[0]}..." for line in lines),
        lambda: " ".join(f"#{word}" if chance.random() < 0.15 else word for word in words),
        lambda: "\n".join(" ".join(str(chance.randint(0, 9999)) for _ in range(8)) for _ in range(60)),
        lambda: text + "\n" + " ".join(words[: len(words) // chance.randint(3, 12)]),
        lambda: " ".join(words[: chance.randint(5, 40)]),
        lambda: " ".join(f"{one}{two}{three}" for one, two, three in zip(words, words[1:], words[2:], strict=False)),
        lambda: "".join(f"{word[:1]} " * 2 + word[1:2] + " " for word in words),
        lambda: " ".join(word if chance.random() < 0.7 else some[0] + " " + some[-1] for word in words),
        lambda: "\n".join(lines).replace(".", "").replace(",", "\n"),
    )
    return ways[kind % len(ways)]()


def pages() -> Iterator[tuple[str, str]]:
    """Documents under ../shared/data/raw with an id: whole pages, and novels in pieces."""
    for path in sorted(RAW.rglob("*")):
        if path.suffix == ".md":
            yield str(path.relative_to(RAW)), path.read_text(encoding="utf-8", errors="replace")
        elif path.suffix == ".jsonl":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
                yield f"{path.relative_to(RAW)}:{number}", json.loads(line)["content"]
        elif path.suffix == ".txt":
            text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
            for start in range(0, min(len(text), 10 * PIECE), PIECE):
                yield f"{path.relative_to(RAW)}:{start}", text[start : start + PIECE]


def made_documents(megabytes: float) -> tuple[list[str], list[str]]:
    found = [(name, text) for name, text in pages() if 0 < len(text) < 50_000]
    if not found:
        raise FileNotFoundError(f"{RAW} holds no text to make documents from; give --documents")
    chance = random.Random(42)
    chance.shuffle(found)
    names: list[str] = []
    texts: list[str] = []
    size = 0
    for number, (name, text) in enumerate(found):
        for kind in (None, number):
            made = text if kind is None else damaged(text, kind, chance)
            names.append(name if kind is None else f"{name} damaged {number % 12}")
            texts.append(made)
            size += len(made.encode())
        if size > megabytes * 1e6:
            break
    return names, texts


def read_documents(place: Path, megabytes: float) -> tuple[list[str], list[str]]:
    paths = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
    names: list[str] = []
    texts: list[str] = []
    size = 0
    for path in paths:
        file = pq.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            raise ValueError(f"{path} has no column text; it has {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(256, columns=["text"]):
            for text in batch.column(0).to_pylist():
                if text:
                    names.append(f"{path.name}:{len(names)}")
                    texts.append(text)
                    size += len(text.encode())
            if size > megabytes * 1e6:
                return names, texts
    if not texts:
        raise FileNotFoundError(f"{place} holds no .parquet file with text")
    return names, texts


def by_datatrove(texts: list[str], rules: dict[str, Any]) -> tuple[float, Verdicts]:
    from datatrove.data import Document
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter

    filters = {
        "gopher_quality": GopherQualityFilter(
            language="pol",
            stop_words=STOP_WORDS,
            min_doc_words=rules["min_words"],
            max_doc_words=rules["max_words"],
            min_avg_word_length=rules["min_mean_word_length"],
            max_avg_word_length=rules["max_mean_word_length"],
            max_symbol_word_ratio=rules["max_symbols_per_word"],
            max_bullet_lines_ratio=rules["max_share_bullet_lines"],
            max_ellipsis_lines_ratio=rules["max_share_ellipsis_lines"],
            max_non_alpha_words_ratio=rules["min_share_alphabetic_words"],
            min_stop_words=rules["min_stop_words"],
        ),
        "gopher_repetition": GopherRepetitionFilter(
            language="pol",
            dup_para_frac=0,
            dup_line_char_frac=0,
            dup_para_char_frac=0,
            dup_line_frac=rules["max_share_duplicate_lines"],
            top_n_grams=tuple((n, rules[f"max_share_top_{n}gram"]) for n in (2, 3, 4)),
            dup_n_grams=tuple((n, rules[f"max_share_duplicate_{n}grams"]) for n in range(5, 11)),
        ),
        "fineweb_quality": FineWebQualityFilter(
            language="pol",
            short_line_thr=999,
            char_duplicates_ratio=rules["max_share_duplicate_line_characters"],
            line_punct_thr=rules["min_share_punctuated_lines"],
            new_line_ratio=rules["max_new_lines_per_word"],
        ),
    }
    for filter_ in filters.values():
        filter_.filter(Document(text="Ala ma kota.\n" * 60, id="0"))  # loads the tokenizer
    started = time.process_time()
    verdicts = {
        name: [_reason(filter_, Document(text=text, id="0")) for text in texts] for name, filter_ in filters.items()
    }
    return time.process_time() - started, verdicts


def _reason(filter_: Any, document: Any) -> str | None:
    try:
        verdict = filter_.filter(document)
    except ZeroDivisionError:  # a text without words
        return "no_words"
    return None if verdict is True else verdict[1]


def by_datasets_map(texts: list[str], rules: dict[str, Any]) -> tuple[float, Verdicts]:
    import datasets

    sys.path.append(str(ROOT / "tests"))
    from test_quality import slow_measures

    from wronai import quality

    chosen = {name: [rule for rule in quality.RULES if rule.bound in bounds] for name, bounds in FILTERS.items()}

    def judged(example: dict[str, str]) -> dict[str, str | None]:
        values = slow_measures(example["text"])
        return {
            name: next(
                (
                    rule.reason
                    for rule in chosen[name]
                    if rules[rule.bound] is not None
                    and (
                        values[rule.measure] < rules[rule.bound]
                        if rule.bound.startswith("min_")
                        else values[rule.measure] > rules[rule.bound]
                    )
                ),
                None,
            )
            for name in FILTERS
        }

    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict({"text": texts})
    started = time.process_time()
    table = table.map(judged, remove_columns=["text"])
    return time.process_time() - started, {name: list(table[name]) for name in FILTERS}


def by_ours(texts: list[str], rules: dict[str, Any]) -> tuple[float, Verdicts]:
    from wronai import params, quality

    column = pa.array(texts, pa.large_string())
    quality.measure(column[:1])  # compiles, or loads what was compiled
    off = dict.fromkeys(rules)
    checked = {
        name: params.Rules.model_validate(off | {bound: rules[bound] for bound in bounds})
        for name, bounds in FILTERS.items()
    }
    seconds = []
    for _ in range(5):
        started = time.process_time()
        values = quality.measure(column)
        reasons = {name: quality.judge(values, chosen)[0] for name, chosen in checked.items()}
        seconds.append(time.process_time() - started)
    return sorted(seconds)[2], {name: verdict.to_pylist() for name, verdict in reasons.items()}


RUNNERS = {"datatrove": by_datatrove, "datasets.map": by_datasets_map, "wronai": by_ours}


def run(name: str, python: Path, folder: Path) -> tuple[float, Verdicts]:
    """Seconds and verdicts of one runner in a process of its own, on one thread."""
    one = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [str(python), __file__, "--runner", name, "--exchange", str(folder)]
    done = subprocess.run(command, env=os.environ | one, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr.strip()[-2000:]}")
    answer = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return answer["seconds"], answer["verdicts"]


def compare(names: list[str], theirs: Verdicts, ours: Verdicts) -> None:
    """Print the share of equal decisions of each filter and of all, and the kinds of disagreement."""
    theirs, ours = dict(theirs), dict(ours)
    for verdicts in (theirs, ours):
        verdicts["all three"] = [
            next((reason for reason in reasons if reason), None)
            for reasons in zip(*(verdicts[name] for name in FILTERS), strict=True)
        ]
    print(f"\n{'filter':20} {'drop of datatrove':>18} {'drop of ours':>13} {'equal':>9}")
    for name in (*FILTERS, "all three"):
        pairs = list(zip(theirs[name], ours[name], strict=True))
        equal = sum((one is None) == (other is None) for one, other in pairs) / len(pairs)
        dropped = [sum(reason is not None for reason in side) / len(pairs) for side in zip(*pairs, strict=True)]
        print(f"{name:20} {dropped[0]:18.1%} {dropped[1]:13.1%} {equal:9.2%}")
    kinds: Counter[tuple[str, str, str]] = Counter()
    example: dict[tuple[str, str, str], str] = {}
    for filter_ in FILTERS:
        for name, one, other in zip(names, theirs[filter_], ours[filter_], strict=True):
            if (one is None) != (other is None):
                kind = (filter_, one or "keeps", other or "keeps")
                kinds[kind] += 1
                example.setdefault(kind, name)
    if kinds:
        print(f"\n{'filter':20} {'datatrove':24} {'ours':26} {'count':>5}  for example")
    for kind, count in kinds.most_common():
        print(f"{kind[0]:20} {kind[1]:24} {kind[2]:26} {count:5}  {example[kind]}")
    print(
        "\nreasons of ours: "
        + ", ".join(f"{k} {v}" for k, v in Counter(r for n in FILTERS for r in ours[n] if r).most_common())
    )


def main() -> None:
    """Print the table of speeds, then the agreement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, help="a Parquet file with a column text, or a folder of them")
    parser.add_argument("--megabytes", type=float, default=4, help="how much of them; datatrove is slow")
    parser.add_argument("--runner", choices=RUNNERS, help=argparse.SUPPRESS)
    parser.add_argument("--exchange", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.runner:
        texts = pq.read_table(options.exchange / "documents.parquet").column("text").to_pylist()
        rules = json.loads((options.exchange / "rules.json").read_text(encoding="utf-8"))
        seconds, verdicts = RUNNERS[options.runner](texts, rules)
        answer = json.dumps({"seconds": seconds, "verdicts": verdicts})
        (options.exchange / f"{options.runner}.json").write_text(answer, encoding="utf-8")
        return
    from wronai import params

    if options.documents:
        names, texts = read_documents(options.documents, options.megabytes)
    else:
        names, texts = made_documents(options.megabytes)
        print(f"documents made from {RAW}; every second one is a copy damaged by a rule of thumb")
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts):,} documents, {size:.1f} MB, one thread each; compilation of ours not counted")
    python = datatrove_python()
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"text": texts}), Path(folder) / "documents.parquet")
        rules = params.load(ROOT / "params.yaml").clean.rules.web.model_dump_json()
        (Path(folder) / "rules.json").write_text(rules, encoding="utf-8")
        pythons = {name: python if name == "datatrove" else Path(sys.executable) for name in RUNNERS}
        results = {name: run(name, pythons[name], Path(folder)) for name in RUNNERS}
    print(f"\n{'rules':14} {'CPU s':>8} {'MB/s':>8} {'ratio':>8}")
    for name, (seconds, _) in results.items():
        print(f"{name:14} {seconds:8.2f} {size / seconds:8.2f} {results['datatrove'][0] / seconds:8.1f}")
    compare(names, results["datatrove"][1], results["wronai"][1])
    if results["datasets.map"][1] != results["wronai"][1]:
        raise AssertionError("plain Python and the kernels differ on the same rules")


if __name__ == "__main__":
    main()
