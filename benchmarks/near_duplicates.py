"""Near duplicates per second and decision by decision: datatrove's MinHash steps against `wronai.duplicates`.

    python benchmarks/near_duplicates.py [--documents FOLDER] [--megabytes N]

Both get the same texts in memory and give back which stay; both run alone, one after the other, in one process held to
one core; both have worked through ten texts before the clock starts. datatrove keeps its own defaults (14 bands of 8,
5-grams, 64-bit hashes) and its own tokenizer for Polish; it writes its signatures to disk, as its design is.

The documents are the text files under FOLDER cut to pieces of 1 to 5 kB, and copies among them: some exact, some with
a share of their words replaced by others. datatrove runs in a virtual environment that is made on first use.

MinHash decides by chance where a pair shares about 0.5 to 0.9 of its n-grams, so each is also run with another seed:
two runs of one program agree no better than the columns that say so.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from itertools import pairwise
from pathlib import Path

PACKAGES = ("datatrove==0.10.1", "xxhash<4", "spacy", "regex", "tokenizers", "pyarrow")
SHORTEST, LONGEST = 1000, 4700  # characters of a document; a Polish one has 1.06 bytes
SHARE_EXACT = 0.08  # of the documents
SHARE_NEAR = {0.01: 0.02, 0.03: 0.02, 0.1: 0.02, 0.3: 0.02}  # of the documents, by the share of words replaced
RESEED = 2  # both have 1 by default
CHANCE = (0.4, 0.9)  # shares of n-grams that 14 bands of 8 catch in more than 1 % and less than 99.9 % of pairs


def datatrove_python() -> Path:
    """The interpreter that has datatrove; the first that asks makes it, others wait."""
    from filelock import FileLock

    home = Path(__file__).parent / ".datatrove"
    python = home / "bin" / "python"
    home.mkdir(exist_ok=True)
    with FileLock(home / "lock"):
        check = [python, "-c", "import datatrove.pipeline.dedup, pyarrow, spacy, xxhash"]
        if not python.exists() or subprocess.run(check, capture_output=True).returncode:
            venv.create(home, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def documents(folder: Path, megabytes: float) -> list[tuple[str, str]]:
    """The kind and the text of each document, in a random order that is the same each time."""
    chance = random.Random(7)
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md", ".jsonl"))
    chance.shuffle(files)
    pieces: list[str] = []
    size = 0
    share_copies = SHARE_EXACT + sum(SHARE_NEAR.values())
    for path in files:
        for text in _texts(path):
            start = 0
            while len(text) - start >= SHORTEST and size < megabytes * 1e6 * (1 - share_copies):
                end = start + chance.randrange(SHORTEST, LONGEST)
                pieces.append(text[start:end])
                size += len(pieces[-1].encode())
                start = end
    if not pieces:
        sys.exit(f"{folder} holds no .txt, .md or .jsonl file with a text of {SHORTEST} characters; see --documents")
    total = len(pieces) / (1 - share_copies)
    words = [word for piece in pieces for word in piece.split()]
    made = [("original", piece) for piece in pieces]
    made += [("exact copy", chance.choice(pieces)) for _ in range(int(total * SHARE_EXACT))]
    for rate, share in SHARE_NEAR.items():
        for _ in range(int(total * share)):
            parts = re.split(r"(\s+)", chance.choice(pieces))
            changed = [chance.choice(words) if part.strip() and chance.random() < rate else part for part in parts]
            made.append((f"{rate:.0%} of words replaced", "".join(changed)))
    chance.shuffle(made)
    return made


def _texts(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix != ".jsonl":
        return [text]
    return [value for line in text.splitlines() for value in json.loads(line).values() if isinstance(value, str)]


def run_datatrove(folder: Path) -> None:
    """In datatrove's environment: read `folder`/texts.json, write seconds and clusters to `folder`/datatrove.json."""
    import struct

    from datatrove.data import Document
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.logging import logger
    from datatrove.utils.typeshelper import Languages

    logger.remove()
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    steps: dict[str, float] = {}

    def work(texts: list[str], name: str, config: MinhashConfig) -> tuple[list[int], list[list[int]]]:
        signed, pairs, clusters = (str(folder / name / step) for step in ("signatures", "buckets", "clusters"))
        made = [Document(text=text, id=str(i)) for i, text in enumerate(texts)]
        began = time.perf_counter()
        MinhashDedupSignature(signed, config, Languages.polish).run(made)
        steps["signatures"] = time.perf_counter() - began
        began = time.perf_counter()
        for bucket in range(config.num_buckets):
            MinhashDedupBuckets(signed, pairs, config=config).run(None, bucket, config.num_buckets)
        steps["pairs"] = time.perf_counter() - began
        began = time.perf_counter()
        MinhashDedupCluster(pairs, clusters, config, save_cluster_id=True).run(None, 0, 1)
        steps["clusters"] = time.perf_counter() - began
        began = time.perf_counter()
        kept = [int(document.id) for document in MinhashDedupFilter(clusters).run(made)]
        steps["who stays"] = time.perf_counter() - began
        found = Path(clusters) / "000000.clusters"  # holds only the documents that have a copy
        roots = [-1 - i for i in range(len(texts))]
        for i, root in struct.iter_unpack("<2I", found.read_bytes()) if found.exists() else ():
            roots[i] = root
        return kept, roots

    work(texts[:10], "warm", MinhashConfig())
    kept, clusters = work(texts, "timed", MinhashConfig())
    answer = {"seconds": dict(steps), "kept": kept, "clusters": clusters}
    answer["reseeded"] = work(texts, "reseeded", MinhashConfig(seed=RESEED))[1]
    (folder / "datatrove.json").write_text(json.dumps(answer))


def run_ours(folder: Path) -> None:
    """Read `folder`/texts.json, write seconds and clusters to `folder`/ours.json."""
    import numpy as np
    import pyarrow as pa

    from wronai import duplicates

    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    shape = duplicates.MinHash()
    steps: dict[str, float] = {}

    def work(texts: pa.Array) -> tuple[list[int], list[int], pa.Array]:
        clock = [time.perf_counter()]
        keys = duplicates.content_keys(texts)
        clock.append(time.perf_counter())
        signed = duplicates.signatures(keys, shape)
        clock.append(time.perf_counter())
        roots = duplicates.clusters(duplicates.band_hashes(keys, signed, shape))
        clock.append(time.perf_counter())
        order = np.arange(len(texts))
        stays = duplicates.representatives(roots, np.diff(duplicates.utf8(texts)[1]), order)
        kept = np.flatnonzero(stays == order)
        texts.take(pa.array(kept))
        clock.append(time.perf_counter())
        spent = (after - before for before, after in pairwise(clock))
        steps.update(zip(("content keys", "signatures", "clusters", "who stays"), spent, strict=True))
        return kept.tolist(), roots.tolist(), keys

    work(pa.array(texts[:10], pa.large_string()))
    kept, roots, keys = work(pa.array(texts, pa.large_string()))
    series = duplicates.daft.Series.from_arrow(keys)
    again = series.minhash(num_hashes=shape.bands * shape.rows, ngram_size=shape.ngram, seed=RESEED)
    reseeded = duplicates.clusters(duplicates.band_hashes(keys, duplicates.matrix(again.to_arrow()), shape))
    found = {"seconds": dict(steps), "kept": kept, "clusters": roots, "reseeded": reseeded.tolist()}
    (folder / "ours.json").write_text(json.dumps(found))


def ngrams(text: str) -> set[tuple[str, ...]]:
    """The 5-grams of a text, as both compare them."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1))}


def dropped(texts: list[str], clusters: list[int]) -> set[int]:
    """All but the longest of each cluster: our rule, so that clusters are compared and not who stays of each."""
    stays: dict[int, int] = {}
    for i in sorted(range(len(texts)), key=lambda i: (-len(texts[i].encode()), i)):
        stays.setdefault(clusters[i], i)
    return set(range(len(texts))) - set(stays.values())


def nearest(texts: list[str], joined: list[int], parted: list[int], one: int) -> float:
    """The share of n-grams of the closest pair that made `joined` put the cluster of `one` in `parted` to others."""
    mine, others = [], []
    for i, (cluster, smaller) in enumerate(zip(joined, parted, strict=True)):
        if cluster == joined[one]:
            (mine if smaller == parted[one] else others).append(ngrams(texts[i]))
    return max(len(left & right) / len(left | right) for left in mine for right in others)


def why(share: float) -> str:
    """What explains that one of the two joins texts whose closest pair has this share of its n-grams."""
    low, high = CHANCE
    if low <= share <= high:
        return f"share of n-grams {low} to {high}: chance"
    return f"share of n-grams below {low}" if share < low else f"share of n-grams over {high}"


def main() -> None:
    """Print the tables: megabytes per second of each step, decisions by kind of document, and where they differ."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=Path, default=Path("../shared/data/raw"))
    parser.add_argument("--megabytes", type=float, default=12)
    parser.add_argument("--work", nargs=2, metavar=("WHO", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if options.work:
        who, folder = options.work
        return run_datatrove(Path(folder)) if who == "datatrove" else run_ours(Path(folder))
    made = documents(options.documents, options.megabytes)
    texts = [text for _, text in made]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        for who, python in (("datatrove", datatrove_python()), ("ours", Path(sys.executable))):
            command = [python, __file__, "--work", who, folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "TQDM_DISABLE": "1"})
            found[who] = json.loads((Path(folder) / f"{who}.json").read_text())

    print(f"{len(texts):,} documents, {megabytes:.1f} MB, one core\n")
    print(f"{'step':14} {'datatrove s':>12} {'ours s':>8}")
    for step in ("content keys", "signatures", "pairs", "clusters", "who stays"):
        spent = (found[who]["seconds"].get(step) for who in found)
        theirs, mine = ("" if seconds is None else f"{seconds:.3f}" for seconds in spent)
        print(f"{step:14} {theirs:>12} {mine:>8}")
    rates = [megabytes / sum(found[who]["seconds"].values()) for who in found]
    print(f"{'MB/s':14} {rates[0]:12.2f} {rates[1]:8.1f}   ratio {rates[1] / rates[0]:.0f}\n")

    gone = {who: {run: dropped(texts, found[who][run]) for run in ("clusters", "reseeded")} for who in found}
    theirs, mine = gone["datatrove"], gone["ours"]
    pairs = (theirs["clusters"], mine["clusters"]), tuple(theirs.values()), tuple(mine.values())
    heads = ("documents", "datatrove", "ours", "same", "datatrove twice", "ours twice")
    print("{:24} {:>9} {:>9} {:>6} {:>8} {:>16} {:>11}".format("dropped", *heads))
    for kind in ("original", "exact copy", *(f"{rate:.0%} of words replaced" for rate in SHARE_NEAR), "all"):
        of = {i for i, (made_as, _) in enumerate(made) if kind in (made_as, "all")}
        counts = (f"{len(of & one['clusters']):,}" for one in (theirs, mine))
        same = (f"{1 - len(of & (one ^ other)) / len(of):.2%}" for one, other in pairs)
        print("{:24} {:9,} {:>9} {:>6} {:>8} {:>16} {:>11}".format(kind, len(of), *counts, *same))
    kept = [set(found[who]["kept"]) for who in found]
    print(f"\neach by its own rule of who stays: same for {1 - len(kept[0] ^ kept[1]) / len(texts):.2%}")

    causes: Counter[tuple[str, str]] = Counter()
    for who, other in (("datatrove", "ours"), ("ours", "datatrove")):
        for i in gone[who]["clusters"] - gone[other]["clusters"]:
            causes[f"only {who} drops", why(nearest(texts, found[who]["clusters"], found[other]["clusters"], i))] += 1
    for (side, cause), times in sorted(causes.items()):
        print(f"{side}, {cause}: {times}")


if __name__ == "__main__":
    main()
