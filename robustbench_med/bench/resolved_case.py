"""ResolvedCase: a case with the objects that its texts describe, parsed once."""

from __future__ import annotations

from typing import NamedTuple

from robustbench_med import registry
from robustbench_med.bench.attack_spec import ResolvedAttack
from robustbench_med.bench.case import Case
from robustbench_med.bench.defense_spec import ResolvedDefense
from robustbench_med.cards import AttackCard, DatasetCard, ModelCard, Task
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.models.load import Loaded
from robustbench_med.models.source import ModelSource
from robustbench_med.objective import Objective

# a ladder costs so many full runs of the attack; with other schedules one run for each rung
_RUNS = {"descend": 1.5, "distance": 1.0}


def schedule_name(card: AttackCard, task: Task, *, surrogate: bool, guard: bool) -> str:
    """Return the name of the schedule that fills the ladder of a case, see `schedule_of`."""
    if card.schedule == "severity":
        return "severity"
    if card.schedule not in ("universal", "distance") and task == "segmentation" and not surrogate:
        return "worst"
    if card.schedule in ("ascend", "descend") and surrogate:
        return "transferred"
    if card.schedule in ("ascend", "descend") and guard:
        return "guarded"
    return card.schedule


class ResolvedSurrogate(NamedTuple):
    """The model that is attacked instead of the victim.

    Attributes:
        source: the source that its text names.
        data: the card of the images it was trained on.
        sha256: the hash of its card and weights.
    """

    source: ModelSource
    data: DatasetCard
    sha256: str


class ResolvedCase(NamedTuple):
    """A case with the objects that its texts describe.

    `plan` parses each text once. The code that runs, checks or scores a case does not parse again.

    Attributes:
        case: the case as texts and numbers; only this is hashed and stored.
        data: the dataset.
        model: the card of the victim.
        victim: the source that the text of the victim names.
        attack: the card, parameters and ladder of the attack.
        defense: the defense of the victim, and what the attacker knows about it.
        objective: the attacker's goal, without regard to a detector.
        surrogate: the model attacked instead of the victim, if any.
        loaded: a victim passed as a Python object, which no text can name.
        seconds: longest time of the case by the victim's card; None if the card has no timing.
    """

    case: Case
    data: Dataset
    model: ModelCard
    victim: ModelSource
    attack: ResolvedAttack
    defense: ResolvedDefense
    objective: Objective
    surrogate: ResolvedSurrogate | None = None
    loaded: Loaded | None = None
    seconds: float | None = None

    def estimate(self) -> float | None:
        """Return the longest time of the case in seconds, or None if the card has no timing."""
        if self.model.measured is None:
            return None
        return self.most_passes() * self.model.measured.gradient_ms / 1000

    def images(self) -> int:
        """Return how many images the case has."""
        available = len(self.data.arrays(self.case.split))
        return available if self.case.n is None else min(self.case.n, available)

    def most_passes(self) -> float:
        """Return the largest number of images that are passed forward and backward."""
        case, card = self.case, self.attack.card
        n = self.images()
        if case.n_fit is not None:  # the perturbation is fitted on so many training images
            n = min(case.n_fit, len(self.data.arrays("train")))
        every_rung = float(len(case.ladder))
        schedule = schedule_name(
            card,
            self.data.card.task,
            surrogate=self.surrogate is not None or case.knowledge != "adaptive",
            guard=self.defense.guards,
        )
        runs = _RUNS.get(schedule, every_rung)
        return n * runs * registry.passes(card, case.parameters)

    def titled(self, card: ModelCard) -> ModelCard:
        """Return a card of the victim with the title that a person chose for it, if one did."""
        if not self.model.named:
            return card
        return card.model_copy(update={"title": self.model.title, "named": True})

    def with_attack(self, card: AttackCard, parameters: dict[str, object]) -> ResolvedCase:
        """Return the case with another attack at the same radii; no record has its id."""
        case = self.case.model_copy(update={"attack": card.name, "parameters": parameters})
        attack = self.attack._replace(card=card, parameters=parameters)
        return self._replace(case=case, attack=attack)
