"""The queue of a run: which step of which case a worker computes next."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from robustbench_med.bench.pass_estimate import FORWARD, attack_passes, check_passes
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import crafting_key, is_crafted_elsewhere, setup_key
from robustbench_med.bench.steps import Needs, ShardStep
from robustbench_med.stored_images import images_of_shard

_PASS = 1e-3  # seconds of a pass with a victim whose card has no timing
_ANY_CASE = 0.5  # seconds of any case
State = Literal["waiting", "busy", "open", "ready", "ended"]


@dataclass
class CaseRun:
    """A case that is computed.

    Attributes:
        resolved: the case.
        group: cases of one group share a victim, or the candidates of a surrogate.
        images: number of images of the case.
        weight: how long the case should take, relative to others.
        chained: whether the cases of its group must run one after another, on one worker.
        chain: names the surrogate's images that it shares with other cases; empty if it has none.
        sharing: ids of the cases of the plan that share them in their order, finished or not.
        state: waiting for its first step; busy with a step that is not a shard; open, while its
            shards are attacked; ready for a step that is not a shard; or ended.
        needs: the shards that its present run of the attack needs.
        pending: the numbers of the shards that no worker attacks yet.
        attacked: the numbers of the shards that workers attack now.
        worker: the worker that computed its last step, which has its ladder open.
        deaths: how often a worker died, by step.
        known: finished shards that could not be stored in the results folder.
        later: the time before which the case is not begun, because another run has claimed it.
        seconds: time that workers spent on it.
    """

    resolved: ResolvedCase
    group: str
    images: int
    weight: float
    chained: bool = False
    chain: str = ""
    sharing: tuple[str, ...] = ()
    state: State = "waiting"
    needs: Needs | None = None
    pending: list[int] = field(default_factory=list)
    attacked: set[int] = field(default_factory=set)
    worker: str = ""
    deaths: Counter[str] = field(default_factory=Counter)
    known: dict[str, bytes] = field(default_factory=dict)
    later: float = 0.0
    seconds: float = 0.0

    @property
    def id(self) -> str:
        """The id of the case."""
        return self.resolved.case.id

    @property
    def done(self) -> float:
        """The fraction of the images that are attacked."""
        if self.state == "ended":
            return 1.0
        if self.needs is None or self.needs.run:
            return 0.0
        total = sum(self.needs.images)
        remaining = sum(self.needs.images[i] for i in {*self.pending, *self.attacked})
        return 1.0 - remaining / total if total else 0.0

    @property
    def earlier(self) -> tuple[str, ...]:
        """The ids of the cases before it that share the images of its surrogate."""
        return self.sharing[: self.sharing.index(self.id)] if self.chain else ()

    @property
    def bound(self) -> bool:
        """Whether one worker alone can attack the shards, one after another.

        A surrogate's images are crafted in order. The ladder of a later run of the attack depends
        on the gradients of the first.
        """
        return bool(self.chain) or (self.needs is not None and bool(self.needs.run))

    def open(self, needs: Needs, worker: str) -> None:
        """Let workers attack the missing shards."""
        self.state, self.needs, self.worker = "open", needs, worker
        self.pending = list(needs.missing)

    def begin(self, step: ShardStep | None) -> None:
        """Note that a worker begins a step."""
        if step is None:
            self.state = "busy"
        else:
            self.pending.remove(step.number)
            self.attacked.add(step.number)

    def lose(self, step: ShardStep | None) -> None:
        """Put a step back that no worker has finished."""
        if step is None or self.bound:
            self.state = "ready"
            self.attacked.clear()
        elif self.state == "open":
            self.attacked.discard(step.number)
            self.pending.append(step.number)

    def finish_shard(self, step: ShardStep) -> None:
        """Note that a shard is there; after the last one the case is ready."""
        self.attacked.discard(step.number)
        if self.state == "open" and not self.pending and not self.attacked:
            self.state = "ready"

    def words(self, step: ShardStep | None) -> str:
        """Return the name of a step."""
        if step is not None and self.needs is not None:
            return f"shard {step.number + 1} of {len(self.needs.images)}"
        return "this case" if self.needs is None else "the last step of this case"


def case_runs(
    waiting: Sequence[ResolvedCase],
    *,
    in_order: bool,
    planned: Sequence[ResolvedCase] | None = None,
) -> list[CaseRun]:
    """Return the cases of a run in the order in which they should begin.

    Args:
        waiting: the cases without a record.
        in_order: whether there is one worker, which takes all cases as they come.
        planned: all cases, finished or not; None = those without a record.
    """
    runs = []
    chains = chains_of(waiting if planned is None else planned)
    for resolved in waiting:
        chained = not in_order and is_crafted_elsewhere(resolved.case)
        key = crafting_key if chained else setup_key
        group = "" if in_order else repr(key(resolved.case))
        weight = weight_of(resolved)
        chain = chain_of(resolved)
        sharing = tuple(chains.get(chain, ()))
        runs.append(CaseRun(resolved, group, resolved.images(), weight, chained, chain, sharing))
    return runs


def chain_of(resolved: ResolvedCase) -> str:
    """Return a name of the images that a case crafts on its surrogate; empty if it has none."""
    if not is_crafted_elsewhere(resolved.case):
        return ""
    return hashlib.sha256(repr(crafting_key(resolved.case)).encode()).hexdigest()[:16]


def chains_of(planned: Sequence[ResolvedCase]) -> dict[str, list[str]]:
    """Return the ids of the cases that share the images of a surrogate, by the name of these."""
    chains: defaultdict[str, list[str]] = defaultdict(list)
    for resolved in planned:
        if name := chain_of(resolved):
            chains[name].append(resolved.case.id)
    return dict(chains)


def most_steps(waiting: Sequence[ResolvedCase], shard: int | None) -> int:
    """Return how many steps may be computed at the same time.

    Args:
        waiting: the cases without a record.
        shard: number of images of a shard; None = as many as the memory of a shard holds.
    """
    chains = {repr(crafting_key(r.case)) for r in waiting if is_crafted_elsewhere(r.case)}
    steps = len(chains)
    for resolved in waiting:
        if not is_crafted_elsewhere(resolved.case):
            card = resolved.data.card
            size = shard or images_of_shard((card.channels, *card.size))
            steps += -(-resolved.images() // size)
    return steps


def weight_of(resolved: ResolvedCase) -> float:
    """Return how long a case should take, in seconds where the card of its victim has a timing."""
    attack = attack_passes(resolved, None)
    # the clean images are forwarded twice; validation is not read here, only by the workers
    passes = attack + check_passes(resolved, attack) + 2 * FORWARD * resolved.images()
    measured = resolved.model.measured
    return passes * (_PASS if measured is None else measured.gradient_ms / 1000) + _ANY_CASE


class Queue:
    """The cases of a run, and what each worker should do next.

    A worker stays with its case, then with the cases of its group, for it has their victim loaded.
    It then begins a group that nobody works on, helps with the shards of another worker's case, or
    takes a case out of another worker's group.
    """

    def __init__(self, runs: Sequence[CaseRun]) -> None:
        self.runs = list(runs)
        self._group: dict[str, str] = {}  # of each worker

    @property
    def unfinished(self) -> list[CaseRun]:
        """The cases that have neither a record nor a failure."""
        return [run for run in self.runs if run.state != "ended"]

    def forget(self, worker: str) -> None:
        """Note that a worker is gone, with the ladders that it had open."""
        self._group.pop(worker, None)
        for run in self.unfinished:
            if run.state == "open" and run.bound and run.worker == worker and not run.attacked:
                run.state = "ready"

    def next(self, worker: str, now: float) -> tuple[CaseRun, ShardStep | None] | None:
        """Return the step that a worker should compute; None if there is none for it now.

        Args:
            worker: an idle worker.
            now: the time, in seconds of `time.monotonic()`.
        """
        runs = self.unfinished
        ready = [run for run in runs if run.state == "ready"]
        opened = [run for run in runs if run.state == "open" and _may_attack(run, worker)]
        waiting = [run for run in runs if run.state == "waiting" and run.later <= now]
        active = {run.group for run in runs if run.state != "waiting"}
        waiting = [run for run in waiting if not (run.chained and run.group in active)]
        mine = self._group.get(worker)
        taken = set(self._group.values())
        others = [run for run in waiting if run.group != mine and not run.chained]
        for choice in (
            [run for run in (*ready, *opened) if run.worker == worker],
            ready,
            [run for run in waiting if run.group == mine],
            self._largest([run for run in waiting if run.group not in taken]),
            opened,
            self._largest(others),
            waiting,
        ):
            if choice:
                return self._step(choice[0], worker)
        return None

    def _step(self, run: CaseRun, worker: str) -> tuple[CaseRun, ShardStep | None]:
        if run.state == "open" and run.needs is not None:
            return run, ShardStep(run.pending[0], run.needs.run)
        self._group[worker] = run.group
        return run, None

    def _largest(self, runs: list[CaseRun]) -> list[CaseRun]:
        """Return the cases of the group with the most work, in their order."""
        if not runs:
            return []
        weights: defaultdict[str, float] = defaultdict(float)
        for run in runs:
            weights[run.group] += run.weight
        largest = max(weights, key=weights.__getitem__)
        return [run for run in runs if run.group == largest]


def _may_attack(run: CaseRun, worker: str) -> bool:
    """Whether a worker can attack a shard of an open case.

    Any worker can open the ladder of a case, unless its shards are bound to the one that did.
    """
    return bool(run.pending) and (not run.bound or run.worker == worker)
