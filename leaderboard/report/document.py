"""The document of a report: what the JSON holds and the HTML shows. One source for both."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from robustbench_med.stats import Estimate

SCHEMA = "robustbench_med.report"
VERSION = 2

Verdict = Literal["met", "not met", "not tested"]


class Part(BaseModel):
    """A part of the document; NaN and Inf travel as strings, as they do in records."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Framework(Part):
    """A law, guidance or standard that clauses are cited from: which edition, and what was read."""

    name: str = Field(description="what clauses call it")
    edition: str
    url: str
    checked: str = Field(description="day on which the clauses were last checked, ISO 8601")
    read: bool = Field(description="whether the clauses were compared with the text itself")
    basis: str = Field(description="what they were compared with, in words")


class Clause(Part):
    """A clause that a section is evidence for; for orientation, and no claim to meet it."""

    framework: str = Field(description="name of a framework")
    clause: str
    subject: str


class Reference(Part):
    """A record that figures are taken from."""

    number: str = Field(description="what the report calls it: R1, R2, ...")
    case_id: str
    path: str = Field(
        description="of record.json, or of the file of packed records, below the folder the report "
        "was made from"
    )
    record_sha256: str = Field(description="of that file; empty where it is not on the disk")
    samples_path: str = Field(description="of the file of its samples, below the same folder")
    samples_sha256: str = Field(description="of that file")
    dataset: str
    column: str = Field(description="the attack, and what tells it from others on its board")
    threat: str
    n: int
    status: str
    started: str
    version: str
    git_commit: str
    git_dirty: bool
    command: str
    flags: tuple[str, ...] = Field(description="meaning, value measured and value allowed")
    passed: int = Field(description="checks that raised no flag")
    audit: tuple[str, ...]
    cost: str


class Cell(Part):
    """One figure: an estimate at one radius, and the records it comes from."""

    eps: float = Field(description="0 is the clean image")
    estimate: Estimate
    records: tuple[str, ...] = Field(description="case ids")
    count: int | None = Field(default=None, description="images counted, of a count")
    by: str = Field(default="", description="the attack that is least favourable here")


class Line(Part):
    """One quantity at every radius."""

    name: str
    title: str
    kind: str = Field(description="how it is written: percent, unit, fine, plain, count")
    n: int = Field(description="images it is taken over")
    cells: tuple[Cell, ...]
    aimed: bool = Field(
        default=True, description="whether some attack aimed at it; else it is no worst case"
    )


class Proved(Part):
    """What a defense proves of the clean images, whatever the attack: a share at each L2 radius."""

    words: str = Field(description="the noise, and how often the vote abstains")
    cells: tuple[Cell, ...] = Field(description="eps is an L2 radius, of values from 0 to 1")


class DetectorLine(Part):
    """What a detector catches at the headline radius, and its false alarms in 1,000 studies."""

    name: str
    knowledge: Literal["oblivious", "adaptive"]
    attack: str
    eps: float
    metrics: dict[str, Estimate]
    records: tuple[str, ...]


class Remaining(Part):
    """What is left of the risk on a board, in numbers."""

    eps: float = Field(description="the smallest radius tried")
    units: Literal["patients", "images"]
    changed: int = Field(description="units with an image right when clean and broken at eps")
    of: int
    share: Estimate
    least_seen: float = Field(
        description="smallest share of units whose outcome must change to be told from chance: "
        "exact McNemar test at 5 %, all changes in one direction; NaN where none could be"
    )
    possible: float = Field(
        description="share of units that could fail though none of them did, at 95 %"
    )


class Evidence(Part):
    """What is known of the model on one board: one dataset, threat model, norm and ladder."""

    anchor: str
    dataset: str
    heading: str
    setting: str
    threat: str
    norm: str
    budget: str
    objective: str
    measure: str = Field(description="what the radii are, with their unit")
    oblivious: tuple[str, ...] = Field(
        default=(), description="attacks that do not know of the defense: in no worst case"
    )
    channels: dict[str, float]
    ladder: tuple[float, ...]
    labels: tuple[str, ...] = Field(description="the ladder in words, the clean image first")
    native: tuple[str, ...] = Field(
        description="of each label the radius in the units of the data; empty where not stated"
    )
    headline: int = Field(description="place of the headline radius on the ladder, from 0")
    defense: str
    defense_spec: str
    weights: str = Field(description="SHA-256 of the card that builds the victim and its weights")
    metric: str
    score: str = Field(description="what is counted of each image, in words")
    counted: str = Field(description="when an image counts in the worst case")
    rule: str = Field(description="what counts as right behind a detector; empty without one")
    standing: str
    doubts: tuple[str, ...] = Field(description="why the figures should be distrusted")
    crosscheck: str
    images: int
    patients: int | None
    worst: Line
    attacks: tuple[Line, ...]
    calls: tuple[Line, ...] = Field(description="recalls under the worst case, by frozen threshold")
    flips: tuple[Line, ...]
    unaimed: tuple[str, ...] = Field(
        default=(), description="which of them no attack aimed at, and the command that would"
    )
    regions: tuple[Line, ...] = Field(description="of masks")
    detectors: tuple[DetectorLine, ...]
    proved: Proved | None = None
    remaining: Remaining | None
    decision: str = Field(description="how probabilities become a prediction")
    records: tuple[str, ...]


class Outcome(Part):
    """A criterion and whether it is met on one board."""

    heading: str
    anchor: str = ""
    verdict: Verdict
    judged: float | None = Field(default=None, description="the number held against the limit")
    estimate: Estimate | None = None
    unit: str = Field(default="", description="of both; empty of shares and scores from 0 to 1")
    why: str = Field(default="", description="why it was not tested")
    images: int | None = Field(default=None, description="images it is judged on")
    single: bool = Field(
        default=False, description="whether it is the worst single attack, not image by image"
    )
    doubts: tuple[str, ...] = ()
    records: tuple[str, ...] = ()


class Judged(Part):
    """A criterion with its verdict: the worst of its outcomes."""

    number: str
    words: str
    stated: dict[str, str | float] = Field(description="as written in the file")
    basis: Literal["low", "value", "high"]
    kind: str
    verdict: Verdict
    doubted: bool
    outcomes: tuple[Outcome, ...]


class Criteria(Part):
    """The acceptance criteria, and whether they were given beforehand."""

    file: str
    sha256: str
    modified: str = Field(description="of the file, UTC, ISO 8601")
    first_record: str = Field(description="start of the earliest record, UTC, ISO 8601")
    written_after: bool = Field(description="whether the file is younger than the first record")
    judged: tuple[Judged, ...]
    others: int = Field(default=0, description="criteria of the file that are of other models")


class Tested(Part):
    """A threat model that was tested."""

    who: str
    may: str
    wants: str
    attacks: tuple[str, ...]
    boards: tuple[str, ...] = Field(description="anchors")


class Model(Part):
    """The model: its card, and what was run under its name."""

    name: str
    title: str
    summary: str
    family: str
    builder: str
    parameters: int | None
    source: str
    training_data: str
    stated: str = Field(description="score that the card states, measured when it was trained")
    weights_sha256: str = Field(description="of the weights file, as the card states it")
    victim_sha256: str = Field(description="of card and weights, as the cases state it")
    defenses: tuple[str, ...]
    records: tuple[str, ...]


class Use(Part):
    """Images of a dataset that records were made from."""

    data_sha256: str = Field(description="of the validation split and the split attacked")
    train_sha256: str
    split: str
    n: int
    patients: int | None = Field(description="None: images treated as independent")
    records: tuple[str, ...]


class Data(Part):
    """Data that the model was tested on."""

    name: str
    heading: str
    summary: str
    modality: str
    classes: tuple[str, ...]
    native_range: str = Field(description="what the values 0 and 1 of an image stand for")
    bit_depth: int = Field(description="bits a stored pixel has")
    pixel: str = Field(description="size of a pixel, or that it is not known")
    synthetic: bool
    source: str
    licence: str
    url: str
    notes: tuple[str, ...]
    uses: tuple[Use, ...]


class Software(Part):
    """With what records were made."""

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
    frameworks: tuple[Framework, ...] = Field(description="what clauses are cited from")
    clauses: dict[str, tuple[Clause, ...]] = Field(description="section -> clauses it serves")
    models: tuple[Model, ...]
    data: tuple[Data, ...]
    software: tuple[Software, ...]
    tested: tuple[Tested, ...]
    not_tested: tuple[str, ...]
    criteria: Criteria | None
    boards: tuple[Evidence, ...]
    limits: tuple[str, ...]
    unreadable: tuple[str, ...] = Field(
        default=(), description="records of the folder that could not be read, whosever they are"
    )
    command: str = Field(description="makes this report again")
    records: tuple[Reference, ...]
