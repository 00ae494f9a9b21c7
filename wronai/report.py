"""The report of a run, as Markdown and as one self-contained page."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markdown_it import MarkdownIt

from wronai import params

TEMPLATE = """\
# WronAI: report of a run

Base: {{ base }}, {{ "{:,}".format(m.prepare_base.parameters) }} parameters. LoRA r {{ p["finetune.lora.r"] }}, \
lora_alpha {{ p["finetune.lora.lora_alpha"] }}, {{ quantization }}, \
{{ m.finetune_qlora.steps }} steps over {{ "{:,}".format(m.finetune_qlora.tokens_seen) }} tokens, seed {{ p["seed"] }}.

## Does the tuned model beat its base?

Verdict: **{{ e.verdict }}**{{ partial }}. {{ verdicts }}

Bits per byte on held-out text (less is better), with the 95 % interval of the paired difference. The models' tokenizers
differ, so perplexity by token would compare nothing.

{{ bits }}

`xz -9` needs {{ "%.3f" % e.bits_per_byte.documents_xz }} bits per byte for the same documents{{ partial }}. \
In plain text the tuned model needs {{ "%.3f" % e.bits_per_byte.answers.tuned_plain }} for the answers{{ partial }}.

{{ "%.0f %%" % (100 * e.generations.closed) }} of {{ e.generations.answers }} generated answers close as the format \
wants{{ partial }}; at temperature zero {{ "%.0f %%" % (100 * e.generations.closed_greedy) }}{{ partial }}.

## Benchmarks

lm_eval; the base is asked in plain text, the tuned model in the WronAI format and, beside it, in plain text. The
interval is of the difference between the base and the WronAI format, by a bootstrap over the items; what holds zero is
called no difference. Of {{ intervals }} intervals at 95 %, about {{ "%.0f" % (intervals / 20) }} would miss zero by
chance alone. Floor: the best of guessing, the majority class and, with few-shot examples, a character n-gram
classifier trained on them.

![differences](differences.svg)

{{ benchmarks }}

{{ counted }}

## Training

![loss curve](loss_curve.svg)

Validation loss {{ "%.3f" % m.finetune_qlora.validation_loss_before }} before, \
{{ "%.3f" % m.finetune_qlora.validation_loss }} after; \
{{ "{:,}".format(m.finetune_qlora.trainable_parameters) }} trainable parameters.

## Merge

{{ merged_into }}\
{% for held, parity in parities -%}
{{ "%.2f %%" % (100 * parity.equal_next_tokens) }} of next tokens are those of the adapter on {{ held }} \
({{ "{:,}".format(parity.positions) }} positions), mean KL {{ "%.1e" % parity.mean_kl }} nats, \
largest logit difference {{ "%.1e" % parity.max_logit_difference }}.
{% endfor %}\

## Data

{{ m.clean_text.documents.kept }} of {{ m.clean_text.documents.read }} documents and \
{{ m.clean_text.instructions.kept }} of {{ m.clean_text.instructions.read }} instructions kept. What went, and why:

{{ dropped }}

## Answers to read

{% for s in samples -%}
### {{ s.question | e | replace("\n", " ") }}

*{{ s.register }}, {{ "closed" if s.closed else "not closed" }}*

- tuned: {{ s.tuned | e | replace("\n", " ") }}
- tuned, formal: {{ s.formal | e | replace("\n", " ") }}
- tuned, informal: {{ s.informal | e | replace("\n", " ") }}
- base: {{ s.base | e | replace("\n", " ") }}
- reference: {{ s.reference | e | replace("\n", " ") }}

{% endfor -%}
"""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>WronAI: report of a run</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .7rem; text-align: left; }
h3 { font-size: 1rem; margin: 1.6rem 0 .2rem; }
svg { max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) {
  body { background: #181a1b; color: #ddd; }
  th, td { border-color: #444; }
  svg { background: #fff; }
}
</style>
</head>
<body>
BODY</body>
</html>
"""


def read(metrics: Path, stages: list[str]) -> dict[str, Any]:
    """The metrics of every stage by name, and under "samples" the answers to read.

    Raises FileNotFoundError for a stage without metrics.
    """
    found: dict[str, Any] = {}
    for stage in stages:
        path = metrics / f"{stage}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; the stage {stage} writes it")
        found[stage] = json.loads(path.read_text(encoding="utf-8"))
    lines = (metrics / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    found["samples"] = [json.loads(line) for line in lines]
    return found


def markdown(found: dict[str, Any], config: params.Params) -> str:
    """The report as Markdown; `found` is what `read` gives."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    model = config.model
    name = {"scratch": "a Mistral from scratch", "local": model.path, "hub": f"{model.repository} at {model.revision}"}
    evaluated, partial = whole(found["evaluate_benchmarks"])
    entries = [entry for by_metric in evaluated["benchmarks"].values() for entry in by_metric.values()]
    return environment.from_string(TEMPLATE).render(
        m=found,
        e=evaluated,
        p=params.flatten(config),
        base=name[model.base],
        partial=" (partial)" if partial else "",
        verdicts=_verdicts(evaluated),
        intervals=len(entries),
        quantization=_quantization(config.finetune.quantization),
        parities=_parities(found["merge_adapters"], config.finetune.quantization),
        merged_into=_merged_into(found["merge_adapters"], config.merge),
        bits=_bits_table(evaluated["bits_per_byte"], partial=partial),
        benchmarks=_benchmark_table(evaluated, found["clean_text"]["contamination"], partial=partial),
        counted=_counted(evaluated["tasks"]),
        dropped=_dropped_table(found["clean_text"]),
        samples=found["samples"],
    )


def whole(evaluated: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """What evaluate_benchmarks found, and whether it is of a part of the items (`evaluate.limit`)."""
    return (evaluated["partial"], True) if "partial" in evaluated else (evaluated, False)


def _quantization(settings: params.Quantization) -> str:
    if settings.load_in_4bit:
        return settings.bnb_4bit_quant_type + " with double quantization" * settings.bnb_4bit_use_double_quant
    return "8 bits (LLM.int8())" if settings.load_in_8bit else f"not quantized, {settings.bnb_4bit_compute_dtype}"


def _parities(merged: dict[str, Any], quantization: params.Quantization) -> list[tuple[str, dict[str, Any]]]:
    """What the merged model was compared with, and how near it is: always what was trained, and what else there is."""
    found = [(quantization.held, merged["parity"])]
    if "parity_on_original" in merged:
        found.append(("the original weights", merged["parity_on_original"]))
    return found


def _merged_into(merged: dict[str, Any], settings: params.Merge) -> str:
    """Which weights the delta was added to, where it is not the dequantized ones that the parameters asked for."""
    if settings.base_weights == "dequantized":
        return ""
    if settings.base_weights == "original":
        return "Merged into the original weights, not into those that the adapter was trained on.\n\n"
    choice = merged["base_weights"]
    losses = ", ".join(f"{choice[name]['validation_loss']:.4f} {name}" for name in ("dequantized", "original"))
    return f"Merged into the {choice['chosen']} weights, of the lower validation loss: {losses}.\n\n"


def _verdicts(evaluated: dict[str, Any]) -> str:
    """What the verdict is made of, in words."""
    bits = evaluated["bits_per_byte"]
    parts = [f"held-out answers {bits['answers']['verdict']}", f"held-out documents {bits['documents']['verdict']}"]
    if "help_of_question" in bits:
        helps = bits["help_of_question"]
        parts.append(
            f"use of the question {helps['verdict']} (it saves {helps['base']:.3f} bits for each byte of an answer "
            f"before and {helps['tuned']:.3f} after, {helps['difference']:+.3f}, {helps['difference_low']:+.3f} to "
            f"{helps['difference_high']:+.3f})"
        )
    if "mean" in evaluated:
        mean = evaluated["mean"]
        parts.append(
            f"the mean over {mean['tasks']} tasks {mean['verdict']} ({mean['base']:.3f} to {mean['tuned']:.3f}, "
            f"{mean['difference']:+.3f}, {mean['difference_low']:+.3f} to {mean['difference_high']:+.3f})"
        )
    said = [f"{task} {metric}" for task, metric, entry in _entries(evaluated) if entry["verdict"] == "worse"]
    return "; ".join(parts) + ". " + (f"Worse: {', '.join(said)}." if said else "No benchmark is worse.")


def _entries(evaluated: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Each task and metric with its comparison, the metric that stands for the task first."""
    return [
        (task, metric, by_metric[metric])
        for task, by_metric in sorted(evaluated["benchmarks"].items())
        for metric in sorted(by_metric, key=lambda name: (name != evaluated["tasks"][task]["leading"], name))
    ]


def _bits_table(bits: dict[str, Any], *, partial: bool) -> str:
    """A row for each kind of held-out text, and for each of its sources where there are several."""
    rows = []
    for kind in ("documents", "answers", "retention"):
        by_source = bits[kind]["by_source"]
        apart = len(by_source) > 1 or kind == "retention"  # which is named by its language, even a single one
        named = [(kind, bits[kind])] if len(by_source) > 1 or kind != "retention" else []
        for name, entry in [*named, *((f"{kind}: {source}", by_source[source]) for source in by_source if apart)]:
            rows.append(
                {
                    "held-out text": name + " (partial)" * partial,
                    "texts": entry["texts"],
                    "base": f"{entry['base']:.3f}",
                    "tuned": f"{entry['tuned']:.3f}",
                    "difference": f"{entry['difference']:+.3f}",
                    "95 % interval": f"{entry['difference_low']:+.3f} to {entry['difference_high']:+.3f}",
                    "relative": f"{100 * entry['relative']:+.1f} %",
                    "verdict": entry["verdict"],
                }
            )
    return _table(pd.DataFrame(rows))


def _benchmark_table(evaluated: dict[str, Any], contamination: dict[str, Any], *, partial: bool) -> str:
    documents = evaluated["bits_per_byte"]["documents"]
    parts = [("held-out Polish", documents)]
    if len(documents["by_source"]) > 1:
        parts += [(f"held-out Polish: {source}", entry) for source, entry in documents["by_source"].items()]
    rows = [
        {
            "task": name + " (partial)" * partial,
            "metric": "bits per byte, less is better",
            "shots": "",
            "items": s["texts"],
            "floor": "",
            "base": f"{s['base']:.3f}",
            "tuned, plain": f"{s['tuned']:.3f}",
            "tuned": "",
            "difference": f"{s['difference']:+.3f}",
            "95 % interval": f"{s['difference_low']:+.3f} to {s['difference_high']:+.3f}",
            "verdict": s["verdict"],
            "texts that quote it": "",
        }
        for name, s in parts
    ]
    for task, metric, s in _entries(evaluated):
        told = evaluated["tasks"][task]
        floor = max(told["floors"].values()) if told["floors"] and metric.startswith("acc") else None
        shared = contamination.get(task, {"documents": 0, "instructions": 0})
        rows.append(
            {
                "task": task + " (partial)" * partial,
                "metric": metric,
                "shots": told["num_fewshot"],
                "items": s["items"],
                "floor": "" if floor is None else f"{floor:.3f}",
                "base": f"{s['base']:.3f} ± {s['base_stderr']:.3f}",
                "tuned, plain": f"{s['tuned_plain']:.3f}" if "tuned_plain" in s else "",
                "tuned": f"{s['tuned']:.3f} ± {s['tuned_stderr']:.3f}",
                "difference": f"{s['difference']:+.3f}",
                "95 % interval": f"{s['difference_low']:+.3f} to {s['difference_high']:+.3f}",
                "verdict": s["verdict"],
                "texts that quote it": shared["documents"] + shared["instructions"],
            }
        )
    return _table(pd.DataFrame(rows))


def _counted(tasks: dict[str, Any]) -> str:
    """How many items were cut, did not end, or did not close, where any did."""
    words = {"cut": "cut to fit into the context", "not_ended": "not ended", "not_closed": "not closed by the format"}
    said = [
        f"{task} {format_}: {count} {words[key]}"
        for task, told in sorted(tasks.items())
        for format_, counts in sorted(told["formats"].items())
        for key, count in sorted(counts.items())
        if count
    ]
    return "Counted: " + "; ".join(said) + "." if said else "No item was cut, and every answer ended."


def _dropped_table(cleaned: dict[str, Any]) -> str:
    rows = [
        {"role": role, "reason": reason, "count": count}
        for role in ("documents", "instructions")
        for reason, count in cleaned[role]["dropped"].items()
    ]
    return _table(pd.DataFrame(rows)) if rows else "Nothing went."


def _table(frame: pd.DataFrame) -> str:
    """`frame` as a Markdown table."""
    lines = ["| " + " | ".join(frame.columns) + " |", "|" + " --- |" * len(frame.columns)]
    lines += ["| " + " | ".join(str(value) for value in row) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines)


def loss_curve(path: Path) -> str:
    """The losses by step in the CSV file `path` as an SVG image, the same bytes for the same numbers."""
    frame = pd.read_csv(path)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for column, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
            points = frame[["step", column]].dropna()
            axes.plot(points["step"], points[column], style, label=label, markersize=4)
        axes.set(xlabel="optimizer step", ylabel="loss (nats a token)")
        axes.grid(alpha=0.3)
        axes.legend()

    return _svg(draw, 3.2)


def differences(path: Path) -> str:
    """The differences in the CSV file `path` with their intervals as an SVG image: shares left, bits per byte right."""
    frame = pd.read_csv(path).iloc[::-1]
    colours = {"better": "#1a7f37", "worse": "#b3261e", "no difference": "#777777"}
    bits = frame["metric"] == "bits_per_byte"

    def draw(figure: Any) -> None:
        for axes, rows, title in zip(
            figure.subplots(1, 2, width_ratios=(3, 2)),
            (frame[~bits], frame[bits]),
            ("share right, tuned less base", "bits per byte, tuned less base"),
            strict=True,
        ):
            for place, row in enumerate(rows.to_dict("records")):
                axes.plot(
                    [row["difference_low"], row["difference_high"]], [place, place], color=colours[row["verdict"]]
                )
                axes.plot(row["difference"], place, "o", color=colours[row["verdict"]], markersize=4)
            metrics = [row["metric"] for row in rows.to_dict("records")]
            names = [row["what"].removeprefix("wronai_") for row in rows.to_dict("records")]
            labels = [
                name if metric == "bits_per_byte" else f"{name} {metric}"
                for name, metric in zip(names, metrics, strict=True)
            ]
            axes.set_yticks(range(len(rows)), labels)
            axes.axvline(0, color="#222222", linewidth=0.8)
            axes.set_title(title, fontsize=9)
            axes.tick_params(labelsize=7)
            axes.grid(axis="x", alpha=0.3)

    return _svg(draw, 1.2 + 0.2 * int((~bits).sum()))


def _svg(draw: Callable[[Any], None], height: float) -> str:
    """What `draw` draws on a figure of `height` inches, as SVG without date or version."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "wronai", "svg.fonttype": "path"})
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(7, height), layout="constrained")
    draw(figure)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return out.getvalue()


def page(text: str, pictures: dict[str, str]) -> str:
    """The Markdown `text` as one HTML page that needs no other file; `pictures` are SVG images by file name."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for name, picture in pictures.items():
        place = re.search(f'<p><img src="{re.escape(name)}" alt="[^"]*" /></p>', body)
        if place is None:
            raise ValueError(f"the report has no place for {name}")
        body = body[: place.start()] + picture[picture.index("<svg") :] + body[place.end() :]
    return PAGE.replace("BODY", body)
