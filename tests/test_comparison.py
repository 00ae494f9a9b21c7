import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wronai import comparison

SEED = 42
RESAMPLES = 1000


def items(base: Any, tuned: Any) -> pd.DataFrame:
    """What `compare` takes."""
    return pd.DataFrame({"value_base": np.asarray(base, float), "value_tuned": np.asarray(tuned, float)})


def scored(values: list[float], ids: str) -> pd.DataFrame:
    return pd.DataFrame({"task": "t", "item": list(ids), "value": values})


def texts(nats: Any, size: Any) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"text-{number}" for number in range(len(nats))], "nats": nats, "bytes": size})


def bits(base: Any, tuned: Any, size: Any, seed: int = SEED, resamples: int = RESAMPLES) -> dict[str, Any]:
    return comparison.compare_bits(texts(base, size), texts(tuned, size), resamples, seed, "documents")


def width(found: dict[str, Any]) -> float:
    return float(found["difference_high"] - found["difference_low"])


def test_rows_are_paired_by_what_they_were_scored_on() -> None:
    found = comparison.paired(scored([1, 2, 3], "abc"), scored([30, 10, 20], "cab"), ["task", "item"])
    assert dict(zip(found["item"], zip(found["value_base"], found["value_tuned"], strict=True), strict=True)) == {
        "a": (1, 10),
        "b": (2, 20),
        "c": (3, 30),
    }


@pytest.mark.parametrize(
    ("base", "tuned", "message"),
    [
        ("ab", "a", "2 and 1 rows, 1 of them"),
        ("a", "ab", "1 and 2 rows, 1 of them"),
        ("ab", "bc", "2 and 2 rows, 1 of"),
    ],
)
def test_scores_of_different_things_are_not_paired(base: str, tuned: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"not scored on the same: {message} .*agree in task, item$"):
        comparison.paired(scored([0.0] * len(base), base), scored([0.0] * len(tuned), tuned), ["task", "item"])


def test_a_thing_that_was_scored_twice_is_not_paired() -> None:
    with pytest.raises(ValueError, match="not a one-to-one merge"):
        comparison.paired(scored([0, 0], "aa"), scored([0, 0], "aa"), ["task", "item"])


def test_sums_repeat_by_seed_and_name() -> None:
    values = np.random.default_rng(1).normal(size=50)

    def drawn(seed: int, name: str) -> Any:
        return comparison.resampled([values], 20, seed, name)

    first = drawn(1, "a")
    assert first.shape == (20, 1)
    drawn(7, "z")
    assert (drawn(1, "a") == first).all()
    assert (drawn(2, "a") != first).any() and (drawn(1, "b") != first).any()


def test_sums_are_of_as_many_rows_drawn_with_replacement() -> None:
    powers = 10.0 ** np.arange(3)
    sums = comparison.resampled([powers], 500, SEED, "t")[:, 0]
    digits = [sorted(f"{int(value):03d}") for value in sums]
    assert all(sum(map(int, each)) == 3 for each in digits)
    share = {tuple(each): digits.count(each) / 500 for each in digits}
    expected = {("1", "1", "1"): 6 / 27, ("0", "1", "2"): 18 / 27, ("0", "0", "3"): 3 / 27}
    assert share == pytest.approx(expected, abs=0.08)


def test_the_values_of_a_row_stay_together() -> None:
    values = np.random.default_rng(1).normal(size=30)
    sums = comparison.resampled([values, 2 * values, np.ones(30)], 100, SEED, "t")
    assert sums[:, 1] == pytest.approx(2 * sums[:, 0])
    assert (sums[:, 2] == 30).all()


@pytest.mark.parametrize("at_once", [1, 100, 101, 350, 1000])
def test_sums_in_parts_are_those_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=25)
    for columns in ([values], [values, -values]):
        expected = comparison.resampled(columns, 41, SEED, "t")
        with monkeypatch.context() as patch:
            patch.setattr(comparison, "AT_ONCE", at_once)
            found = comparison.resampled(columns, 41, SEED, "t")
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.2, "better"),
        (-0.2, -0.1, "worse"),
        (-0.1, 0.2, "no difference"),
        (0.0, 0.2, "no difference"),
        (-0.2, 0.0, "no difference"),
        (0.0, 0.0, "no difference"),
    ],
)
def test_what_an_interval_allows_to_be_said(low: float, high: float, expected: str) -> None:
    assert comparison.verdict(low, high, higher_is_better=True) == expected
    assert comparison.verdict(-high, -low, higher_is_better=False) == expected


def test_bounds_are_the_percentiles_that_leave_one_in_forty_on_each_side() -> None:
    found = comparison.bounds(np.random.default_rng(1).permutation(np.arange(1.0, 1002.0)), higher_is_better=False)
    assert found == {"difference_low": 26.0, "difference_high": 976.0, "verdict": "worse"}


def test_a_comparison_holds_means_and_paired_standard_errors() -> None:
    found = comparison.compare(items([0, 0, 1, 1], [0, 1, 1, 1]), RESAMPLES, SEED, "t", higher_is_better=True)
    assert (found["items"], found["base"], found["tuned"], found["difference"]) == (4, 0.5, 0.75, 0.25)
    assert found["base_stderr"] == pytest.approx(np.std([0, 0, 1, 1], ddof=1) / 2)
    assert found["tuned_stderr"] == pytest.approx(np.std([0, 1, 1, 1], ddof=1) / 2)
    assert found["difference_stderr"] == pytest.approx(np.std([0, 1, 0, 0], ddof=1) / 2)
    assert (found["difference_low"], found["difference_high"], found["verdict"]) == (0.0, 0.75, "no difference")


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_clear_difference_is_better_or_worse_by_the_direction(higher_is_better: bool) -> None:
    low, high = np.zeros(40), np.repeat([1.0, 0.0], [30, 10])
    up = comparison.compare(items(low, high), RESAMPLES, SEED, "t", higher_is_better=higher_is_better)
    down = comparison.compare(items(high, low), RESAMPLES, SEED, "t", higher_is_better=higher_is_better)
    assert (up["verdict"], down["verdict"]) == (("better", "worse") if higher_is_better else ("worse", "better"))
    assert (down["difference_low"], down["difference_high"]) == (-up["difference_high"], -up["difference_low"])


def test_equal_scores_are_no_difference_whatever_they_are() -> None:
    values = np.random.default_rng(1).normal(size=20)
    found = comparison.compare(items(values, values), RESAMPLES, SEED, "t", higher_is_better=True)
    assert (found["difference_low"], found["difference_high"], found["verdict"]) == (0, 0, "no difference")


def test_one_item_has_no_standard_error() -> None:
    found = comparison.compare(items([0.0], [1.0]), RESAMPLES, SEED, "t", higher_is_better=True)
    assert (found["base_stderr"], found["tuned_stderr"], found["difference_stderr"]) == (0, 0, 0)


def test_pairs_have_a_narrower_interval_than_the_same_values_unpaired() -> None:
    chance = np.random.default_rng(1)
    easy = chance.normal(size=300)  # how easy an item is for both
    base, tuned = easy + 0.3 * chance.normal(size=300), easy + 0.1 + 0.3 * chance.normal(size=300)
    pairs = comparison.compare(items(base, tuned), RESAMPLES, SEED, "t", higher_is_better=True)
    apart = comparison.compare(items(base, chance.permutation(tuned)), RESAMPLES, SEED, "t", higher_is_better=True)
    assert pairs["difference"] == pytest.approx(apart["difference"])
    assert width(pairs) < width(apart) / 2
    assert (pairs["verdict"], apart["verdict"]) == ("better", "no difference")


def hits(found: list[tuple[dict[str, Any], float]]) -> float:
    """The share of intervals that hold the truth."""
    return float(np.mean([each["difference_low"] <= truth <= each["difference_high"] for each, truth in found]))


def test_intervals_hold_the_true_difference_of_accuracies_19_times_in_20() -> None:
    found = []
    shares = np.random.default_rng(0).beta(2, 2, 1_000_000)
    truth = float((np.clip(shares + 0.05, 0, 1) - np.clip(shares - 0.05, 0, 1)).mean())
    for number in range(400):
        chance = np.random.default_rng(number)
        easy = chance.beta(2, 2, 150)
        base, tuned = (chance.random(150) < np.clip(easy + more, 0, 1) for more in (-0.05, 0.05))
        found.append((comparison.compare(items(base, tuned), 400, number, "t", higher_is_better=True), truth))
    assert hits(found) == pytest.approx(0.95, abs=0.03)


def test_intervals_hold_the_true_difference_of_bits_19_times_in_20() -> None:
    found = []
    for number in range(400):
        chance = np.random.default_rng(number)
        size = chance.integers(20, 400, 120)
        base = size * chance.gamma(4, 0.2, 120)  # 0.8 nats per byte
        tuned = 0.9 * base + size * chance.normal(0, 0.05, 120)
        found.append((bits(base, tuned, size, number, 400), -0.08 / math.log(2)))
    assert hits(found) == pytest.approx(0.95, abs=0.03)


def test_intervals_of_the_mean_over_tasks_hold_its_truth_19_times_in_20() -> None:
    found = []
    for number in range(400):
        chance = np.random.default_rng(number)
        tasks = {}
        for name, size, share in (("a", 40, 0.2), ("b", 200, 0.0), ("c", 90, 0.1)):
            base = chance.random(size) < 0.5
            tasks[name] = items(base, base | (chance.random(size) < share))
        found.append((comparison.compare_mean(tasks, 400, number), (0.2 + 0.0 + 0.1) / 2 / 3))
    assert hits(found) == pytest.approx(0.95, abs=0.03)


def test_each_task_counts_alike_in_the_mean_whatever_its_size() -> None:
    tasks = {"small": items([0] * 4, [1] * 4), "large": items([1] * 400, [1] * 400)}
    found = comparison.compare_mean(tasks, RESAMPLES, SEED)
    assert found == {
        "tasks": 2,
        "base": 0.5,
        "tuned": 1.0,
        "difference": 0.5,
        "difference_low": 0.5,
        "difference_high": 0.5,
        "verdict": "better",
    }


def test_items_of_one_task_are_not_drawn_for_another() -> None:
    chance = np.random.default_rng(1)
    tasks = {"small": items(chance.random(10), chance.random(10)), "large": items([0] * 400, [1] * 400)}
    found = comparison.compare_mean(tasks, RESAMPLES, SEED)
    alone = comparison.compare(tasks["small"], RESAMPLES, SEED, "small", higher_is_better=True)
    assert found["difference_low"] == pytest.approx((alone["difference_low"] + 1) / 2)
    assert found["difference_high"] == pytest.approx((alone["difference_high"] + 1) / 2)


def test_the_mean_does_not_depend_on_the_order_of_tasks() -> None:
    chance = np.random.default_rng(1)
    tasks = {name: items(chance.random(30), chance.random(30)) for name in "abc"}
    backwards = dict(reversed(tasks.items()))
    assert comparison.compare_mean(tasks, 50, SEED) == pytest.approx(comparison.compare_mean(backwards, 50, SEED))


def test_bits_are_of_all_texts_together() -> None:
    size = np.array([100, 300])
    found = bits(np.array([100.0, 100.0]) * math.log(2), np.array([80.0, 80.0]) * math.log(2), size)
    assert (found["texts"], found["bytes"]) == (2, 400)
    assert (found["base"], found["tuned"], found["difference"]) == pytest.approx((0.5, 0.4, -0.1))
    assert found["relative"] == pytest.approx(-0.2)
    # Both draws may be of either text: 20 bits of 100 bytes less, or of 300.
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((-20 / 100, -20 / 300))


def test_fewer_bits_are_better_and_more_are_worse() -> None:
    chance = np.random.default_rng(1)
    size = chance.integers(50, 100, 60)
    nats = size * 0.7
    less = nats * 0.95 + chance.normal(size=60)
    assert (bits(nats, less, size)["verdict"], bits(less, nats, size)["verdict"]) == ("better", "worse")
    assert bits(nats, nats + chance.normal(size=60), size)["verdict"] == "no difference"


def test_bits_of_different_texts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="2 and 2 rows, 1 of them agree in id, bytes"):
        comparison.compare_bits(texts([1.0, 2.0], [3, 4]), texts([1.0, 2.0], [3, 5]), 100, 1, "documents")


def helped(base: Any, tuned: Any, others: Any, size: Any) -> dict[str, Any]:
    """Both models give an answer `others` nats after another's question, and `base` and `tuned` after its own."""
    own, exchanged = ((texts(first, size), texts(second, size)) for first, second in ((base, tuned), (others, others)))
    return comparison.compare_help(own, exchanged, RESAMPLES, SEED)


def test_a_question_helps_by_the_bits_that_it_saves() -> None:
    size, others = np.array([100, 300]), np.array([90.0, 200.0]) * math.log(2)
    found = helped(others, others - 40 * math.log(2), others, size)
    assert (found["texts"], found["base"], found["verdict"]) == (2, 0, "better")
    assert (found["tuned"], found["difference"]) == pytest.approx((0.2, 0.2))
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((40 / 300, 40 / 100))


def test_a_model_that_reads_its_question_less_is_worse() -> None:
    chance = np.random.default_rng(1)
    size = chance.integers(50, 100, 60)
    others = size * 0.7
    own = others - chance.normal(10, 2, 60)
    assert helped(own, others, others, size)["verdict"] == "worse"
    assert helped(own, own + chance.normal(size=60), others, size)["verdict"] == "no difference"


def test_the_verdict_on_all_is_what_none_contradicts() -> None:
    verdicts: tuple[comparison.Verdict, ...] = ("better", "worse", "no difference")
    for parts in range(4):
        for said in itertools.product(verdicts, repeat=parts):
            told = set(said) - {"no difference"}
            expected = {0: "no difference", 1: min(told, default=""), 2: "mixed"}[len(told)]
            assert comparison.overall(iter(said)) == expected
