"""Surrogate: the model that is attacked if the attacker cannot use the victim itself."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch.nn import functional

from robustbench_med import objectives, registry
from robustbench_med.bench.candidates import Candidates
from robustbench_med.bench.crafted import Crafted, joined_keys
from robustbench_med.bench.gradient_recorder import GradientRecorder, GradientSample
from robustbench_med.bench.resolved_case import ResolvedSurrogate
from robustbench_med.cards import DatasetCard, Threat
from robustbench_med.errors import ChecksumError
from robustbench_med.models.load import load_victim
from robustbench_med.models.source import ModelSource
from robustbench_med.objectives.decide import decide
from robustbench_med.objectives.evade_detector import EvadeDetector
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, Output
from robustbench_med.victim import Victim

Attack = Callable[[Problem, Draws], Images]
RECORDED = 12  # so many gradients are recorded


class Mark(NamedTuple):
    """A point in time: how many images were crafted, and the gradients that were recorded."""

    images: int
    samples: dict[int, GradientSample]


def mark_after(parts: Sequence[Crafted]) -> Mark:
    """Return the point in time after these shards and cases."""
    samples = {slot: sample for part in parts for slot, sample in part.samples.items()}
    return Mark(sum(len(part.keys) for part in parts), samples)


@dataclass(frozen=True)
class Surrogate:
    """A model that the attacker owns.

    Attributes:
        victim: the model with its own decision rule (argmax, or a logit above 0).
        data: the card of the images it was trained on.
        threat: "transfer" if it was trained on the victim's data, "no_box" if on other data.
        known: the candidates crafted so far, by the key of their draws. All victims of a dataset
            get the same candidates, so each is crafted once.
        counter: the passes that crafting cost, and the counts of faulty gradients.
        recorder: holds a few of the gradients of the crafting attack.
    """

    victim: Victim
    data: DatasetCard
    threat: Threat
    known: Candidates = field(default_factory=Candidates)
    counter: Counter = field(default_factory=Counter)
    recorder: GradientRecorder = field(default_factory=lambda: GradientRecorder(RECORDED))

    def __call__(self, x: Images) -> Output:
        """Return the surrogate's logits for images of the victim's size and channels."""
        c = self.victim.contract
        if x.shape[1] != c.channels:
            x = x.mean(1, keepdim=True).expand(-1, c.channels, *x.shape[2:])  # convert to grey
        if tuple(x.shape[2:]) != tuple(c.size):
            mode = "bilinear" if len(c.size) == 2 else "trilinear"
            x = functional.interpolate(x, c.size, mode=mode, align_corners=False)
        return self.victim(x)

    def view(self, problem: Problem, *, use_all_steps: bool) -> Problem:
        """Return the problem of the attacker, with the surrogate instead of the victim.

        A surrogate trained on other data has other classes. The goal is then to leave the class
        that the surrogate predicts on the clean image.
        """
        view = replace(problem, judge=self, guide=None, counter=self.counter)
        # the attacker does not know the victim's detector, and evades that of the surrogate, if any
        if isinstance(view.objective, EvadeDetector):
            evades = replace(view.objective, loss="both")
            guarded = self.victim.guard is not None
            view = replace(view, objective=evades if guarded else view.objective.base)
        if self.threat == "no_box":
            called = decide(view.outputs(view.x).logits, self.data.task)
            y = torch.from_numpy(called).to(problem.y)
            view = replace(view, y=y, objective=objectives.make("untargeted", self.data.task))
        if not use_all_steps:
            return view
        return replace(view, objective=LossOverride(view.objective, use_all_steps=True))

    def resume(self, parts: Sequence[Crafted]) -> Mark:
        """Go on where the images of these shards and cases were crafted, and nothing else was."""
        count = sum(len(part.keys) for part in parts)
        name = parts[-1].name if parts else ""
        last = next((int(part.keys[-1]) for part in reversed(parts) if len(part.keys)), None)
        known = self.known.keys
        if not parts:
            self.known.resume(uuid.uuid4().hex, [], [])
        elif (self.known.name, len(known), known[-1] if known else None) != (name, count, last):
            self.known.resume(name, *joined_keys(parts))
        mark = mark_after(parts)
        self.recorder.resume(mark.samples, parts[-1].recorder if parts else {})
        self._set_counter(parts[-1].counter if parts else Counter())
        return mark

    def added(self, mark: Mark) -> Crafted:
        """Return what was crafted since `resume` returned a mark."""
        new = {
            slot: sample
            for slot, sample in self.recorder.slots.items()
            if mark.samples.get(slot) is not sample
        }
        return Crafted(
            self.known.name,
            torch.tensor(self.known.keys[mark.images :], dtype=torch.int64),
            torch.tensor(self.known.checksums[mark.images :], dtype=torch.int64),
            new,
            self.recorder.state,
            replace(self.counter),
        )

    def craft(self, attack: Attack, problem: Problem, rng: Draws, *, use_all_steps: bool) -> None:
        """Craft the images that are missing; those that were counted before cost nothing."""
        keys, known = rng.keys.tolist(), self.known
        missing = known.missing(keys, tuple(problem.x.shape[1:]))
        for again in (False, True):
            part = [i for i in missing if (keys[i] in known) is again]
            if not part:
                continue
            rows = torch.tensor(part, device=problem.x.device)
            before, state = replace(self.counter), self.recorder.state
            self.recorder.active = not again
            view = self.view(problem.select(rows), use_all_steps=use_all_steps)
            try:
                # nothing that is drawn later may depend on what was lost
                with torch.random.fork_rng(enabled=again):
                    z = attack(view, rng.select(rows))
            finally:  # the next case on this surrogate records again
                self.recorder.active = True
            if again:
                self._set_counter(before)
                self.recorder.resume(self.recorder.slots, state)
            problem.counter.forward += self.counter.forward - before.forward
            problem.counter.backward += self.counter.backward - before.backward
            known.add([keys[i] for i in part], z)

    def _set_counter(self, counter: Counter) -> None:
        for name, value in vars(counter).items():
            setattr(self.counter, name, value)


def load_surrogate(surrogate: ResolvedSurrogate, threat: Threat, device: torch.device) -> Surrogate:
    """Load the surrogate of a case."""
    loaded = load_victim(surrogate.source, surrogate.data)
    if loaded.sha256 != surrogate.sha256:
        raise ChecksumError(
            f"{surrogate.source.name}: expected the weights the plan saw, got others: run again"
        )
    loaded.victim.module.to(device)
    return Surrogate(loaded.victim, surrogate.data, threat)


def trained_on(source: ModelSource, data: DatasetCard) -> DatasetCard:
    """Return the card of the data a surrogate was trained on; `data` for the user's own model."""
    model = source.card if source.entry is None else source.entry.card
    if model is None:
        return data
    if model.fits is not None:  # trained on data of the user's own: `load_victim` compares them
        return data
    card: DatasetCard = registry.find("datasets", model.dataset)
    return card


def transferred(attack: Attack, surrogate: Surrogate, *, use_all_steps: bool) -> Attack:
    """Return an attack that uses only the surrogate; the victim judges the final candidates.

    Args:
        attack: the attack as it is applied to a problem.
        surrogate: the model that the attack optimises against.
        use_all_steps: whether the attack uses all its steps; an image that just crosses the
            surrogate's boundary seldom transfers.
    """

    def crafted(problem: Problem, rng: Draws) -> Images:
        surrogate.craft(attack, problem, rng, use_all_steps=use_all_steps)
        return surrogate.known.read(rng.keys.tolist()).to(problem.x) if len(rng.keys) else problem.x

    return crafted
