"""The document of a report: the content of the JSON file, from which the HTML is rendered."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from robustbench_med.stats import Estimate

SCHEMA = "robustbench_med.report"
VERSION = 2

Verdict = Literal["met", "not met", "not tested"]


class Part(BaseModel):
    """A part of the document; NaN and Inf are stored as strings, as in records."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Framework(Part):
    """A law, guidance or standard from which clauses are cited, with edition and what was read."""

    name: str = Field(description="name of the framework in clauses")
    edition: str
    url: str
    checked: str = Field(description="day on which the clauses were last checked, ISO 8601")
    read: bool = Field(description="whether the clauses were compared with the text itself")
    basis: str = Field(description="the texts with which they were compared")


class Clause(Part):
    """A clause that a section may be evidence for. It is named for orientation."""

    framework: str = Field(description="name of a framework")
    clause: str
    subject: str


class Reference(Part):
    """A record from which figures come."""

    number: str = Field(description="its number in the report: R1, R2, ...")
    case_id: str
    path: str = Field(
        description="path of record.json, or of the file of packed records, relative to the folder "
        "that the report was made from"
    )
    record_sha256: str = Field(description="SHA-256 of that file; empty if it does not exist")
    samples_path: str = Field(description="path of the file of its samples, in the same folder")
    samples_sha256: str = Field(description="SHA-256 of that file")
    dataset: str
    column: str = Field(description="the attack, with the parameters that distinguish it")
    threat: str
    n: int
    status: str
    started: str
    version: str
    git_commit: str
    git_dirty: bool
    command: str
    flags: tuple[str, ...] = Field(description="meaning, measured value and allowed value of each")
    passed: int = Field(description="number of checks that raised no flag")
    audit: tuple[str, ...]
    cost: str


class Cell(Part):
    """One figure: an estimate at one radius, and the records from which it comes."""

    eps: float = Field(description="the radius; 0 is the clean image")
    estimate: Estimate
    records: tuple[str, ...] = Field(description="case ids")
    count: int | None = Field(default=None, description="number of images, if it is a share")
    by: str = Field(
        default="",
        description="the least favourable attack; if several are tied, three of them and how many "
        "more; empty for the clean image",
    )


class Line(Part):
    """One quantity at all radii."""

    name: str
    title: str
    kind: str = Field(description="format of its values: percent, unit, fine, plain or count")
    n: int = Field(description="number of images")
    cells: tuple[Cell, ...]
    aimed: bool = Field(
        default=True, description="whether an attack aimed at it; if not, it is not a worst case"
    )


class Proved(Part):
    """The share of clean images for which a defense proves its call, at each L2 radius."""

    words: str = Field(description="the noise, and how often the vote abstains")
    cells: tuple[Cell, ...] = Field(description="eps is an L2 radius for values from 0 to 1")


class MaskProof(Part):
    """The certified Dice of clean images, and the worst case of the attacks within its radius."""

    words: str = Field(description="the noise, the tested share of votes and the chance of error")
    broken: bool = Field(description="whether an attack went below the certificate")
    radius: float = Field(description="L2 radius for values from 0 to 1")
    dice: Cell
    attacked: Cell | None = Field(description="worst case at the largest radius within; or None")
    certified: Cell = Field(description="share of the pixels that are certified")
    regions: dict[str, Estimate] = Field(description="certified Dice of each region")


class DetectorLine(Part):
    """The metrics of a detector at the headline radius, and its false alarms in 1,000 studies."""

    name: str
    knowledge: Literal["oblivious", "adaptive"]
    attack: str
    eps: float
    metrics: dict[str, Estimate]
    records: tuple[str, ...]


class SubgroupLine(Part):
    """The worst case of one subgroup at all radii, and its difference from all other images."""

    name: str
    n: int = Field(description="number of images")
    patients: int = Field(description="number of patients; of images where they are not known")
    cells: tuple[Cell, ...]
    difference: Estimate = Field(
        description="its score minus that of the other images, at the headline radius"
    )
    p: float = Field(description="p value of no difference, Holm-corrected; NaN if not compared")
    versus: str = Field(description="the difference in words")
    notes: tuple[str, ...] = Field(description="why it is too small to say anything")


class Subgroups(Part):
    """The subgroups of one column of the data."""

    column: str
    unknown: int = Field(description="images whose subgroup is not known, which are left out")
    lines: tuple[SubgroupLine, ...]
    lowest: tuple[Cell, ...] = Field(
        default=(), description="the lowest true score of them, corrected for being the lowest"
    )


class Critical(Part):
    """Where a score first falls below a level; radii are those of the ladder."""

    name: str = Field(description="the score: that of the board, or sensitivity")
    title: str
    level: float
    held: float = Field(description="the largest radius up to which it is at the level or above")
    fell: float = Field(description="the first radius at which it is below; inf if there is none")
    low: float = Field(description="start of the 95 % interval")
    high: float = Field(description="its end; inf if the ladder does not reach it")
    words: str
    records: tuple[str, ...]


class Remaining(Part):
    """The residual risk on a board, in numbers."""

    eps: float = Field(description="the smallest radius that was attacked")
    units: Literal["patients", "images"]
    changed: int = Field(
        description="number of units with an image that is right when clean and broken at eps"
    )
    of: int = Field(description="number of all units")
    share: Estimate
    least_seen: float = Field(
        description="smallest share of units whose change is significant by an exact McNemar test "
        "at 5 %, if all changes have one direction; NaN if no change could be significant"
    )
    possible: float = Field(
        description="share of units that could fail although none did, with 95 % confidence"
    )


class Evidence(Part):
    """The results of the model on one board: one dataset, threat model, norm and ladder."""

    anchor: str
    dataset: str
    heading: str
    setting: str
    threat: str
    norm: str
    budget: str
    objective: str
    measure: str = Field(description="meaning and unit of the radii")
    oblivious: tuple[str, ...] = Field(
        default=(),
        description="attacks that do not know the defense; no worst case includes them",
    )
    channels: dict[str, float]
    ladder: tuple[float, ...]
    labels: tuple[str, ...] = Field(description="the ladder in words, the clean image first")
    native: tuple[str, ...] = Field(
        description="the radius of each label in the units of the data; empty if not stated"
    )
    headline: int = Field(description="index of the headline radius in the ladder, from 0")
    defense: str
    defense_spec: str
    weights: str = Field(description="SHA-256 of the victim's card and weights")
    metric: str
    score: str = Field(description="the score of an image in words")
    counted: str = Field(description="how an image counts in the worst case")
    rule: str = Field(description="which images count as right behind a detector; empty without")
    standing: str
    doubts: tuple[str, ...] = Field(description="reasons to distrust the figures")
    crosscheck: str
    images: int
    patients: int | None
    worst: Line
    attacks: tuple[Line, ...]
    calls: tuple[Line, ...] = Field(description="worst-case recalls at the frozen threshold")
    flips: tuple[Line, ...]
    unaimed: tuple[str, ...] = Field(
        default=(),
        description="the calls and flips that no attack aimed at, with the command of an attack",
    )
    regions: tuple[Line, ...] = Field(description="metrics of the regions of masks")
    critical: tuple[Critical, ...] = ()
    subgroups: tuple[Subgroups, ...] = ()
    detectors: tuple[DetectorLine, ...]
    proved: Proved | None = None
    proved_masks: MaskProof | None = None
    remaining: Remaining | None
    decision: str = Field(description="rule that turns probabilities into a prediction")
    records: tuple[str, ...]


class Outcome(Part):
    """A criterion and whether it is met on one board."""

    heading: str
    anchor: str = ""
    verdict: Verdict
    judged: float | None = Field(
        default=None, description="the number that is compared with the limit"
    )
    estimate: Estimate | None = None
    unit: str = Field(default="", description="unit of both; empty for shares and scores up to 1")
    why: str = Field(default="", description="reason why it was not tested")
    note: str = Field(default="", description="a critical radius with its interval, in words")
    images: int | None = Field(default=None, description="number of images")
    single: bool = Field(
        default=False,
        description="whether it is the value under the worst single attack, not image by image",
    )
    doubts: tuple[str, ...] = ()
    records: tuple[str, ...] = ()


class Judged(Part):
    """A criterion with its verdict, which is the worst of its outcomes."""

    number: str
    words: str
    stated: dict[str, str | float] = Field(description="the fields stated in the file")
    basis: Literal["low", "value", "high"]
    kind: str
    verdict: Verdict
    doubted: bool
    outcomes: tuple[Outcome, ...]


class Criteria(Part):
    """The acceptance criteria, and whether they were written before the results."""

    file: str
    sha256: str
    modified: str = Field(description="time of the file's last change, UTC, ISO 8601")
    first_record: str = Field(description="start of the earliest record, UTC, ISO 8601")
    written_after: bool = Field(description="whether the file is newer than the first record")
    judged: tuple[Judged, ...]
    others: int = Field(default=0, description="number of the file's criteria for other models")


class Tested(Part):
    """A threat model that was tested."""

    who: str
    may: str
    wants: str
    attacks: tuple[str, ...]
    boards: tuple[str, ...] = Field(description="anchors of its boards")


class Model(Part):
    """The model with one state of its weights, as its card describes it."""

    name: str
    title: str
    summary: str
    family: str
    builder: str
    preprocess: str = Field(
        default="", description="steps of the device between a stored image and the network"
    )
    parameters: int | None
    source: str
    training_data: str
    stated: str = Field(description="score in the card, measured when the model was trained")
    weights_sha256: str = Field(description="SHA-256 of the weights file, as the card states it")
    victim_sha256: str = Field(description="SHA-256 of card and weights, as the cases state it")
    defenses: tuple[str, ...]
    records: tuple[str, ...]


class Use(Part):
    """The images of a dataset from which records were made."""

    data_sha256: str = Field(description="SHA-256 of the validation split and the attacked split")
    train_sha256: str
    split: str
    n: int
    patients: int | None = Field(description="None if images are treated as independent")
    records: tuple[str, ...]


class Data(Part):
    """A dataset on which the model was tested."""

    name: str
    heading: str
    summary: str
    modality: str
    classes: tuple[str, ...]
    native_range: str = Field(description="original values behind 0 and 1")
    bit_depth: int = Field(description="bits of a stored pixel")
    pixel: str = Field(description="size of a pixel, or a note that it is not known")
    synthetic: bool
    source: str
    licence: str
    url: str
    notes: tuple[str, ...]
    uses: tuple[Use, ...]


class Software(Part):
    """The software and hardware with which records were made."""

    version: str
    git_commit: str
    git_dirty: bool
    python: str
    torch: str
    platform: str
    device: str
    cpu: str = ""
    threads: int
    first: str
    last: str
    records: tuple[str, ...]


class Report(Part):
    """Evidence on one model."""

    format: str = SCHEMA
    schema_version: int = VERSION
    victim: str
    title: str
    statement: str
    frameworks: tuple[Framework, ...] = Field(description="the sources of the clauses")
    clauses: dict[str, tuple[Clause, ...]] = Field(
        description="section -> clauses that it may be evidence for"
    )
    models: tuple[Model, ...]
    data: tuple[Data, ...]
    software: tuple[Software, ...]
    tested: tuple[Tested, ...]
    not_tested: tuple[str, ...]
    criteria: Criteria | None
    boards: tuple[Evidence, ...]
    limits: tuple[str, ...]
    unreadable: tuple[str, ...] = Field(
        default=(),
        description="records of the folder that could not be read and may be about this model",
    )
    command: str = Field(description="command that makes this report again")
    records: tuple[Reference, ...]
