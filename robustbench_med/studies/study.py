"""Study: a TOML file with a paper's claim, its published numbers and how they are measured here."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from robustbench_med import registry
from robustbench_med.bench.suite import Grid, Suite
from robustbench_med.cards import Card
from robustbench_med.errors import SpecError, UnknownNameError
from robustbench_med.spec import number

FOLDER = registry.CORE / "studies"
SUITE = "studies"  # the name of the suite of their corrected cases
TITLE = "Studies of the literature"
Question = Literal["breaks", "transfers", "defended", "control"]
Claim = Literal["falls", "rises", "unchanged"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reference(_Model):
    """A number of the paper, and how sure it is.

    A number that nobody could read has certainty "unverifiable" and no value.
    """

    id: str
    of: str = Field(description="what the number is of, in words")
    value: float | None = Field(default=None, description="a score from 0 to 1")
    where: str = Field(description="the table, notebook, abstract or page it was read in")
    quote: str = Field(default="", description="the source's own words or digits for the number")
    kind: Literal["table", "repository", "abstract", "secondary"]
    certainty: Literal["read", "abstract", "secondary", "unverifiable"]

    @model_validator(mode="after")
    def _has_value_if_verifiable(self) -> Self:
        if (self.value is None) != (self.certainty == "unverifiable"):
            raise ValueError(
                f"{self.id}: expected a value exactly where the certainty is not 'unverifiable'"
            )
        return self


class Published(_Model):
    """A measurement by the paper's own protocol.

    Attributes:
        dataset, victim, surrogate: registry names; the surrogate is attacked instead of the victim.
        protocol: the attack as published, a spec of `protocols.py`.
        reading: the paper's metric, a spec of `readings.py`.
        defense: spec of a defense of this bench around the victim; the attacker does not know it.
        goal: for masks: a spec of `replaced` in `objectives/shapes.py` without `y`; the masks that
            the attacker wants and that the metric compares with, in place of the truth.
        operating_point: where the deployed victim decides: "argmax" as its network does, "youden"
            at the threshold chosen on validation, which shifts its probabilities. The attacked
            model stays as it is.
        split, n: which images, and how many of them.
    """

    dataset: str
    victim: str
    surrogate: str = ""
    protocol: str
    reading: str
    defense: str = ""
    goal: str = ""
    operating_point: Literal["youden", "argmax"] = "argmax"
    split: Literal["train", "val", "test"] = "test"
    n: int | None = Field(default=None, ge=1)


class Corrected(_Model):
    """Which records of this bench answer the same question, and at which radius.

    The score is the worst case of each image over the named attacks: the share of images that are
    right when clean and stay right, or the mean Dice.

    Attributes:
        channels: names of the channels that may change; empty = all.
        claim: what the paper's claim says of this score. By default it falls, or stays unchanged
            where the row is a control.
    """

    dataset: str
    victim: str
    attacks: tuple[str, ...] = Field(min_length=1)
    eps: float = Field(gt=0)
    norm: Literal["linf", "l2", "l1", "l0"] = "linf"
    surrogate: str = ""
    defense: str = "none"
    knowledge: str = "adaptive"
    objective: str = "untargeted"
    channels: tuple[str, ...] = ()
    claim: Claim | None = None

    _eps = field_validator("eps", mode="before")(lambda value: number(value))


class Row(_Model):
    """One number of a study: published, as published here, and corrected.

    Attributes:
        question: what the row answers in the overview; the size and visibility of a change are
            those of the first row that asks whether the model breaks.
        score: what the paper counts, in words; a corrected number is always of images still right.
        before, after: ids of the references of the score before and after the attack; empty where
            the paper's number could not be read.
        claim: what the paper says that the attack does to the score; a control leaves it unchanged.
        primary: whether the study's verdict counts this row.
        compares: ids of two rows: this row then has no measurement of its own, and its score goes
            from that of the first under attack to that of the second.
    """

    id: str
    label: str
    question: Question
    score: str = "accuracy"
    before: str = ""
    after: str = ""
    claim: Claim = "falls"
    primary: bool = True
    compares: tuple[str, str] | None = None
    published: Published | None = None
    corrected: Corrected | None = None

    @model_validator(mode="after")
    def _is_measured_or_compares(self) -> Self:
        if (self.compares is None) == (self.published is None and self.corrected is None):
            raise ValueError(f"{self.id}: expected either a measurement or `compares`")
        return self


class Quirk(_Model):
    """A property of the published protocol that moves a number, in words.

    Attributes:
        id: a word for it.
        what: the property, and what a sound protocol does instead.
        moves: id of the row whose number it moves.
        without: fields of the row's published protocol that remove the property, e.g. another
            reading; empty where it cannot be removed alone.
    """

    id: str
    what: str
    moves: str
    without: dict[str, Any] = Field(default_factory=dict)


class Study(Card):
    """A published study. `summary` is its claim in one sentence, `source` the paper."""

    seed: int = 0
    protocol: str = Field(description="the protocol as published, in sentences")
    substitute: str = Field(description="the data used here instead, and what that forbids")
    conclusion: str = Field(description="what a reader may conclude")
    references: tuple[Reference, ...] = ()
    rows: tuple[Row, ...] = Field(min_length=1)
    quirks: tuple[Quirk, ...] = ()
    grids: tuple[Grid, ...] = ()

    @model_validator(mode="after")
    def _ids_exist(self) -> Self:
        references, rows = [r.id for r in self.references], [row.id for row in self.rows]
        for ids in (references, rows, [quirk.id for quirk in self.quirks]):
            twice = {name for name in ids if ids.count(name) > 1}
            if twice:
                raise ValueError(f"expected each id once, got {min(twice)!r} twice")
        for row in self.rows:
            for name in (row.before, row.after):
                if name and name not in references:
                    raise ValueError(f"row {row.id}: expected the id of a reference, got {name!r}")
            for name in row.compares or ():
                if name not in rows or self.row(name).compares:
                    raise ValueError(f"row {row.id}: expected a measured row, got {name!r}")
        for quirk in self.quirks:
            if quirk.moves not in rows:
                raise ValueError(f"expected a quirk to move a row, got {quirk.moves!r}")
            if quirk.without and self.row(quirk.moves).published is None:
                raise ValueError(f"{quirk.id}: expected a row with a published protocol")
        self.measurements()  # raises if a quirk's fields do not fit
        return self

    def row(self, name: str) -> Row:
        """Return the row with this id."""
        return next(row for row in self.rows if row.id == name)

    def measurements(self) -> dict[str, Published]:
        """Return the published protocols by id: of each row, and of each row without a quirk."""
        found = {row.id: row.published for row in self.rows if row.published is not None}
        for quirk in self.quirks:
            if quirk.without:
                values = {**found[quirk.moves].model_dump(), **quirk.without}
                found[f"{quirk.moves}.{quirk.id}"] = Published.model_validate(values)
        return found

    def datasets(self) -> list[str]:
        """Return every dataset that the study attacks images of."""
        used = [published.dataset for published in self.measurements().values()]
        used += [name for grid in self.grids for name in grid.datasets]
        return list(dict.fromkeys(used))

    def victims(self) -> list[str]:
        """Return every victim and surrogate that the study needs."""
        used = [name for p in self.measurements().values() for name in (p.victim, p.surrogate)]
        used += [name for grid in self.grids for name in (*grid.victims, *grid.surrogates)]
        return [name for name in dict.fromkeys(used) if name]

    def reference(self, name: str) -> Reference | None:
        """Return the reference with this id; None for an empty id."""
        return next((r for r in self.references if r.id == name), None)


@cache
def studies() -> dict[str, Study]:
    """Return the shipped studies by name, in the order of their files."""
    return {path.stem: read_study(path) for path in sorted(FOLDER.glob("*.toml"))}


def find_studies(names: tuple[str, ...] = ()) -> list[Study]:
    """Return the named studies; all of them if none is named.

    Raises:
        UnknownNameError: there is no such study.
    """
    known = studies()
    for name in names:
        if name not in known:
            raise UnknownNameError("study", name, list(known))
    return [known[name] for name in names or known]


def suite_of(selected: list[Study]) -> Suite:
    """Return the suite of the corrected cases of studies."""
    return Suite(
        name=SUITE,
        title=TITLE,
        summary="Published attacks measured again: `list studies` names them; needs --data.",
        grids=tuple(grid for study in selected for grid in study.grids),
    )


def read_study(path: Path) -> Study:
    """Return the study in a TOML file; its name is the file's.

    Raises:
        SpecError: the file is not TOML, or breaks the schema.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"expected a study at {path}, got: {error}") from None
    return registry.validate(Study, {**values, "name": path.stem}, str(path))
