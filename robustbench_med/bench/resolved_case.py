"""ResolvedCase: a case with everything that its texts stand for, parsed once."""

from __future__ import annotations

from typing import NamedTuple

from robustbench_med import registry
from robustbench_med.bench.attack_spec import ResolvedAttack
from robustbench_med.bench.case import Case
from robustbench_med.bench.defense_spec import ResolvedDefense
from robustbench_med.cards import AttackCard, DatasetCard, ModelCard
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.models.load import Loaded, ModelSource
from robustbench_med.objective import Objective

_RUNS = {"descend": 1.5, "distance": 1.0}  # full runs of an attack a ladder costs; else one a rung


class ResolvedSurrogate(NamedTuple):
    """The model that is attacked in the victim's place.

    Attributes:
        source: what its text names.
        data: the card of the images it was trained on.
        sha256: the hash of its card and weights.
    """

    source: ModelSource
    data: DatasetCard
    sha256: str


class ResolvedCase(NamedTuple):
    """A case with everything that its texts stand for.

    `plan` parses each text once. Nothing that runs, checks or scores a case parses one again.

    Attributes:
        case: what is computed, as texts and numbers; it alone is hashed and stored.
        data: the images.
        model: the card of the victim.
        victim: what the text of the victim names.
        attack: the card, parameters and ladder of the attack.
        defense: what the victim is wrapped in, and what the attacker knows of it.
        objective: what the attacker wants, without regard to a detector.
        surrogate: the model attacked in the victim's place, if any.
        loaded: a victim handed in from Python, which no text can name.
        seconds: what it takes at most, from the victim's card; None where the card does not know.
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
        """Return the seconds it takes at most, or None where the victim's card has no timing."""
        if self.model.measured is None:
            return None
        return self.most_passes() * self.model.measured.gradient_ms / 1000

    def most_passes(self) -> float:
        """Return the images that are passed forward and backward, at most."""
        case, card = self.case, self.attack.card
        available = len(self.data.arrays(case.split))
        n = available if case.n is None else min(case.n, available)
        if case.n_fit is not None:  # the passes are those of the images it is fitted on
            n = min(case.n_fit, len(self.data.arrays("train")))
        every_rung = float(len(case.ladder))
        masks = self.data.card.task == "segmentation"  # searched for the worst at every radius
        runs = every_rung if masks else _RUNS.get(card.schedule, every_rung)
        return n * runs * registry.passes(card, case.parameters)

    def with_attack(self, card: AttackCard, parameters: dict[str, object]) -> ResolvedCase:
        """Return the case with another attack at the same radii; its id is of no record."""
        case = self.case.model_copy(update={"attack": card.name, "parameters": parameters})
        attack = self.attack._replace(card=card, parameters=parameters)
        return self._replace(case=case, attack=attack)
