"""The page by which a person judges the rules: what each dropped, how its values lie about its bound, and examples."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import numpy as np

from wronai import params, quality

BINS = 60
EXAMPLES = 6  # of each reason and source

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Histogram:
    """How many texts of a kind have values in each of BINS steps from 0 to `top`; the last step holds all above too."""

    kind: str
    measure: str
    bounds: tuple[tuple[str, float], ...]  # of the rules on this measure: (field of params.Rules, value)
    top: float
    counts: Array
    beyond: Counter[str] = field(default_factory=Counter)  # texts by the name of the bound that they do not keep

    @property
    def texts(self) -> int:
        return int(self.counts.sum())

    def is_beyond(self, step: int) -> bool:
        """Whether a rule drops what lies in the middle of this step."""
        middle = (step + 0.5) * self.top / BINS
        return any(_fails(name, bound, middle) for name, bound in self.bounds)


class Histograms:
    """Counts the values of every measure that a rule bounds, by kind of text, as batches come by."""

    def __init__(self, kinds: params.Kinds) -> None:
        self._histograms: dict[str, dict[int, Histogram]] = {}
        for kind in params.Kinds.model_fields:
            rules = getattr(kinds, kind)
            bounds: dict[str, list[tuple[str, float]]] = defaultdict(list)
            for rule in quality.RULES:
                value = getattr(rules, rule.bound)
                if value is not None:
                    bounds[rule.measure].append((rule.bound, float(value)))
            self._histograms[kind] = {
                quality.MEASURED.index(measure): Histogram(
                    kind, measure, tuple(found), _top(measure, found), np.zeros(BINS, dtype=np.int64)
                )
                for measure, found in bounds.items()
            }

    def add(self, kinds: Array, values: Array) -> None:
        """Count the rows of `values`, [texts, quality.MEASURED]; NaN is no value."""
        for kind in sorted(set(kinds.tolist())):
            rows = values[kinds == kind]
            for column, histogram in self._histograms[kind].items():
                found = rows[:, column]
                found = found[~np.isnan(found)]
                for name, bound in histogram.bounds:
                    histogram.beyond[name] += int(np.count_nonzero(_fails(name, bound, found)))
                steps = np.minimum(found * (BINS / histogram.top), BINS - 1).astype(np.int64)
                histogram.counts[:] += np.bincount(steps, minlength=BINS)

    def __iter__(self) -> Any:
        """Those that counted something, by kind and measure."""
        for by_measure in self._histograms.values():
            yield from (histogram for histogram in by_measure.values() if histogram.texts)


def _fails(name: str, bound: float, value: Any) -> Any:
    """Whether a rule on `value`, or on each of an array, drops a text."""
    return value < bound if name.startswith("min_") else value > bound


def _top(measure: str, bounds: Sequence[tuple[str, float]]) -> float:
    """Where the axis ends: well beyond the bounds, but a share ends at 1 and a text's length where most texts do."""
    if measure == "words":
        return 10 * min(bound for _, bound in bounds)
    top = max(bound * (4 if name.startswith("min_") else 2.5) for name, bound in bounds) or 1.0
    return min(top, 1.0) if measure.startswith("share") or measure.endswith("confidence") else top


class Examples:
    """Up to EXAMPLES rejected texts of each reason and source, drawn by a hash of their ids: the same in any order."""

    def __init__(self) -> None:
        self._drawn: dict[tuple[str, str], list[tuple[int, str, float, str]]] = defaultdict(list)

    def add(self, name: str, source: str, reason: str, value: float, text: str) -> None:
        drawn = self._drawn[reason, source]
        lot = -int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
        heapq.heappush(drawn, (lot, name, value, text))
        if len(drawn) > EXAMPLES:
            heapq.heappop(drawn)

    def of(self, reason: str) -> list[dict[str, Any]]:
        return [
            {"id": name, "source": source, "value": value, "text": text}
            for (of, source), drawn in sorted(self._drawn.items())
            if of == reason
            for _, name, value, text in sorted(drawn, key=lambda entry: entry[1])
        ]


PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>WronAI: what cleaning did</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.t { overflow-wrap: anywhere; }
.all { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
figcaption { font-size: .85rem; line-height: 1.35; }
svg { width: 100%; height: 5rem; background: #f6f6f6; }
.kept { fill: #4a7ba6; } .gone { fill: #c0563b; } line { stroke: #222; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  body { background: #181a1b; color: #ddd; } th, td { border-color: #444; } svg { background: #26292b; }
  line { stroke: #eee; }
}
</style>
</head>
<body>
<h1>What cleaning did</h1>
{% for role in ("documents", "instructions") %}
<h2>{{ role | capitalize }}</h2>
<p>{{ "{:,}".format(m[role].read) }} read, {{ "{:,}".format(m[role].kept) }} kept.</p>
<table>
<tr><th>source</th><th>kept</th><th>dropped</th></tr>
{% for source, counts in m[role].by_source.items() %}
<tr><td>{{ source }}</td><td class="n">{{ "{:,}".format(counts.kept) }}</td>
<td>{% for reason, times in counts.dropped.items() %}{{ ", " if not loop.first }}
<a href="#{{ reason }}">{{ reason }}</a> {{ "{:,}".format(times) }}{% endfor %}</td></tr>
{% endfor %}
</table>
{% endfor %}
<h2>Other counts</h2>
<table>
<tr><td>personal data masked</td><td>{% for name, times in m.masked.items() %}{{ ", " if not loop.first }}[{{ name }}]
 {{ "{:,}".format(times) }}{% endfor %}</td></tr>
<tr><td>encodings</td><td>{% for name, times in m.encodings.items() %}{{ ", " if not loop.first }}{{ name }}
 {{ "{:,}".format(times) }}{% endfor %}</td></tr>
<tr><td>documents whose wrong code page was repaired</td><td>{{ "{:,}".format(m.documents_repaired) }}</td></tr>
<tr><td>documents with foreign paragraphs cut</td><td>{{ "{:,}".format(m.documents_cut) }}, in all
 {{ "{:,}".format(m.characters_cut) }} characters</td></tr>
</table>
<h2>Values and bounds</h2>
<p>Every text that could be read, also those that another rule dropped first. What lies beyond a bound is red; the last
bar holds all higher values too; heights are logarithmic.</p>
{% for kind, group in histograms | groupby("kind") %}
<h3>{{ kind }}, {{ "{:,}".format(group | map(attribute="texts") | max) }} texts</h3>
<div class="all">
{% for h in group %}
<figure><svg viewBox="0 0 600 100" preserveAspectRatio="none" role="img" aria-label="{{ h.measure }}">
{% for count in h.counts.tolist() %}{% if count %}{% set height = 98 * heights(count, h) %}<rect\
 class="{{ "gone" if h.is_beyond(loop.index0) else "kept" }}" x="{{ 10 * loop.index0 }}"\
 y="{{ "%.1f" % (100 - height) }}" width="9" height="{{ "%.1f" % height }}"/>{% endif %}{% endfor %}
{% for name, bound in h.bounds %}{% if bound <= h.top %}<line x1="{{ "%.1f" % (600 * bound / h.top) }}" y1="0"\
 x2="{{ "%.1f" % (600 * bound / h.top) }}" y2="100"/>{% endif %}{% endfor %}
</svg><figcaption><b>{{ h.measure }}</b>, 0 to {{ "%g" % h.top }}
{% for name, bound in h.bounds %}<br>{{ name }} {{ "%g" % bound }}: {{ "{:,}".format(h.beyond[name]) }} beyond
{% endfor %}</figcaption></figure>
{% endfor %}
</div>
{% endfor %}
<h2>Examples of what went</h2>
{% for reason in reasons %}
<h3 id="{{ reason }}">{{ reason }}</h3>
<table>
<tr><th>id</th><th>value</th><th>how it begins</th></tr>
{% for e in examples.of(reason) %}
<tr><td class="t">{{ e.id }}</td><td class="n">{{ "%g" % e.value }}</td><td class="t">{{ e.text }}</td></tr>
{% endfor %}
</table>
{% endfor %}
</body>
</html>
"""


def page(metrics: Mapping[str, Any], histograms: Sequence[Histogram], examples: Examples) -> str:
    """One HTML page that needs no other file; `metrics` are those of clean_text."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True)
    reasons = sorted({reason for role in ("documents", "instructions") for reason in metrics[role]["dropped"]})
    return environment.from_string(PAGE).render(
        m=metrics, histograms=histograms, examples=examples, reasons=reasons, heights=_height
    )


def _height(count: int, histogram: Histogram) -> float:
    """Of a bar, 0 to 1, so that a few texts among many can still be seen."""
    return float(np.log1p(count) / np.log1p(histogram.counts.max()))
