"""Case: the complete description of one computation. Its id is the hash of its canonical JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from robustbench_med.cards import Norm, Threat


class Case(BaseModel):
    """One computation, described down to the bytes of weights and data, which fixes its result."""

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
    defense_sha256: str = Field(
        default="", description="of the code of a defense in a file of the user's own"
    )
    knowledge: str = Field(
        default="adaptive",
        description="what the attacker knows about the defense: adaptive, oblivious, or the name "
        "of the detector that is evaded instead",
    )
    attack: str = Field(description="registry name")
    attack_version: int
    attack_sha256: str = Field(
        default="", description="of the code of an attack in a file of the user's own"
    )
    parameters: dict[str, Any] = Field(
        description="every parameter of the attack, defaults included"
    )
    guide: Literal["float32", "bfloat16"] = Field(
        default="float32", description="precision of the gradients; the judge is always float32"
    )
    draws: int = Field(
        default=1, ge=1, description="forward passes that attack and judge average (EOT)"
    )
    threat: Threat = Field(default="white_box", description="the attacker's access to the victim")
    surrogate: str | None = Field(default=None, description="the model attacked instead")
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
        default=None, description="a universal perturbation is fitted on at most so many images"
    )
    seed: int = 0

    @property
    def id(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the canonical JSON.

        Fields at their default are left out, so that a field that is added later changes no id.
        """
        stated = self.model_dump(mode="json", exclude_defaults=True)
        text = json.dumps(stated, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def drawn_by(self) -> str:
        """The key of random draws: the dataset's name; for your own file without its folder."""
        return Path(self.dataset).stem

    @property
    def evaded_detector(self) -> str:
        """Spec of the detector that the attacker evades instead of the deployed one."""
        return "" if self.knowledge in ("adaptive", "oblivious") else self.knowledge

    @property
    def label(self) -> str:
        """A short name, which several cases of a suite may share (see failure.unique_labels)."""
        surrogate = "" if self.surrogate is None else f" from {self.surrogate}"
        defense = "" if self.defense == "none" else f" behind {self.defense}"
        knowledge = "" if self.knowledge == "adaptive" else f", {self.knowledge}"
        return f"{self.dataset} · {self.victim}{defense} · {self.attack}{surrogate}{knowledge}"
