"""Run one function in several processes on the elastic agent that accelerate's launcher runs on, or in this one.

A process of several knows its place as accelerate's launcher would tell it, by RANK and WORLD_SIZE in the environment.
What that of rank 0 logs and returns reaches the process that called `run`, and so does the error of the one that failed
first.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing import connection, get_context
from typing import Any, Literal

from wronai import numerics, params, tracking

MACHINE_RANK = "WRONAI_MACHINE_RANK"  # of the environment, since params.yaml is the same on every machine
WAIT = 600  # seconds in which every machine must have started
LAST_WORDS = 1.0  # seconds that a process with an error outlives it: long enough that the agent sees one killed before


def run(
    function: Callable[..., Any],
    settings: params.Launch,
    arithmetic: Literal["pinned", "native"],
    seed: int,
    *,
    log: Callable[..., None],
    measure: Callable[..., None],
) -> Any:
    """What `function(log=…, measure=…)` returns in the process of rank 0; None on a machine that has no such process.

    With one process it is called here. With more it must be picklable, and all of this machine's processes end with
    the first that fails: a ValueError or OSError of that one is raised as such, any other as RuntimeError with its
    traceback, and ChildProcessError says that it was killed. Raises ValueError if this machine cannot run `settings`.
    """
    if settings.processes == 1:
        numerics.deterministic(arithmetic, seed)
        return function(log=log, measure=measure)
    import torch
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    here = settings.processes // settings.machines
    machine = _machine(settings)
    _can_run(settings, here, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they say of a failure, the error below says better
    if settings.machines == 1:
        place: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    else:
        address = f"{settings.main_process_ip}:{settings.main_process_port}"
        place = {"rdzv_backend": "static", "rdzv_endpoint": address, "rdzv_configs": {"rank": machine, "timeout": WAIT}}
    config = LaunchConfig(
        min_nodes=settings.machines,
        max_nodes=settings.machines,
        nproc_per_node=here,
        run_id="finetune",
        max_restarts=0,
        shutdown_timeout=5,
        **place,
    )
    mail = _Mail(here, log, measure)
    if not torch.cuda.is_available():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // here)))
    try:
        with _own_signals(), mail:
            returned = elastic_launch(config, _process)(function, arithmetic, seed, os.getpid(), mail.senders)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise _explain(rank, failure.exitcode, mail.errors, settings) from None
    except SignalException as error:
        raise _ended_by(error.sigval) from None
    except DistError as error:
        raise OSError(
            f"machine {machine} of {settings.machines} found no common start at {address} in {WAIT} s "
            f"(finetune.launch.main_process_ip and main_process_port): {' '.join(str(error).split())}"
        ) from None
    return returned.get(0)


def agree(key: str) -> None:
    """Raise ValueError in the processes whose `key` is not that of rank 0: they would train something else.

    Returns once all have asked: what a process measured of the machine before, no other had altered yet.
    """
    import torch.distributed

    if not torch.distributed.is_initialized():
        return
    found: list[str] = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, key)
    if odd := [number for number, other in enumerate(found) if other != found[0]]:
        raise ValueError(
            f"process {odd[0]} of {len(found)} has other data, parameters, code or GPUs than process 0 "
            f"(run {found[odd[0]]}, expected {found[0]}); give every machine the same project folder and hardware"
        )


def wait_for_all() -> None:
    """Return once every process is here, however long one of them waits; a collective of a training would give up."""
    import torch.distributed

    if not torch.distributed.is_initialized():
        return
    torch.distributed.barrier(torch.distributed.new_group(backend="gloo", timeout=timedelta(days=365)))


def arguments(model: Any, settings: params.Launch) -> dict[str, Any]:
    """The TrainingArguments that shard `model` over the processes by FSDP2, a decoder layer at a time; none for DDP.

    The state dict is full: a checkpoint of n processes can be read without them. Raises ValueError if `model` has not
    one stack of decoder layers.
    """
    if settings.strategy != "fsdp":
        return {}
    layers = {type(layer).__name__ for layer in _decoder_layers(model)}
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": sorted(layers),
            "reshard_after_forward": True,
            "cpu_offload": settings.cpu_offload,
            "state_dict_type": "FULL_STATE_DICT",
            "cpu_ram_efficient_loading": False,  # it moves weights by way of "meta", which 4-bit ones do not survive
        },
    }


def gathered(model: Any) -> dict[str, Any] | None:
    """The trained parameters of `model` by name, whole, if they are sharded; every process must ask. None if not."""
    from torch.distributed.tensor import DTensor

    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    if not any(isinstance(value, DTensor) for value in trained.values()):
        return None
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).cpu() for name, value in trained.items()
    }


def _decoder_layers(model: Any) -> Any:
    found = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "layers"]
    if len(found) != 1:
        raise ValueError(f"the base has {len(found)} stacks of decoder layers named layers; fsdp shards exactly one")
    return found[0]


def _machine(settings: params.Launch) -> int:
    """The rank of this machine, by the environment where there are several."""
    if settings.machines == 1:
        return 0
    told = os.environ.get(MACHINE_RANK)
    if told is None or not told.isdecimal() or int(told) >= settings.machines:
        found = "is not set" if told is None else f"is {told!r}"
        raise ValueError(
            f"{MACHINE_RANK} {found}; with finetune.launch.machines: {settings.machines} the environment of each "
            f"machine must say which it is, 0 to {settings.machines - 1} (docs/scale.md)"
        )
    return int(told)


def _can_run(settings: params.Launch, here: int, gpus: int) -> None:
    """Raise ValueError if a machine with `gpus` GPUs cannot run `here` processes as `settings` ask."""
    if not gpus and settings.strategy == "fsdp":
        raise ValueError(
            "finetune.launch.strategy is fsdp and torch sees no GPU; accelerate would train ddp on a CPU: ask for ddp"
        )
    if gpus and here > gpus:
        raise ValueError(
            f"finetune.launch.processes is {settings.processes} on {settings.machines} machine(s), {here} on each, and "
            f"torch sees {gpus} GPU(s) here; expected at most one process for each"
        )


class _Mail:
    """What the processes of this machine send: the points and measurements of rank 0, and their errors.

    Each has a pipe of its own, so that one that is killed while it writes blocks no other.
    """

    def __init__(self, processes: int, log: Callable[..., None], measure: Callable[..., None]) -> None:
        pipes = [get_context("spawn").Pipe(duplex=False) for _ in range(processes)]
        self._receivers = [receiver for receiver, _ in pipes]
        self.senders = [sender for _, sender in pipes]
        self.errors: list[_Failure] = []
        self._broken: Exception | None = None
        self._take: dict[str, Callable[..., None]] = {"log": log, "measure": measure, "error": self._keep}
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> _Mail:
        self._reader.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for sender in self.senders:
            sender.close()  # the last writing end, once the processes are gone: the reader comes to the end
        self._reader.join(timeout=30)
        if self._broken and kind is None:
            raise self._broken

    def _keep(self, **failure: Any) -> None:
        self.errors.append(failure)

    def _read(self) -> None:
        waiting: list[Any] = list(self._receivers)
        while waiting:
            ready: list[Any] = connection.wait(waiting)
            for receiver in ready:
                try:
                    kind, positional, named = receiver.recv()
                except (EOFError, OSError):
                    waiting.remove(receiver)
                    continue
                try:
                    self._take[kind](*positional, **named)
                except Exception as error:  # who sends must not wait for a reader that is gone
                    self._broken = self._broken or error


_Failure = dict[str, Any]  # when: seconds since 1970; rank; mistake: of the user; message; traceback


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Give back what the agent, which catches signals to end its processes, leaves caught."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)


def _ended_by(number: int) -> BaseException:
    """What ends a stage that was sent the signal `number`, as it would have without other processes."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _explain(rank: int, exitcode: int, errors: list[_Failure], settings: params.Launch) -> Exception:
    """The error of the process that failed first: `rank` and `exitcode` are those that the agent saw end first."""
    who = f"process {rank} of {settings.processes}"
    if exitcode < 0:
        killer = signal.Signals(-exitcode).name
        hint = " (too little memory, perhaps)" if killer == "SIGKILL" else ""
        return ChildProcessError(f"{who} was killed by {killer}{hint}; all others were ended")
    if not errors:
        return ChildProcessError(f"{who} ended with exit code {exitcode} and no word; all others were ended")
    first = min(errors, key=lambda failure: float(failure["when"]))
    if first["mistake"]:
        return ValueError(first["message"])
    return RuntimeError(f"process {first['rank']} of {settings.processes} failed:\n{first['traceback']}")


def _process(
    function: Callable[..., Any],
    arithmetic: Literal["pinned", "native"],
    seed: int,
    parent: int,
    senders: list[Any],
) -> Any:
    """One of several processes: its place set up, `function` called, and its error sent to the parent."""
    _die_with(parent)
    tracking.hush()
    place = int(os.environ["LOCAL_RANK"])
    for number, sender in enumerate(senders):
        if number != place:
            sender.close()
    first = os.environ["RANK"] == "0"

    def send(kind: str) -> Callable[..., None]:
        return lambda *values, **named: senders[place].send((kind, values, named)) if first else None

    try:
        import torch

        numerics.deterministic(arithmetic, seed)
        _join_group(place)
        returned = function(log=send("log"), measure=send("measure"))
        torch.distributed.destroy_process_group()
    except BaseException as error:
        told = {
            "when": time.time(),
            "rank": int(os.environ["RANK"]),
            "mistake": isinstance(error, (ValueError, OSError)),
            "message": str(error),
            "traceback": traceback.format_exc(),
        }
        with contextlib.suppress(OSError):
            senders[place].send(("error", (), told))
        time.sleep(LAST_WORDS)
        os._exit(1)  # what waits for the others in a collective would wait at exit too
    return returned if first else None


def _join_group(place: int) -> None:
    """Meet the other processes: gloo between CPUs, nccl between GPUs with gloo for what is offloaded."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(place)
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl", device_id=torch.device("cuda", place))
    else:
        torch.distributed.init_process_group("gloo")


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when `parent` ends, however it ends (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
