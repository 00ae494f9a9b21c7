"""What cleaning costs: each step by itself, the whole of `clean_text` by the size of the corpus, in seconds and memory.

    python benchmarks/cleaning.py [--documents FOLDER] [--sizes 100 300 1000 2000] [--steps-only] [--runner ray]

The documents are pieces of 1 to 6 kB of the text files under FOLDER, as web text, under the rules of params.yaml. There
are 51 MB of them; what is more than that are copies in which every seventh word is another, so that they are no
duplicates. Steps run in one thread, over batches as the plan makes them, after one batch that does not count. Each size
of the whole runs in a process of its own: seconds from raw tables to clean ones, most resident memory of it and its
children together.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from stages.clean_text import clean_text
from wronai import (
    benchmarks,
    contamination,
    corpus,
    decoding,
    duplicates,
    language,
    normalization,
    params,
    personal_data,
    quality,
)

ROOT = Path(__file__).parent.parent
CONFIG = params.load(ROOT / "params.yaml")
BATCH = 1024  # documents


def pieces(folder: Path) -> list[str]:
    chance = random.Random(1)
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".jsonl")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines()]
            text = "\n\n".join(row["content"] for row in rows if isinstance(row.get("content"), str))
        start = 0
        while start < len(text):
            end = start + chance.randint(1000, 6000)
            found.append(text[start:end])
            start = end
    if not found:
        sys.exit(f"{folder} holds no .txt or .jsonl file; see --documents")
    chance.shuffle(found)
    return found


def documents(folder: Path, megabytes: float) -> Iterator[bytes]:
    """The pieces, then copies with other words, up to so much."""
    chance = random.Random(2)
    originals = pieces(folder)
    size = 0.0
    for turn in range(1000):
        for piece in originals:
            words = piece.split(" ")
            if turn:
                words[::7] = [words[chance.randrange(len(words))] for _ in words[::7]]
            content = " ".join(words).encode()
            yield content
            size += len(content)
            if size >= megabytes * 1e6:
                return


def write_raw(folder: Path, raw: Path, megabytes: float) -> int:
    """A raw corpus of so much text, and one conversation; the bytes of its documents."""
    size = 0
    with corpus.PartsWriter(raw / "documents", corpus.RAW_DOCUMENTS) as parts:
        for number, content in enumerate(documents(folder, megabytes)):
            size += len(content)
            parts.add(corpus.Document(f"b/{number:09d}", "b", "b", "", "text/plain", "web", content))
    turns = [{"role": "user", "content": "Ile nóg ma pająk?"}, {"role": "assistant", "content": "Osiem."}]
    with corpus.PartsWriter(raw / "instructions", corpus.INSTRUCTIONS) as parts:
        parts.add(corpus.Instruction("b/i", "b", "neutral", "question", turns))
    return size


def steps(folder: Path, megabytes: float) -> None:
    """MB/s of each step of the plan over the texts that reach it."""
    contents = list(documents(folder, megabytes))
    size = sum(map(len, contents)) / 1e6
    rules = CONFIG.clean
    web = rules.rules.web
    shape = duplicates.MinHash(rules.minhash_bands, rules.minhash_rows, rules.minhash_ngram)
    with tempfile.TemporaryDirectory(prefix="wronai-cleaning-") as work:
        items = contamination.read_benchmarks(bundles(Path(work)), rules.contamination_ngram)
    matcher = contamination.Matcher(items)
    print(f"{len(contents):,} documents, {size:.0f} MB, one thread\n\n| step | MB/s |\n| --- | ---: |")
    spent = 0.0

    def step(name: str, work: Callable[[Any], Any], batches: list[Any]) -> list[Any]:
        nonlocal spent
        work(batches[0])
        began = time.perf_counter()
        done = [work(batch) for batch in batches]
        seconds = time.perf_counter() - began
        spent += seconds
        print(f"| {name} | {size / seconds:,.0f} |", flush=True)
        return done

    def each(work: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
        return lambda batch: [work(item) for item in batch]

    def column(texts: list[str]) -> pa.Array:
        return pa.array(texts, pa.large_string())

    batches: list[Any] = [contents[start : start + BATCH] for start in range(0, len(contents), BATCH)]
    batches = step("decode", each(lambda content: decoding.decode(content, "text/plain")[0]), batches)
    batches = step("repair of code pages", each(decoding.repair), batches)
    batches = step("normalize", each(normalization.normalize), batches)
    batches = step("unwrap", each(normalization.unwrap), batches)
    batches = step("boilerplate", each(lambda text: normalization.without_boilerplate(text)[0]), batches)
    batches = step(
        "foreign paragraphs",
        lambda texts: language.screened(texts, web.min_paragraph_confidence)[0].to_pylist(),
        batches,
    )
    arrays = [column(texts) for texts in batches]
    measured = step("quality and repetition", quality.measure, arrays)
    step("language", language.confidences, arrays)
    step("Silesian, Kashubian", language.look_alikes, arrays)
    without = {rule.bound: None for rule in quality.RULES if rule.measure not in quality.MEASURES}
    counted = web.model_copy(update=without)
    step("judge", lambda values: quality.judge(values, counted), measured)
    step("personal data", each(personal_data.mask), batches)
    keys = step("content keys", duplicates.content_keys, arrays)
    step("fingerprints", duplicates.fingerprints, keys)
    step("benchmark items", matcher.counts, keys)
    signed = step("MinHash", lambda found: duplicates.signatures(found, shape), keys)
    hashes = step("bands", lambda pair: duplicates.band_hashes(*pair, shape), list(zip(keys, signed, strict=True)))
    step("clusters", duplicates.clusters, [np.concatenate(hashes)])
    print(f"| all of these | {size / spent:,.1f} |\n")


def bundles(folder: Path) -> Path:
    """The benchmarks of params.yaml, made ready in `folder`: cleaning looks for their items."""
    asked = CONFIG.evaluate
    benchmarks.prepare(asked.tasks, ROOT / asked.include_path, ROOT / "data/downloads/benchmarks", folder)
    return folder


def whole(raw: Path, bundled: Path, clean: Path, runner: str) -> None:
    """Run `clean_text` and print its seconds and the most memory, as JSON."""
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        me = psutil.Process()
        while not done.wait(0.1):
            family = [me, *me.children(recursive=True)]
            peak = max(peak, sum(process.memory_info().rss for process in family if process.is_running()))

    threading.Thread(target=watch, daemon=True).start()
    rules = CONFIG.clean.model_copy(update={"runner": runner, "max_share_dropped": 1.0})
    began = time.perf_counter()
    metrics = clean_text(raw, clean, rules, CONFIG.seed, bundled)
    seconds = time.perf_counter() - began
    done.set()
    print(json.dumps({"seconds": seconds, "peak": peak, "kept": metrics["documents"]["kept"]}))


def scale(folder: Path, sizes: list[float], runner: str, plot: Path | None) -> None:
    print("| text, MB | documents kept | seconds | MB/s | most memory, GB |\n| ---: | ---: | ---: | ---: | ---: |")
    points = []
    for megabytes in sizes:
        work = Path(tempfile.mkdtemp(prefix="wronai-cleaning-"))
        try:
            size = write_raw(folder, work / "raw", megabytes) / 1e6
            command = [
                sys.executable,
                __file__,
                "--measure",
                str(work / "raw"),
                str(bundles(work / "benchmarks")),
                str(work / "clean"),
                "--runner",
                runner,
            ]
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            said = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
            found = json.loads(said.splitlines()[-1])
        finally:
            shutil.rmtree(work)
        points.append((size, found["seconds"], found["peak"] / 1e9))
        print(
            f"| {size:,.0f} | {found['kept']:,} | {found['seconds']:.1f} | {size / found['seconds']:.1f} | "
            f"{found['peak'] / 1e9:.2f} |",
            flush=True,
        )
    if plot:
        draw(points, plot)


def draw(points: list[tuple[float, float, float]], plot: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "wronai"})
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    size, seconds, peak = zip(*points, strict=True)
    left.plot(size, seconds, "o-")
    left.set(xlabel="text, MB", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    right.plot(size, peak, "o-")
    right.set(xlabel="text, MB", ylabel="most resident memory, GB", xlim=(0, None), ylim=(0, 4))
    figure.savefig(plot, metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=Path, default=ROOT / "../shared/data/raw")
    parser.add_argument("--sizes", type=float, nargs="+", default=[100, 300, 1000, 2000], help="MB of text")
    parser.add_argument("--steps-only", action="store_true")
    parser.add_argument("--runner", choices=("native", "ray"), default="native")
    parser.add_argument("--plot", type=Path, help="write the sizes as an SVG here")
    parser.add_argument("--measure", type=Path, nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        whole(*asked.measure, asked.runner)
        return
    steps(asked.documents, 30)
    if not asked.steps_only:
        scale(asked.documents, asked.sizes, asked.runner, asked.plot)


if __name__ == "__main__":
    main()
