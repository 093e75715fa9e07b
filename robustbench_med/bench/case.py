"""Case: one cell of the grid, fully specified by data. Its id is the hash of its canonical JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from robustbench_med.cards import Norm, Threat


class Case(BaseModel):
    """What is computed, down to the bytes of weights and data. Nothing else may change a result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    data_sha256: str = Field(description="of the validation split and the split attacked")
    train_sha256: str = Field(
        default="", description="of the training split, where a perturbation or a budget needs it"
    )
    split: Literal["train", "val", "test"] = "test"
    n: int | None = Field(default=None, ge=1, description="images drawn from the split; None = all")
    victim: str
    victim_sha256: str = Field(description="of the card that builds it and of its weights")
    operating_point: Literal["youden", "argmax"] = "youden"
    defense: str = Field(
        default="none", description="spec of what wraps the victim, all parameters stated"
    )
    defense_version: int = 0
    knowledge: str = Field(
        default="adaptive",
        description="of the defense: adaptive, oblivious, or the detector evaded in its place",
    )
    attack: str = Field(description="registry name")
    attack_version: int
    parameters: dict[str, Any] = Field(
        description="every parameter of the attack, defaults included"
    )
    guide: Literal["float32", "bfloat16"] = Field(
        default="float32", description="precision of the gradients; the judge is always float32"
    )
    draws: int = Field(
        default=1, ge=1, description="forward passes averaged, of attack and judge alike (EOT)"
    )
    threat: Threat = Field(default="white_box", description="what the attacker has of the victim")
    surrogate: str | None = Field(default=None, description="the model attacked in its place")
    surrogate_sha256: str = ""
    objective: str = "untargeted"
    channels: dict[str, float] = Field(
        default_factory=dict,
        description="channels that may change and their share of the radius; empty = all, whole",
    )
    norm: Norm
    ladder: tuple[float, ...] = Field(
        description="rising radii, in image units where x is in [0,1], or ratios of the mean norm"
    )
    budget: Literal["absolute", "mean_norm"] = Field(
        default="absolute", description="whether radii are ratios of a training image's mean norm"
    )
    n_fit: int | None = Field(
        default=None, description="training images a universal perturbation is fitted on, at most"
    )
    seed: int = 0

    @property
    def id(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the canonical JSON.

        Fields at their default are left out: one added later changes no id.
        """
        stated = self.model_dump(mode="json", exclude_defaults=True)
        text = json.dumps(stated, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def drawn_by(self) -> str:
        """What draws are keyed by: the dataset's name; of one's own file not where it lies."""
        return Path(self.dataset).stem

    @property
    def evaded_detector(self) -> str:
        """Spec of the detector that the attacker evades in the place of the one deployed."""
        return "" if self.knowledge in ("adaptive", "oblivious") else self.knowledge

    @property
    def label(self) -> str:
        """A short name, which several cases of a suite may share (see failure.unique_labels)."""
        surrogate = "" if self.surrogate is None else f" from {self.surrogate}"
        defense = "" if self.defense == "none" else f" behind {self.defense}"
        knowledge = "" if self.knowledge == "adaptive" else f", {self.knowledge}"
        return f"{self.dataset} · {self.victim}{defense} · {self.attack}{surrogate}{knowledge}"
