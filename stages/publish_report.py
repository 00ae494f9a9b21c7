"""Write the report that a person reads, and the MLflow run that stands for the whole state of the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

from wronai import graph, params, tracking
from wronai import report as reporting


def publish_report(metrics: Path, config: params.Params, stages: list[str], out: Path) -> None:
    """Write report.md with its pictures and the self-contained index.html to `out`, from the files in `metrics`."""
    found = reporting.read(metrics, stages)
    markdown = reporting.markdown(found, config)
    pictures = {
        "loss_curve.svg": reporting.loss_curve(metrics / "loss_curve.csv"),
        "differences.svg": reporting.differences(metrics / "differences.csv"),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(markdown, encoding="utf-8")
    for name, picture in pictures.items():
        (out / name).write_text(picture, encoding="utf-8")
    (out / "index.html").write_text(reporting.page(markdown, pictures), encoding="utf-8")


def registered(config: params.Params, samples: Path, report: Path) -> dict[str, str] | None:
    """What `Report.parent` is told of the model to register: None unless a parameter names it.

    The input example is the first held-out question; the model card is the report under the heading that the hub reads.
    """
    name = config.tracking.registered_model_name
    if name is None:
        return None
    first = json.loads(samples.read_text(encoding="utf-8").splitlines()[0])
    licences = sorted({source.licence for source in config.data.sources})
    heading = {"language": "pl", "pipeline_tag": "text-generation", "tags": ["wronai", "qlora", *licences]}
    card = f"---\n{json.dumps(heading)}\n---\n{report.read_text(encoding='utf-8')}"
    answers = {"question": first["question"], "answer": first["tuned"]}
    return {"path": "models/merged", "name": name, "card": card, **answers}


if __name__ == "__main__":
    with tracking.stage("publish_report") as (config, report):
        stages = graph.made(Path("dvc.yaml"), config)
        del stages["publish_report"]
        publish_report(Path("metrics"), config, [name for name in stages if "@" not in name], Path("report"))
        report.parent(
            stages,
            {
                "report": Path("report"),
                "plots/loss_curve.csv": Path("metrics/loss_curve.csv"),
                "plots/differences.csv": Path("metrics/differences.csv"),
                "plots/document_lengths.csv": Path("metrics/document_lengths.csv"),
                "adapter_config.json": Path("models/adapter/adapter_config.json"),
            },
            uploads=["models/adapter"] if config.tracking.log_adapter else [],
            model=registered(config, Path("metrics/samples.jsonl"), Path("report/report.md")),
        )
