"""What a stage costs the machine that it runs on."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

SAMPLING_INTERVAL = 10.0  # seconds between two samples; MLflow's own default

Take = Callable[[str, float, int, int], None]  # key, value, step, ms since 1970


class Sampler:
    """Samples of the machine under MLflow's own names (system/cpu_utilization_percentage and others), until `stop`.

    Each goes to `take`. MLflow's SystemMetricsMonitor would send it from its own thread, where a server that is away
    makes it wait and then end. MLflow's switch is heeded: MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false; so is
    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL, in seconds.
    """

    def __init__(self, take: Take) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(take,), name="system metrics", daemon=True)
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0"):
            self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _sample(self, take: Take) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors: list[Any] = []
        for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            with contextlib.suppress(Exception):  # of the GPU: there is none; of the others: this machine does not say
                monitors.append(kind())
        psutil.cpu_percent()  # the first call has nothing to compare with
        interval = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or SAMPLING_INTERVAL)
        step = 0
        while not self._over.wait(interval):
            now = int(time.time() * 1000)
            for monitor in monitors:
                with contextlib.suppress(Exception):
                    monitor.collect_metrics()
                    for key, value in monitor.aggregate_metrics().items():
                        take(f"system/{key}", float(value), step, now)
                monitor.clear_metrics()
            step += 1


def peak_memory() -> int:
    """The most memory that this process held at once, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
