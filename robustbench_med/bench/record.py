"""Record: the result of a case, written once. Pages, tables and gates are computed from records."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from robustbench_med.bench.case import Case
from robustbench_med.cards import AttackCard, DatasetCard, DefenseCard, ModelCard
from robustbench_med.stats import Estimate

if TYPE_CHECKING:  # importing pandas takes half a second, and `plan` does not need it
    import pandas as pd

SCHEMA = 2
SUBGROUP = "subgroup:"  # begins the name of each column of subgroups in a samples table


_VERSION = re.compile(r'"schema_version":\s*(\d+)')


def check_schema(text: str) -> None:
    """Raise ValueError if the JSON of a record has another schema version than this package."""
    version = _VERSION.search(text)
    if version is not None and int(version[1]) != SCHEMA:
        raise ValueError(
            f"a record of schema {version[1]}, where this version reads schema {SCHEMA}: run its "
            "case again"
        )


class _Frozen(BaseModel):
    # NaN and Inf are stored as the strings "NaN" and "Infinity", so that a record is standard JSON
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Rung(_Frozen):
    """Every metric at one radius; the clean images are the rung with `eps` 0.

    Metrics of masks: dice, iou, pixel_accuracy, hd95, nsd, volume_error, lesion_miss and
    false_alarm (see metrics/segmentation.py). All but pixel_accuracy also exist for a single
    region, as "dice[lesion]"; target_dice exists if the objective draws a mask.

    Metrics of labels and findings: accuracy, balanced_accuracy, sensitivity, specificity, auc and
    f1 of the victim; attack_success, flips_to_normal and flips_to_disease of the attack; behind a
    detector also auroc, tpr_at_1, tpr_at_5, detected and false_alarms (per 1,000 studies; see
    metrics/detection.py).

    Metrics of the perturbation, as means over the attacked images: ssim, psnr (dB), l2, linf.
    """

    eps: float
    metrics: dict[str, Estimate]


class UniversalRung(_Frozen):
    """The effect of one universal perturbation on all images of the case, attacked or not.

    The literature uses one name for two counts: "changed" predictions differ from the prediction on
    the clean image, "wrong" predictions differ from the truth.
    """

    eps: float
    linf: float = Field(description="L-infinity norm of the perturbation")
    l2: float
    changed: Estimate = Field(description="share of predictions that differ from the clean one")
    wrong: Estimate = Field(description="share of predictions that differ from the truth")
    success: Estimate = Field(description="share of the attacked images that reach the goal")
    control_changed: Estimate = Field(description="`changed` by a random direction of equal norm")
    control_wrong: Estimate
    control_success: Estimate


class UniversalResult(_Frozen):
    """One universal perturbation for each rung, fitted on training images."""

    n_fit: int = Field(description="number of training images used to fit")
    rungs: tuple[UniversalRung, ...]
    file: str = Field(description="safetensors file beside record.json, with tensors `rung_i`")


class Audit(_Frozen):
    """Budget audit: how much the attack changed the images, measured on their float32 values."""

    norm: str
    max_size: tuple[float, ...] = Field(description="largest perturbation size at each rung")
    min_value: float
    max_value: float
    over_budget: int = Field(
        description="images that exceed their radius by more than the tolerance; must be 0"
    )
    tolerance: float
    bit_depth: int
    survives_rounding: Estimate = Field(
        description="share of the successes, each at its lowest rung, that remain after rounding "
        "to the bit depth"
    )


class LadderAudit(_Frozen):
    """Check of a descending ladder: some rows that were inferred to be robust are attacked."""

    inferred: int = Field(
        description="(sample, rung) pairs inferred robust from a failure at a larger radius"
    )
    checked: int
    success: int = Field(
        description="checked pairs on which the attack succeeded; > 0 attacks all inferred pairs"
    )
    reran: bool
    miss_bound: float = Field(
        description="upper 95 % confidence bound (Clopper-Pearson) of the share of inferred pairs "
        "on which the attack would succeed; 0 if all were attacked, NaN if none was checked"
    )


class Certificate(_Frozen):
    """What a defense proves about the clean images, for every possible attack."""

    radii: tuple[float, ...] = Field(description="L2 radii in [0,1] image units, rising from 0")
    correct: tuple[Estimate, ...] = Field(
        description="share of all images that are right and proved to stay so within the radius"
    )
    abstained: Estimate


class MaskCertificate(_Frozen):
    """What a defense proves about the masks of the clean images, for every possible attack."""

    radius: float = Field(description="L2 radius in [0,1] image units")
    alpha: float = Field(description="chance that any pixel of an image is certified wrongly")
    dice: Estimate = Field(
        description="certified Dice: the lowest Dice of all masks that agree with the certificate, "
        "as the mean over images of the mean over regions"
    )
    regions: dict[str, Estimate] = Field(description="the same of each region")
    certified: Estimate = Field(description="share of the pixels that are certified")
    inside: Estimate = Field(description="the same among the pixels of true regions")


class Cost(_Frozen):
    """The measured cost of the attack."""

    forward: int = Field(description="images forwarded")
    backward: int = Field(description="images back-propagated")
    seconds: float
    peak_memory_mib: float
    relative_forward_time: float | None = Field(
        default=None, description="time of a forward pass with the defense, relative to without"
    )


class Check(_Frozen):
    """A measured sign that a record may be untrustworthy; it raises a flag above its threshold."""

    name: str
    value: float
    threshold: float
    n_images: int | None = Field(default=None, description="number of images measured")


class Flag(_Frozen):
    """A reason to distrust the record: a check above its threshold, with its meaning in words."""

    name: str
    meaning: str
    value: float
    threshold: float


class Images(_Frozen):
    """Adversarial images saved beside the record; `verify --images` judges them."""

    file: str = Field(description="safetensors file beside record.json: images and their samples")
    n_images: int = Field(description="number of distinct images in the file")
    sha256: str


class MaskExample(_Frozen):
    """The masks of an example: images with masks drawn over them in the colours of `palette`."""

    truth: str = Field(description="file beside record.json: the clean image with its true mask")
    before: str = Field(description="file: the clean image with the predicted mask")
    after: str = Field(description="file: the attacked image with the predicted mask")
    target: str = Field(default="", description="file: the clean image with the attacker's mask")
    dice_before: float = Field(description="Dice with the truth, mean over regions")
    dice_after: float
    target_before: float | None = Field(default=None, description="Dice with the target mask")
    target_after: float | None = None
    view: str = Field(default="", description="which channel and slice is shown")


class Example(_Frozen):
    """One example of the gallery: three PNG files beside the record, and those of its masks."""

    sample: str
    truth: str
    clean_prediction: str
    adversarial_prediction: str
    eps: float
    amplification: float = Field(description="factor by which the shown perturbation is multiplied")
    clean: str = Field(description="file beside record.json, as are the next two")
    perturbation: str
    adversarial: str
    masks: MaskExample | None = None
    view: str = Field(
        default="",
        exclude_if=lambda view: not view,
        description="which window, channel and slice are shown; masks state channel and slice",
    )


class Provenance(_Frozen):
    """The time, machine, software and command with which the record was made."""

    version: str
    git_commit: str
    git_dirty: bool
    python: str
    torch: str
    platform: str
    cpu: str = Field(default="", description="processor, and the instruction set that torch uses")
    device: str
    threads: int
    started: str = Field(description="UTC, ISO 8601")
    command: str = Field(description="command that reproduces this case")


class Record(_Frozen):
    """The result of a case."""

    schema_version: int = SCHEMA
    case_id: str
    case: Case
    status: Literal["ok", "invalid"]
    reason: str = Field(default="", description="why the case is invalid")
    n: int
    patients: int | None = Field(
        description="number of patients; None = images are treated as independent"
    )
    threshold: tuple[float, ...] = Field(
        default=(),
        description="probability above which class 1, or each finding, is predicted; chosen on "
        "validation and frozen",
    )
    rungs: tuple[Rung, ...] = ()
    radii: tuple[float, ...] = Field(
        default=(), description="ladder in image units; differs from the case's if that has ratios"
    )
    distance: Estimate | None = Field(
        default=None,
        description="median distance of the attacked images; inf if half of them are robust",
    )
    universal: UniversalResult | None = None
    certificate: Certificate | None = None
    mask_certificate: MaskCertificate | None = Field(
        default=None, exclude_if=lambda proved: proved is None
    )
    audit: Audit | None = None
    ladder_audit: LadderAudit | None = None
    cost: Cost | None = None
    flags: tuple[Flag, ...] = ()
    checks: tuple[Check, ...] = Field(default=(), description="all checks, with or without a flag")
    notes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    images: Images | None = Field(default=None, description="the saved adversarial images, if any")
    dataset_card: DatasetCard
    model_card: ModelCard
    attack_card: AttackCard
    defense_card: DefenseCard | None = None
    provenance: Provenance

    @property
    def doubts(self) -> tuple[Flag, ...]:
        """Every flag that keeps the record from being ranked, and that fails a gate.

        These are the flags of the record. If the audit counts images over the budget and no flag
        of the record says so, such a flag is added.
        """
        over = self.audit.over_budget if self.audit else 0
        if not over or any(flag.name == "over_budget" for flag in self.flags):
            return self.flags
        meaning = f"{over} images over their budget"
        flag = Flag(name="over_budget", meaning=meaning, value=over, threshold=0)
        return (*self.flags, flag)


class Stored(NamedTuple):
    """A record with its samples table and its folder.

    `samples` has one row for each sample and rung, with these columns:

        sample, patient: str; patient is None if images are treated as independent.
        truth, prediction: a class id, a list of 0/1 findings, or for masks a list with the number
            of pixels of each region.
        eps: radius; 0 = clean.
        scores: list of k probabilities at the operating point; for masks, the Dice of each region.
        correct: whether the prediction is the truth; for masks a number, the Dice of the image:
            the mean over its regions.
        target_dice: for masks with a target, the Dice with the target; else the column is missing.
        attacked: the image is labelled and the clean image does not reach the attacker's goal.
        success: the attacker's goal is reached at this radius.
        l2, linf: size of the perturbation; NaN if the image was not attacked.
        distance: size of the smallest successful perturbation found, in the case's norm, the same
            in every row of an image; inf if none succeeded, NaN if the image was not attacked.
        ssim, psnr: visibility of the perturbation; NaN without a success.

    Where the data have subgroups there is a column `subgroup:NAME` of each, such as `subgroup:sex`:
    the subgroup of the image as text, the same in every row of an image; "" if it is not known.

    Where masks are certified there is `certified_dice`: the lowest Dice of the image, as the mean
    over its regions, that any mask has that agrees with the certificate; the same in every row.

    Behind a detector there are also `suspicion` and `rejected`, which is true if the suspicion is
    above 0. An attacked image then counts as correct if it is rejected; a clean image counts as
    correct only if it is not rejected.
    """

    record: Record
    samples: pd.DataFrame
    folder: str
