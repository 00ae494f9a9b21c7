"""The report of a run, as Markdown and as one self-contained page."""

from __future__ import annotations

import io
import json
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

Bits per byte on held-out text (less is better), with the 95 % interval of the paired difference.

| held-out text | texts | base | tuned | difference | 95 % interval | relative |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
{% for kind in ("answers", "documents") -%}
{% set b = bits[kind] -%}
| {{ kind }} | {{ b.texts }} | {{ "%.3f" % b.base }} | {{ "%.3f" % b.tuned }} | {{ "%+.3f" % b.difference }} \
| {{ "%+.3f" % b.difference_low }} to {{ "%+.3f" % b.difference_high }} | {{ "%+.1f %%" % (100 * b.relative) }} |
{% endfor %}
`xz -9` needs {{ "%.3f" % bits.documents_xz }} bits per byte for the same documents. \
{{ "%.0f %%" % (100 * m.evaluate_benchmarks.generations.closed) }} of \
{{ m.evaluate_benchmarks.generations.answers }} generated answers close as the format wants.

## Benchmarks

lm_eval, {{ m.evaluate_benchmarks.num_fewshot }}-shot; ± is one standard error; the difference is paired by item.

{{ benchmarks }}

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
    return environment.from_string(TEMPLATE).render(
        m=found,
        p=params.flatten(config),
        base=name[model.base],
        bits=found["evaluate_benchmarks"]["bits_per_byte"],
        quantization=_quantization(config.finetune.quantization),
        parities=_parities(found["merge_adapters"], config.finetune.quantization),
        merged_into=_merged_into(found["merge_adapters"], config.merge),
        benchmarks=_benchmark_table(found["evaluate_benchmarks"]["benchmarks"]),
        dropped=_dropped_table(found["clean_text"]),
        samples=found["samples"],
    )


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


def _benchmark_table(benchmarks: dict[str, Any]) -> str:
    rows = [
        {
            "task": task,
            "metric": metric,
            "items": s["items"],
            "base": f"{s['base']:.3f} ± {s['base_stderr']:.3f}",
            "tuned": f"{s['tuned']:.3f} ± {s['tuned_stderr']:.3f}",
            "difference": f"{s['difference']:+.3f} ± {s['difference_stderr']:.3f}",
        }
        for task, by_metric in sorted(benchmarks.items())
        for metric, s in sorted(by_metric.items())
    ]
    return _table(pd.DataFrame(rows))


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
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "wronai", "svg.fonttype": "path"})
    import matplotlib.pyplot as plt

    frame = pd.read_csv(path)
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for column, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        points = frame[["step", column]].dropna()
        axes.plot(points["step"], points[column], style, label=label, markersize=4)
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return out.getvalue()


def page(text: str, curve: str) -> str:
    """The Markdown `text` as one HTML page that needs no other file; the picture `curve` stands in it."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    svg = curve[curve.index("<svg") :]
    image = '<p><img src="loss_curve.svg" alt="loss curve" /></p>'
    if image not in body:
        raise ValueError("the report has no place for the loss curve")
    return PAGE.replace("BODY", body.replace(image, svg))
