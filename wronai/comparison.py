"""Base against tuned on the same items: paired differences, their bootstrap intervals, and what may be said of them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Verdict = Literal["better", "worse", "no difference"]
Floats = NDArray[np.float64]

CONFIDENCE = (2.5, 97.5)  # percentiles of the resampled differences that bound an interval
AT_ONCE = 1 << 22  # resampled items that are held at once: 32 MB


def paired(base: pd.DataFrame, tuned: pd.DataFrame, on: list[str]) -> pd.DataFrame:
    """A row for each thing that both were scored on. Raises ValueError if one was scored on more than the other."""
    both = base.merge(tuned, on=on, suffixes=("_base", "_tuned"), validate="one_to_one")
    if not len(both) == len(base) == len(tuned):
        raise ValueError(
            f"base and tuned were not scored on the same: {len(base)} and {len(tuned)} rows, {len(both)} of them agree "
            f"in {', '.join(on)}"
        )
    return both


def resampled(columns: Sequence[Floats], resamples: int, seed: int, name: str) -> Floats:
    """Sums of each of `columns` over rows that are drawn with replacement, [resamples, columns].

    A row's values stay together. The draws depend on `seed` and `name` alone, so a task more or less changes no other.
    """
    table = np.stack(columns, axis=1)
    rows = len(table)
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    sums = np.empty((resamples, len(columns)))
    step = max(1, AT_ONCE // (rows * len(columns)))
    for start in range(0, resamples, step):
        draws = generator.integers(0, rows, (min(step, resamples - start), rows))
        sums[start : start + len(draws)] = table[draws].sum(axis=1)
    return sums


def verdict(low: float, high: float, *, higher_is_better: bool) -> Verdict:
    """What an interval of the difference, tuned less base, allows to be said: nothing if it holds zero."""
    if low <= 0 <= high:
        return "no difference"
    return "better" if (low > 0) == higher_is_better else "worse"


def compare(both: pd.DataFrame, resamples: int, seed: int, name: str, *, higher_is_better: bool) -> dict[str, Any]:
    """Means and standard errors of `value_base` and `value_tuned`, and of their difference with its 95 % interval."""
    before, after = (both[f"value_{model}"].to_numpy(np.float64) for model in ("base", "tuned"))
    found: dict[str, Any] = {"items": len(both)}
    for key, values in (("base", before), ("tuned", after), ("difference", after - before)):
        found[key] = float(values.mean())
        found[f"{key}_stderr"] = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    drawn = resampled([after - before], resamples, seed, name)[:, 0] / len(both)
    return found | bounds(drawn, higher_is_better=higher_is_better)


def bounds(drawn: Floats, *, higher_is_better: bool) -> dict[str, Any]:
    """The 95 % interval of resampled differences, by percentiles, and the verdict on it."""
    low, high = (float(value) for value in np.percentile(drawn, CONFIDENCE))
    return {
        "difference_low": low,
        "difference_high": high,
        "verdict": verdict(low, high, higher_is_better=higher_is_better),
    }


def are_shares(both: pd.DataFrame) -> bool:
    """Whether all values of both models are between 0 and 1, as a mean over tasks wants them."""
    values = both[["value_base", "value_tuned"]].to_numpy()
    return bool(values.min() >= 0 and values.max() <= 1)


def compare_tasks(
    both: pd.DataFrame, told: Mapping[str, Any], resamples: int, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, pd.DataFrame]]:
    """By task and metric what `compare` says of `both`, the paired scores (task, metric, item, value) of two models.

    And for each task whose leading metric is a share of which more is better, the frame of that metric, as
    `compare_mean` takes it. `told` is the summary of each task that scoring left.
    """
    found: dict[str, dict[str, Any]] = {}
    leading: dict[str, pd.DataFrame] = {}
    for key, frame in both.groupby(["task", "metric"]):
        task, metric = (str(part) for part in key)
        better = bool(told[task]["higher_is_better"].get(metric, True))
        entry = compare(frame, resamples, seed, f"{task} {metric}", higher_is_better=better)
        found.setdefault(task, {})[metric] = entry
        if metric == told[task]["leading"] and better and are_shares(frame):
            leading[task] = frame
    return found, leading


def compare_mean(tasks: dict[str, pd.DataFrame], resamples: int, seed: int) -> dict[str, Any]:
    """The mean over tasks of their leading metric, each task alike, with the interval of its difference.

    `tasks` gives for each the frame that `compare` takes, of a metric between 0 and 1 of which more is better. Items
    are resampled within each task: the interval is of these tasks, and says nothing of others.
    """
    means = {
        model: float(np.mean([frame[f"value_{model}"].mean() for frame in tasks.values()]))
        for model in ("base", "tuned")
    }
    drawn = np.mean(
        [
            resampled([(frame["value_tuned"] - frame["value_base"]).to_numpy(np.float64)], resamples, seed, name)[:, 0]
            / len(frame)
            for name, frame in sorted(tasks.items())
        ],
        axis=0,
    )
    found = {"tasks": len(tasks), **means, "difference": means["tuned"] - means["base"]}
    return found | bounds(drawn, higher_is_better=True)


def bits_per_byte(nats: Any, size: Any) -> float:
    """Bits that a model needs for each byte of all texts together; comparable between tokenizers."""
    return float(np.sum(nats) / math.log(2) / np.sum(size))


def compare_bits(base: pd.DataFrame, tuned: pd.DataFrame, resamples: int, seed: int, name: str) -> dict[str, Any]:
    """Bits per byte of both models on the same texts (id, nats, bytes), and the 95 % interval of the difference."""
    both = paired(base, tuned, ["id", "bytes"])
    columns = [both[column].to_numpy(np.float64) for column in ("nats_base", "nats_tuned", "bytes")]
    sums = resampled(columns, resamples, seed, name)
    before, after = (bits_per_byte(both[f"nats_{model}"], both["bytes"]) for model in ("base", "tuned"))
    return {
        "texts": len(both),
        "bytes": int(columns[2].sum()),
        "base": before,
        "tuned": after,
        "difference": after - before,
        "relative": after / before - 1,
        **bounds((sums[:, 1] - sums[:, 0]) / sums[:, 2] / math.log(2), higher_is_better=False),
    }


def compare_help(
    own: tuple[pd.DataFrame, pd.DataFrame], others: tuple[pd.DataFrame, pd.DataFrame], resamples: int, seed: int
) -> dict[str, Any]:
    """How many bits for each byte of an answer its own question saves, compared with the question of another.

    `own` and `others` are the answers (id, nats, bytes) of base and tuned after their own questions and after others'.
    More is better: a model that does not read the question saves nothing.
    """
    columns = ["id", "nats", "bytes"]
    both, exchanged = (paired(base[columns], tuned[columns], ["id", "bytes"]) for base, tuned in (own, others))
    table = exchanged.merge(both, on=["id", "bytes"], suffixes=("_others", "_own"), validate="one_to_one")
    saved = {
        model: (table[f"nats_{model}_others"] - table[f"nats_{model}_own"]).to_numpy(np.float64)
        for model in ("base", "tuned")
    }
    size = table["bytes"].to_numpy(np.float64)
    sums = resampled([saved["base"], saved["tuned"], size], resamples, seed, "help")
    before, after = (bits_per_byte(saved[model], size) for model in ("base", "tuned"))
    return {
        "texts": len(table),
        "base": before,
        "tuned": after,
        "difference": after - before,
        **bounds((sums[:, 1] - sums[:, 0]) / sums[:, 2] / math.log(2), higher_is_better=True),
    }


def overall(verdicts: Iterable[Verdict]) -> Verdict | Literal["mixed"]:
    """The verdict on the tuned model where `verdicts` are those on its parts: mixed if some are better, some worse."""
    said = set(verdicts) - {"no difference"}
    return "mixed" if len(said) > 1 else next(iter(said), "no difference")
