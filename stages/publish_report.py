"""Write the report that a person reads, and the MLflow run that stands for the whole state of the pipeline."""

from __future__ import annotations

from pathlib import Path

from wronai import params, tracking
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


if __name__ == "__main__":
    with tracking.stage("publish_report") as (config, report):
        stages = tracking.made(Path("dvc.yaml"), config)
        del stages["publish_report"]
        publish_report(Path("metrics"), config, [name for name in stages if "@" not in name], Path("report"))
        report.parent(stages)
