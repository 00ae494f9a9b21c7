"""Clean `raw` into `clean` on a Ray cluster of two workers on this machine; with `lose`, one of them dies on the way.

A program of its own, since a process has one runner: `python tests/cluster.py raw bundles clean [lose]`.
"""

import sys
from pathlib import Path

import pyarrow as pa
from ray.cluster_utils import Cluster

from stages.clean_text import clean_text
from wronai import corpus, params

ROOT = Path(__file__).parent.parent


def main(raw: Path, bundles: Path, clean: Path, lose: bool) -> None:
    config = params.load(ROOT / "params.yaml")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    add = corpus.SortedRuns.add
    batches = 0

    def add_and_lose(runs: corpus.SortedRuns, rows: pa.Table) -> None:
        nonlocal batches
        batches += 1
        add(runs, rows)
        if lose and batches == 2:
            cluster.remove_node(workers[0], allow_graceful=False)
            print(f"a worker is gone after {batches} batches")

    corpus.SortedRuns.add = add_and_lose  # type: ignore[method-assign]
    rules = config.clean.model_copy(update={"runner": "ray", "ray_address": cluster.address})
    clean_text(raw, clean, rules, config.seed, bundles)
    print(f"{batches} batches")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), lose="lose" in sys.argv[4:])
