import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wronai import params, quality, rules_page

MEASURED = quality.MEASURED
COUNTS = {
    "read": 3,
    "kept": 1,
    "dropped": {"too_short": 2},
    "by_source": {"moje": {"kept": 1, "dropped": {"too_short": 2}}},
}
METRICS: dict[str, Any] = {
    "documents": COUNTS,
    "instructions": {**COUNTS, "dropped": {}, "by_source": {"moje": {"kept": 3, "dropped": {}}}},
    "masked": {"PESEL": 4},
    "encodings": {"utf-8": 3},
    "documents_repaired": 0,
    "documents_cut": 1,
    "characters_cut": 1234,
    "contamination": {"reading": {"items": 68, "items_too_short": 2, "documents": 0, "instructions": 5}},
}


@pytest.fixture(scope="module")
def kinds() -> params.Kinds:
    return params.load(Path("params.yaml")).clean.rules


def row(**values: float) -> list[float]:
    return [values.get(measure, math.nan) for measure in MEASURED]


def test_values_are_counted_by_kind_and_nan_is_none(kinds: params.Kinds) -> None:
    histograms = rules_page.Histograms(kinds)
    values = np.array([row(words=10.0), row(words=150.0), row(words=1e9), row(), row(words=10.0)])
    histograms.add(np.array(["web", "web", "web", "web", "verse"]), values)
    counted = {(histogram.kind, histogram.measure): histogram for histogram in histograms}
    assert set(counted) == {("web", "words"), ("verse", "words")}
    web = counted["web", "words"]
    assert web.texts == 3
    assert web.counts[int(10 / web.top * rules_page.BINS)] == 1
    assert web.counts[-1] == 1


def test_a_rule_that_is_off_has_no_histogram(kinds: params.Kinds) -> None:
    histograms = rules_page.Histograms(kinds)
    histograms.add(np.array(["verse"]), np.array([[0.5] * len(MEASURED)]))
    measures = {histogram.measure for histogram in histograms}
    assert "language_confidence" in measures
    assert "share_top_2gram" not in measures


def test_the_steps_beyond_a_bound_are_those_that_the_rule_drops() -> None:
    histogram = rules_page.Histogram("web", "mean", (("min_mean", 3.0), ("max_mean", 12.0)), 60.0, np.zeros(60))
    assert [step for step in range(60) if not histogram.is_beyond(step)] == list(range(3, 12))


def test_examples_are_the_same_in_any_order() -> None:
    rows = [(f"moje/{number}", "moje", "too_short", float(number), f"tekst {number}") for number in range(50)]
    forth, back = rules_page.Examples(), rules_page.Examples()
    for example in rows:
        forth.add(*example)
    for example in reversed(rows):
        back.add(*example)
    assert forth.of("too_short") == back.of("too_short")
    assert len(forth.of("too_short")) == rules_page.EXAMPLES
    assert forth.of("too_long") == []


def test_the_page_does_not_change_with_the_benchmarks(kinds: params.Kinds) -> None:
    added = {"items": 4, "items_too_short": 0, "documents": 1, "instructions": 0}
    more = {**METRICS, "contamination": {**METRICS["contamination"], "zagadki": added}}
    histograms = rules_page.Histograms(kinds)
    histograms.add(np.array(["web"]), np.array([row(words=5.0)]))
    pages = [rules_page.page(metrics, list(histograms), rules_page.Examples()) for metrics in (METRICS, more)]
    assert pages[0] == pages[1]
    assert "items_too_short" not in pages[0] and "zagadki" not in pages[1]


def test_the_page_shows_counts_bounds_and_examples_and_escapes_text(kinds: params.Kinds) -> None:
    histograms = rules_page.Histograms(kinds)
    histograms.add(np.array(["web", "web"]), np.array([row(words=5.0), row(words=100.0)]))
    examples = rules_page.Examples()
    examples.add("moje/1", "moje", "too_short", 5.0, "<script>Za krótkie</script>")
    page = rules_page.page(METRICS, list(histograms), examples)
    assert "&lt;script&gt;Za krótkie" in page and "<script>" not in page
    assert '<h3 id="too_short">' in page and 'href="#too_short"' in page
    assert f"min_words {kinds.web.min_words}: 1 beyond" in page and "max_words 100000: 0 beyond" in page
    assert re.search(r'class="gone" x="\d+"', page) and re.search(r'class="kept" x="\d+"', page)
    assert "1,234 characters" in page
