"""Suite: a TOML file that declares a set of cases."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from robustbench_med import registry
from robustbench_med.cards import SEVERITY, Card, Norm
from robustbench_med.corruption_tables import LEVELS, all_corruptions
from robustbench_med.errors import SpecError, UnknownNameError
from robustbench_med.native_units import has_unit
from robustbench_med.paths import check_name
from robustbench_med.spec import number

FOLDER = registry.CORE / "suites"
_OF_A_BALL = ("ladder", "norm", "budget", "channels", "surrogates")
SEVERITIES = (0.25, 0.5, 0.75, 1.0)  # where a grid of shifts states none


class Grid(BaseModel):
    """A block of cases: every victim times every attack on every dataset, over one ladder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    datasets: tuple[str, ...] = Field(min_length=1)
    victims: tuple[str, ...] = Field(
        default=("*",),
        min_length=1,
        description='a pattern ("*", "*_resnet") = the shipped victims of the dataset whose names '
        'match it; "defended" = those that a defense retrained, and the victims they were made '
        "from",
    )
    preprocess: str = Field(
        default="",
        description="steps between a stored image and the network of each victim that states none, "
        "e.g. window(40, 400), resize(224, 224)",
    )
    defenses: tuple[str, ...] = Field(
        default=("none",), min_length=1, description="defenses of the victims, one case for each"
    )
    knowledge: tuple[str, ...] = Field(
        default=("adaptive",),
        min_length=1,
        description="what the attacker knows about the defense, one case for each: adaptive knows "
        "it, oblivious attacks the victim without it, the name of a detector evades that one "
        "instead",
    )
    attacks: tuple[str, ...] = Field(min_length=1)
    stated: bool = Field(
        default=False,
        exclude=True,
        description="whether the user named these attacks, and not a suite",
    )
    norm: Norm = "linf"
    channels: tuple[str, ...] = Field(
        default=("all",),
        min_length=1,
        description='sets of channels that may change, one case for each: "all", "T1", '
        '"T1 + FLAIR=0.5" (with a fraction of the radius)',
    )
    ladder: tuple[float | str, ...] = Field(
        default=(),
        description='radii, in image units or with a unit of the data, "10HU"; an attack may state '
        "others, pgd(eps=2/255)",
    )
    budget: Literal["absolute", "mean_norm"] = "absolute"
    surrogates: tuple[str, ...] = Field(
        default=(), description='models attacked instead; "*" = all victims of the dataset'
    )
    draws: int = Field(default=1, ge=1, description="forward passes averaged (EOT)")
    n_fit: int = Field(default=512, ge=1, description="training images for universal attacks")
    objective: str = "untargeted"
    split: Literal["train", "val", "test"] = "test"
    n: int | None = Field(default=None, ge=1)
    operating_point: Literal["youden", "argmax"] = "youden"
    guide: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _of_shifts(cls, values: Any) -> Any:  # noqa: ANN401 - pydantic passes any value
        """Measure shifts in severity, where the grid states no norm of its own."""
        if not isinstance(values, dict) or values.get("norm", "linf") != "linf":
            return values
        if not all_shifts(values.get("attacks", ())):
            return values
        return {
            **values,
            "norm": SEVERITY,
            "ladder": values.get("ladder") or _severities(values.get("attacks")),
        }

    @field_validator("ladder", mode="before")
    @classmethod
    def _numbers(cls, values: Any) -> Any:  # noqa: ANN401 - pydantic passes any value of the file
        if isinstance(values, str | int | float):
            values = [values]
        if not isinstance(values, list | tuple):
            return values
        return [v if has_unit(v) else number(v) for v in values]


def _severities(attacks: Any) -> tuple[float, ...]:  # noqa: ANN401 - pydantic passes any value
    """Return the severities of shifts where none are stated."""
    return LEVELS if all_corruptions(attacks) else SEVERITIES


def all_shifts(attacks: Any) -> bool:  # noqa: ANN401 - pydantic passes any value
    """Return whether the specs of attacks name shifts alone, and at least one."""
    cards = registry.shipped("attacks")
    texts = attacks if isinstance(attacks, list | tuple) else ()
    named = [cards.get(str(text).partition("(")[0].strip()) for text in texts]
    return bool(named) and all(card is not None and card.threat == "shift" for card in named)


class Suite(Card):
    """A named set of grids, which is also its own card."""

    seed: int = 0
    save_images: bool = Field(
        default=False, description="save the adversarial images beside each record"
    )
    grids: tuple[Grid, ...] = Field(min_length=1)


def suites() -> dict[str, Suite]:
    """Return the shipped suites by name."""
    return {path.stem: read_suite(path) for path in sorted(FOLDER.glob("*.toml"))}


def find_suite(name: str, *, others: tuple[str, ...] = ()) -> Suite:
    """Return a shipped suite by name, or the one in a TOML file.

    Args:
        name: the name or the path.
        others: names that the caller takes besides, for the message on an unknown one.

    Raises:
        UnknownNameError: there is no such suite.
        SpecError: the file is missing, is not TOML, lacks the ending .toml, or breaks the schema.
    """
    if name.endswith(".toml"):
        return read_suite(check_name(name))
    check_name(name, suffix=len(".toml"))
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        if Path(name).is_file():
            raise SpecError(
                f"expected a suite file whose name ends in .toml, got {name!r}: rename the file"
            )
        known = [path.stem for path in FOLDER.glob("*.toml")]
        raise UnknownNameError("suite", name, [*known, *others])
    return read_suite(path)


def title_of(folder: Path) -> str:
    """Return the title of a page of records: that of their shipped suite, if there is one."""
    name = folder.resolve().name
    shipped = FOLDER / f"{name}.toml"
    return read_suite(shipped).title if shipped.is_file() else name


def read_suite(path: Path) -> Suite:
    """Return the suite in a TOML file; its name is the file's."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"expected a suite at {path}, got: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"expected TOML in {path}, got: {error}") from None
    return registry.validate(Suite, {**values, "name": path.stem}, str(path))


def override(suite: Suite, fields: dict[str, Any], seed: int | None) -> Suite:
    """Return the suite with fields of its grids replaced, e.g. `{"n": 20}`.

    If datasets are replaced, only the first grid remains. If the new datasets are not in the suite,
    the suite is called "custom", so that their records do not mix with the suite's, and saves no
    images. If victims are replaced, the grids of datasets on which they were trained remain. If
    attacks or surrogates are replaced, each dataset is attacked once. Fields of a ball do not reach
    grids of shifts beside grids of attacks; `severity` reaches the grids of shifts alone.

    Raises:
        SpecError: a field breaks the schema, or states the severity of attacks or the radius of
            shifts.
        UnknownNameError: no card has the name of a victim.
    """
    grids = [grid.model_dump() for grid in suite.grids]
    shipped = {dataset for grid in suite.grids for dataset in grid.datasets}
    if "datasets" in fields:
        grids = grids[:1]
        if not set(fields["datasets"]) <= shipped:
            changes = {"name": "custom", "title": "Own selection", "save_images": False}
            suite = suite.model_copy(update=changes)  # the images may come from patients
    elif "victims" in fields:
        trained = {dataset_of(victim) for victim in fields["victims"]} - {None}
        for grid in grids:
            grid["datasets"] = [d for d in grid["datasets"] if not trained or d in trained]
        if not any(grid["datasets"] for grid in grids):  # a victim of another suite's data
            grids = [{**grids[0], "datasets": sorted(str(name) for name in trained)}]
        grids = [grid for grid in grids if grid["datasets"]]
    if "attacks" in fields or "surrogates" in fields:  # once on each dataset, not once a grid
        grids = _first_of_each(grids)
    if all_shifts(fields.get("attacks", ())):  # the radii of the suite's attacks mean nothing
        ladder = _severities(fields["attacks"])
        grids = [{**grid, "norm": SEVERITY, "ladder": ladder} for grid in grids]
    values = suite.model_dump()
    if any(name.endswith((".npz", ".toml")) for name in fields.get("datasets", ())):
        # all images of the user's file, unless -n states fewer
        grids = [{**grid, "n": None} for grid in grids]
    stated = {"stated": "attacks" in fields}
    values["grids"] = [{**grid, **stated, **_fields_of(grid, grids, fields)} for grid in grids]
    values["seed"] = suite.seed if seed is None else seed
    return registry.validate(Suite, values, "command line")


def _fields_of(
    grid: dict[str, Any], grids: list[dict[str, Any]], fields: dict[str, Any]
) -> dict[str, Any]:
    """Return the fields that a grid takes: one of shifts has a severity, others have a ball."""
    severity = fields.get("severity")
    others = {name: value for name, value in fields.items() if name != "severity"}
    shifts = [one["norm"] == SEVERITY for one in grids]
    if severity is not None and not any(shifts):
        raise SpecError(
            "expected --eps for attacks, whose size is a radius, got --severity: `list attacks` "
            "names the shifts"
        )
    if all(shifts) and "ladder" in others:
        raise SpecError("expected --severity for shifts, whose size is no radius, got --eps")
    if grid["norm"] != SEVERITY:
        return others
    if not all(shifts):
        others = {name: value for name, value in others.items() if name not in _OF_A_BALL}
    return others if severity is None else {**others, "ladder": severity}


def _first_of_each(grids: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return grids without surrogates in which no dataset comes twice."""
    known: set[str] = set()
    first = []
    for grid in grids:
        datasets = [name for name in grid["datasets"] if name not in known]
        if datasets and not grid["surrogates"]:
            known |= set(datasets)
            first.append({**grid, "datasets": datasets})
    return first or [{**grids[0], "surrogates": ()}]


def dataset_of(victim: str) -> str | None:
    """Return the dataset a shipped victim was trained on; None for a model of the user's own."""
    if victim in ("*", "defended") or registry.is_own(victim):
        return None
    dataset: str = registry.find("models", victim).dataset
    return dataset
