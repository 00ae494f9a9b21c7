"""Write the report that a person reads, and the MLflow run that stands for the whole state of the pipeline."""

from __future__ import annotations

from pathlib import Path

from wronai import params, tracking
from wronai import report as reporting


def publish_report(metrics: Path, config: params.Params, stages: list[str], out: Path) -> None:
    """Write report.md, loss_curve.svg and the self-contained index.html to `out`, from the files in `metrics`."""
    found = reporting.read(metrics, stages)
    markdown = reporting.markdown(found, config)
    curve = reporting.loss_curve(metrics / "loss_curve.csv")
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(markdown, encoding="utf-8")
    (out / "loss_curve.svg").write_text(curve, encoding="utf-8")
    (out / "index.html").write_text(reporting.page(markdown, curve), encoding="utf-8")


if __name__ == "__main__":
    with tracking.stage("publish_report") as (config, report):
        graph = {name: entry.sections for name, entry in tracking.declared(Path("dvc.yaml")).items()}
        measured = [name for name in graph if name != "publish_report"]
        publish_report(Path("metrics"), config, measured, Path("report"))
        report.parent(Path("metrics"), {name: graph[name] for name in measured})
