"""Surrogate: the model that is attacked if the attacker cannot use the victim itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional

from robustbench_med import objectives, registry
from robustbench_med.bench.candidates import Candidates
from robustbench_med.bench.gradient_recorder import GradientRecorder
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
        keys, known = rng.keys.tolist(), surrogate.known
        new = known.missing(keys)
        if new:
            rows = torch.tensor(new, device=problem.x.device)
            before = replace(surrogate.counter)
            view = surrogate.view(problem.select(rows), use_all_steps=use_all_steps)
            known.add([keys[i] for i in new], attack(view, rng.select(rows)))
            problem.counter.forward += surrogate.counter.forward - before.forward
            problem.counter.backward += surrogate.counter.backward - before.backward
        return known.read(keys).to(problem.x) if keys else problem.x

    return crafted
