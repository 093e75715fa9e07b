"""Record: the outcome of a case. Written once; pages, tables and gates are derived from it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from robustbench_med.bench.case import Case
from robustbench_med.cards import AttackCard, DatasetCard, DefenseCard, ModelCard
from robustbench_med.stats import Estimate

if TYPE_CHECKING:  # half a second that `plan` does without
    import pandas as pd

SCHEMA = 2


_VERSION = re.compile(r'"schema_version":\s*(\d+)')


def check_schema(text: str) -> None:
    """Raise ValueError where the JSON of a record states another schema than this version's."""
    version = _VERSION.search(text)
    if version is not None and int(version[1]) != SCHEMA:
        raise ValueError(
            f"a record of schema {version[1]}, where this version reads schema {SCHEMA}: run its "
            "case again"
        )


class _Frozen(BaseModel):
    # NaN and Inf travel as the strings "NaN" and "Infinity", so that a record is standard JSON
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Rung(_Frozen):
    """Every metric at one radius; `eps` 0 is the clean row.

    Metrics of masks: dice, iou, pixel_accuracy, hd95, nsd, volume_error, lesion_miss and
    false_alarm (see metrics/segmentation.py), each but pixel_accuracy also for one region,
    "dice[lesion]"; target_dice where the objective draws a mask.

    Metrics of labels and findings: accuracy, balanced_accuracy, sensitivity, specificity, auc and
    f1 of the victim; attack_success, flips_to_normal and flips_to_disease of the attack; behind a
    detector also auroc, tpr_at_1, tpr_at_5, detected and false_alarms (per 1,000 studies; see
    metrics/detection.py).

    Metrics of the perturbation, as means over the attacked images: ssim, psnr (dB), l2, linf.
    """

    eps: float
    metrics: dict[str, Estimate]


class UniversalRung(_Frozen):
    """What one universal perturbation does to all images of the case, attacked or not.

    "Changed" and "wrong" are two counts that the literature mixes under one name: a prediction that
    is not the clean one, and one that is not the truth.
    """

    eps: float
    linf: float = Field(description="of the pattern itself")
    l2: float
    changed: Estimate = Field(description="predictions that are not the clean one")
    wrong: Estimate = Field(description="predictions that are not the truth")
    success: Estimate = Field(description="attacker's goal reached, of the images attacked")
    control_changed: Estimate = Field(description="by a random direction of equal norm")
    control_wrong: Estimate
    control_success: Estimate


class UniversalResult(_Frozen):
    """A universal perturbation a rung, fitted on training images and applied to others."""

    n_fit: int = Field(description="training images it was fitted on")
    rungs: tuple[UniversalRung, ...]
    file: str = Field(description="safetensors beside record.json, a tensor `rung_i` each")


class Audit(_Frozen):
    """What the attack really used, measured on the stored float32 images."""

    norm: str
    max_size: tuple[float, ...] = Field(description="largest perturbation size at each rung")
    min_value: float
    max_value: float
    over_budget: int = Field(
        description="images over their radius by more than the tolerance; must be 0"
    )
    tolerance: float
    bit_depth: int
    survives_rounding: Estimate = Field(
        description="share of the images that broke, each at its lowest rung, still adversarial "
        "after rounding to the bit depth"
    )


class LadderAudit(_Frozen):
    """How the descending ladder was checked: rows inferred to be robust, and attacked after all."""

    inferred: int = Field(
        description="(sample, rung) pairs taken to be robust because a larger radius failed"
    )
    checked: int
    success: int = Field(
        description="of those checked, broken all the same; > 0 reruns all the inferred"
    )
    reran: bool
    miss_bound: float = Field(
        description="share of the inferred that would break too, at most, with 95 % confidence "
        "(Clopper-Pearson); 0 where all were rerun, NaN where none was checked"
    )


class Certificate(_Frozen):
    """What a defense proves of the clean images, whatever an attack finds."""

    radii: tuple[float, ...] = Field(description="L2 in [0,1] image units, rising from 0")
    correct: tuple[Estimate, ...] = Field(
        description="share of all images called right, with no other class in that radius"
    )
    abstained: Estimate


class Cost(_Frozen):
    """What the attack cost. Counted, not estimated."""

    forward: int = Field(description="images forwarded")
    backward: int = Field(description="images back-propagated")
    seconds: float
    peak_memory_mib: float
    relative_forward_time: float | None = Field(
        default=None, description="time of a forward pass with the defense over one without"
    )


class Check(_Frozen):
    """Something that would make a record untrustworthy, measured; raised above its threshold."""

    name: str
    value: float
    threshold: float
    n_images: int | None = Field(default=None, description="images it was measured on")


class Flag(_Frozen):
    """A reason to distrust the record: a check that was raised, in words."""

    name: str
    meaning: str
    value: float
    threshold: float


class Images(_Frozen):
    """Adversarial images saved beside the record; `verify --images` judges them."""

    file: str = Field(description="safetensors beside record.json: images, and whose they are")
    n_images: int = Field(description="distinct images in it")
    sha256: str


class MaskExample(_Frozen):
    """The masks of a picture: images with masks drawn over them in the colours of `palette`."""

    truth: str = Field(description="file names beside record.json: the clean image, as labelled")
    before: str = Field(description="the clean image, as the victim calls it")
    after: str = Field(description="the attacked image, as the victim calls it")
    target: str = Field(default="", description="the clean image, as the attacker wants it")
    dice_before: float = Field(description="with the truth, mean over regions")
    dice_after: float
    target_before: float | None = Field(default=None, description="Dice with the target mask")
    target_after: float | None = None
    view: str = Field(default="", description="which channel and slice is shown")


class Example(_Frozen):
    """One picture of the gallery: three PNG files beside the record, and those of its masks."""

    sample: str
    truth: str
    clean_prediction: str
    adversarial_prediction: str
    eps: float
    amplification: float = Field(description="factor the perturbation picture is multiplied with")
    clean: str = Field(description="file names beside record.json")
    perturbation: str
    adversarial: str
    masks: MaskExample | None = None


class Provenance(_Frozen):
    """Where and with what the record was made."""

    version: str
    git_commit: str
    git_dirty: bool
    python: str
    torch: str
    platform: str
    cpu: str = Field(default="", description="processor, and the instructions torch uses of it")
    device: str
    threads: int
    started: str = Field(description="UTC, ISO 8601")
    command: str = Field(description="reproduces this case")


class Record(_Frozen):
    """The outcome of a case."""

    schema_version: int = SCHEMA
    case_id: str
    case: Case
    status: Literal["ok", "invalid"]
    reason: str = Field(default="", description="why the case is invalid")
    n: int
    patients: int | None = Field(
        description="distinct patients; None: images treated as independent"
    )
    threshold: tuple[float, ...] = Field(
        default=(),
        description="probability of class 1, or of each finding, above which it is called; frozen "
        "on validation",
    )
    rungs: tuple[Rung, ...] = ()
    radii: tuple[float, ...] = Field(
        default=(), description="the ladder in image units; the ladder itself unless it is a ratio"
    )
    distance: Estimate | None = Field(
        default=None,
        description="median distance of the images attacked; inf where half are robust",
    )
    universal: UniversalResult | None = None
    certificate: Certificate | None = None
    audit: Audit | None = None
    ladder_audit: LadderAudit | None = None
    cost: Cost | None = None
    flags: tuple[Flag, ...] = ()
    checks: tuple[Check, ...] = Field(default=(), description="all that was checked, raised or not")
    notes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    images: Images | None = Field(default=None, description="where the run saved them")
    dataset_card: DatasetCard
    model_card: ModelCard
    attack_card: AttackCard
    defense_card: DefenseCard | None = None
    provenance: Provenance

    @property
    def doubts(self) -> tuple[Flag, ...]:
        """Every flag for which the record is not ranked, and for which a gate fails.

        All that it carries, and one of its budget where the audit counts images over it that no
        flag of the record speaks of.
        """
        over = self.audit.over_budget if self.audit else 0
        if not over or any(flag.name == "over_budget" for flag in self.flags):
            return self.flags
        meaning = f"{over} images over their budget"
        flag = Flag(name="over_budget", meaning=meaning, value=over, threshold=0)
        return (*self.flags, flag)


class Stored(NamedTuple):
    """A record with its samples table and the folder both lie in.

    `samples` has a row a (sample, rung):

        sample, patient: str; patient is None where images are treated as independent.
        truth, prediction: class id, a list of 0/1 findings, or of masks a list of the pixels of
            each region.
        eps: radius; 0 = clean.
        scores: list of k probabilities at the operating point; of masks, the Dice of each region.
        correct: whether the prediction is the truth; of masks a number, the Dice of the image:
            the mean over its regions.
        target_dice: of masks with a target, the Dice with it; else there is no such column.
        attacked: labelled, and the attacker's goal was not reached by the clean image.
        success: the attacker's goal is reached at this radius.
        l2, linf: size of the perturbation, NaN where not attacked.
        distance: smallest perturbation found that broke the image, in the case's norm, the same in
            every row of an image; inf where none did, NaN where not attacked.
        ssim, psnr: how visible it is, NaN where not broken.

    Behind a detector also `suspicion` and `rejected`: whether it is above 0. There an image that is
    attacked counts as correct where it is rejected, and a clean one only where it is not.
    """

    record: Record
    samples: pd.DataFrame
    folder: str
