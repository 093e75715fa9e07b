"""Steps: the tasks that a run is cut into, and the worker that computes them.

A case begins with a step that prepares the victim, fits what is fitted for all images, and attacks
the first shard. A case of one shard is finished by it. Of a larger case the other shards are a step
each, on any worker, and a last step checks, scores and draws what needs all of them. A step hands
back what it computed; only the driver writes files.
"""

from __future__ import annotations

import logging
import pickle
import platform
import threading
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, cast

import cloudpickle
import torch

from robustbench_med import registry
from robustbench_med.bench import crafted
from robustbench_med.bench.attack_run import attack_shard, run_attack
from robustbench_med.bench.crafted import Crafted
from robustbench_med.bench.execute import Outcome, execute, invalid_outcome
from robustbench_med.bench.executors import Slot
from robustbench_med.bench.ladder import Fit, Sharding
from robustbench_med.bench.provenance import now
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.schedules import OpenLadder, ShardsNeeded
from robustbench_med.bench.setup import Prepared, SetupCache, handed_over
from robustbench_med.bench.shard_files import ShardBytes
from robustbench_med.bench.transfer import mark_after
from robustbench_med.devices import device_of
from robustbench_med.errors import BenchError, InvalidOutputError

_log = logging.getLogger(__name__)


class Settings(NamedTuple):
    """The settings of a run that a step depends on.

    Attributes:
        command: command that runs the suite again; the provenance stores it with the case's id.
        examples: largest number of examples for each case.
        images: whether the adversarial images are saved beside each record.
        shard: number of images that are attacked together; None = as many as 32 MiB hold.
    """

    command: str
    examples: int = 4
    images: bool = False
    shard: int | None = None


class Bundle(NamedTuple):
    """Cases that a worker needs together, and the plug-ins that were registered in the driver."""

    key: str
    cases: Mapping[str, ResolvedCase]
    registered: Mapping[registry.Kind, Mapping[str, registry.Entry]]


class ShardStep(NamedTuple):
    """Attack one shard: its number, from 0, and the name of the run of the attack."""

    number: int
    run: str


class Task(NamedTuple):
    """One step of a case, as it is handed to a worker.

    Attributes:
        key: names the bundle with the case.
        case_id: the case.
        slot: where the worker computes.
        settings: the settings of the run.
        bundle: the bundle, pickled for another process; None where the worker has it.
        shard: the shard to attack; None = begin the case, or finish it.
        known: the finished shards of the case by name of their file.
        fit: the universal perturbation of the case, if it was fitted already.
        prepared: what the worker that began the case found about its victim.
        crafted: what the cases before this one crafted on the same surrogate; None if the case
            has no surrogate, so that its shards can be attacked in any order.
    """

    key: str
    case_id: str
    slot: Slot
    settings: Settings
    bundle: Bundle | bytes | None = None
    shard: ShardStep | None = None
    known: Mapping[str, bytes] = {}
    fit: Fit | None = None
    prepared: Prepared | None = None
    crafted: tuple[bytes, ...] | None = None


class Needs(NamedTuple):
    """The shards that a case waits for.

    Attributes:
        run: the name of the run of the attack; the first run of a case has none.
        missing: the numbers of the missing shards.
        images: number of images of each shard, missing or not.
        fit: the universal perturbation of the case.
        prepared: what this worker found about the victim, for others.
    """

    run: str
    missing: tuple[int, ...]
    images: tuple[int, ...]
    fit: Fit | None
    prepared: Prepared | None = None


class Reply(NamedTuple):
    """What came of a step.

    Attributes:
        outcome: the record and the files of a finished case.
        needs: the shards that are to be attacked before the case can be finished.
        shards: the content of new shards, by name of their file.
        failure: why the case has no record.
        lacks: what the worker needs first: the bundle with the case, or an open ladder of a later
            run of the attack or of a case with a surrogate, which a step without a shard leaves.
        crafted: what a finished case crafted on a surrogate, for later cases.
    """

    outcome: Outcome | None = None
    needs: Needs | None = None
    shards: Mapping[str, bytes] = {}
    failure: str | None = None
    lacks: Literal["", "bundle", "ladder"] = ""
    crafted: bytes = b""


def pickled(bundle: Bundle) -> bytes:
    """Return a bundle for another process; code of the user's own script travels with it."""
    content: bytes = cloudpickle.dumps(bundle)
    return content


class Worker:
    """Computes steps, and keeps what the next step of the same victim or case can use again."""

    def __init__(self) -> None:
        self._bundle: Bundle | None = None
        self._setups: SetupCache | None = None
        self._case_id = ""
        self._opened: dict[str, OpenLadder] = {}  # of that case, by the name of the run

    def __call__(self, task: Task) -> Reply:
        """Return what comes of a step. Whatever a model raises fails its case alone."""
        bundle = self._bundle_of(task)
        if bundle is None:
            return Reply(lacks="bundle")
        if task.slot.threads:
            torch.set_num_threads(task.slot.threads)
        resolved = bundle.cases[task.case_id]
        if task.case_id != self._case_id:
            self._case_id, self._opened = task.case_id, {}
        started = now()
        try:
            if task.shard is None:
                return self._advance(resolved, task)
            return self._attack(resolved, task, task.shard)
        except InvalidOutputError as error:
            command, device = _command(task), str(device_of(task.slot.device))
            return Reply(invalid_outcome(resolved, error, started, command, device))
        except BenchError as error:
            return Reply(failure=str(error))
        except FileNotFoundError as error:
            return Reply(
                failure=f"expected the file {error.filename} on the machine of a worker, "
                f"{platform.node()}, got none: workers need the same files as the driver"
            )
        except Exception as error:  # a model is foreign code that may raise anything
            _log.debug("%s", traceback.format_exc())
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            return Reply(failure=f"{type(error).__name__}: {error} ({where})")

    def _bundle_of(self, task: Task) -> Bundle | None:
        """Return the bundle with the case of a task; None if this worker lacks it."""
        bundle = task.bundle
        if isinstance(bundle, bytes):
            # our driver pickled it and sent it to this process
            bundle = cast("Bundle", pickle.loads(bundle))  # noqa: S301
            registry.adopt(bundle.registered)
        if bundle is not None:
            self._bundle, self._case_id, self._opened = bundle, "", {}
        return self._bundle if self._bundle and self._bundle.key == task.key else None

    def _advance(self, resolved: ResolvedCase, task: Task) -> Reply:
        """Begin a case or finish it: compute the first shard that nobody else is to attack."""
        self._opened.clear()
        files = ShardBytes(task.known)
        shared = _shared(task)
        try:
            outcome = execute(
                resolved,
                lambda: self._setups_on(task.slot.device).of(resolved),
                command=_command(task),
                examples=task.settings.examples,
                images=task.settings.images,
                device=str(device_of(task.slot.device)),
                sharding=Sharding(task.settings.shard, files, "first", task.fit, crafted=shared),
            )
        except ShardsNeeded as needed:
            opened, run = needed.opened, needed.opened.ladder.sharding.name
            self._opened[run] = opened
            images = tuple(len(rows) for rows in opened.rows)
            needs = Needs(
                run,
                tuple(needed.missing),
                images,
                None if run else opened.fit,
                None if run else handed_over(opened.ladder.setup),
            )
            return Reply(needs=needs, shards=files.new)
        return Reply(outcome, crafted=self._crafted(resolved, task, shared))

    def _crafted(
        self, resolved: ResolvedCase, task: Task, shared: tuple[Crafted, ...] | None
    ) -> bytes:
        """Return what a finished case added to what was crafted on its surrogate."""
        if shared is None:
            return b""
        try:
            surrogate = self._setups_on(task.slot.device).of(resolved).surrogate
        except InvalidOutputError:  # so nothing was crafted
            return b""
        return b"" if surrogate is None else crafted.packed(surrogate.added(mark_after(shared)))

    def _attack(self, resolved: ResolvedCase, task: Task, step: ShardStep) -> Reply:
        """Attack one shard; the ladder is opened first if no earlier step left it open."""
        if step.run not in self._opened:
            if step.run or task.crafted is not None:
                return Reply(lacks="ladder")
            sharding = Sharding(task.settings.shard, None, "open", task.fit)
            setup = self._setups_on(task.slot.device).of(resolved, task.prepared)
            try:
                run_attack(resolved, setup, keeps=task.settings.images, sharding=sharding)
            except ShardsNeeded as needed:
                self._opened[step.run] = needed.opened
        opened = self._opened[step.run]
        files = ShardBytes({}).part(step.run) if step.run else ShardBytes({})
        files.write(step.number, opened.streams(step.number), attack_shard(opened, step.number))
        return Reply(shards=files.new)

    def _setups_on(self, device: str) -> SetupCache:
        if self._setups is None:
            self._setups = SetupCache(device_of(device))
        return self._setups


def _shared(task: Task) -> tuple[Crafted, ...] | None:
    """Return what earlier cases crafted; what was damaged since counts as not crafted."""
    if task.crafted is None:
        return None
    device = device_of(task.slot.device)
    parts = (crafted.unpacked(raw, device) for raw in task.crafted)
    return tuple(part for part in parts if part is not None)


def _command(task: Task) -> str:
    return f"{task.settings.command} --case {task.case_id} --force"


_ONE = threading.Lock()  # steps seed torch's generators, which are the whole process's


@cache
def _worker() -> Worker:
    return Worker()


def compute(task: Task) -> Reply:
    """Return what comes of a step, computed by the one worker of this process."""
    with _ONE:
        return _worker()(task)
