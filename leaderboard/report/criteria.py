"""Read acceptance criteria, which a person writes in a TOML file before a run.

[[criteria]]
name = "Plan 4.2"            # optional, like all fields except metric, eps and the limit
victim = "pneumonia_resnet"  # by default every model with a report
dataset = "pneumoniamnist"
attack = "worst_case"        # the worst of all attacks; or "clean" (no attack), or an attack's name
eps = "2/255"
metric = "sensitivity"       # see METRICS; dice[lesion] for a region, recall[severe] for a class
at_least = 0.70              # or at_most, if lower is better
subgroup = "sex"             # each subgroup of a column of the data must meet the limit
basis = "low"                # the default: the unfavourable end of the 95 % interval; or "value"
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from robustbench_med import registry
from robustbench_med.cards import DatasetCard, Norm, Threat
from robustbench_med.errors import SpecError, UnknownNameError
from robustbench_med.spec import number
from robustbench_med.stats.crossing import HALF

_METRICS_OF_REGIONS = ("dice", "iou", "hd95", "nsd", "volume_error", "lesion_miss", "false_alarm")
CRITICAL = "critical_radius"
# metric -> whether higher is better, the format of its value, the largest limit that makes sense
METRICS: dict[str, tuple[bool, str, float]] = {
    "accuracy": (True, "percent", 1),
    "balanced_accuracy": (True, "percent", 1),
    "sensitivity": (True, "percent", 1),
    "specificity": (True, "percent", 1),
    "recall": (True, "percent", 1),
    "auc": (True, "unit", 1),
    "f1": (True, "unit", 1),
    "attack_success": (False, "percent", 1),
    "flips_to_normal": (False, "percent", 1),
    "flips_to_disease": (False, "percent", 1),
    "dice": (True, "unit", 1),
    "iou": (True, "unit", 1),
    "pixel_accuracy": (True, "percent", 1),
    "nsd": (True, "unit", 1),
    "hd95": (False, "plain", float("inf")),
    "volume_error": (False, "fine", float("inf")),
    "lesion_miss": (False, "percent", 1),
    "false_alarm": (False, "percent", 1),
    "target_dice": (False, "unit", 1),
    "auroc": (True, "unit", 1),
    "tpr_at_1": (True, "percent", 1),
    "tpr_at_5": (True, "percent", 1),
    "detected": (True, "percent", 1),
    "false_alarms": (False, "count", 1000),
    "subgroup_gap": (False, "percent", 1),
    CRITICAL: (True, "unit", float("inf")),
}


class Criterion(BaseModel):
    """One acceptance criterion: a metric under an attack, and its limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(default="", description="name of the criterion in the test plan")
    victim: str = Field(default="", description="name in the records; empty = every model")
    dataset: str = Field(default="", description="registry name; empty = all data of the model")
    attack: str = Field(
        default="worst_case",
        description="worst_case = the worst of all attacks; clean = no attack; or an attack's name",
    )
    eps: str | float | None = Field(
        default=None, description="radius, e.g. '2/255'; none with attack = 'clean'"
    )
    metric: str
    at_least: float | None = None
    at_most: float | None = None
    basis: Literal["low", "value", "high"] | None = Field(
        default=None, description="end of the 95 % interval that is judged"
    )
    threat: Threat = "white_box"
    norm: Norm = "linf"
    objective: str = "untargeted"
    defense: str = "none"
    subgroup: str = Field(
        default="", description="column of the data; each of its subgroups is judged by itself"
    )
    level: float | None = Field(
        default=None, description="level of a critical radius, between 0 and 1; 0.5 by default"
    )
    of: str = Field(
        default="", description="metric of a critical radius; by default accuracy or Dice"
    )
    reason: str = Field(default="", description="reason for this limit")

    @property
    def higher(self) -> bool:
        """Whether higher is better."""
        return METRICS[self.base][0]

    @property
    def base(self) -> str:
        """The metric without its region or class."""
        return self.metric.partition("[")[0]

    @property
    def critical(self) -> bool:
        """Whether the criterion is about a critical radius."""
        return self.base == CRITICAL

    @property
    def critical_level(self) -> float:
        """The level of a critical radius."""
        return HALF if self.level is None else self.level

    @property
    def limit(self) -> float:
        """The value of at_least or at_most."""
        limit = self.at_least if self.at_least is not None else self.at_most
        assert limit is not None  # noqa: S101 - checked by `read_criteria`
        return limit

    @property
    def judged_on(self) -> Literal["low", "value", "high"]:
        """The end of the interval that is judged: the unfavourable one, unless the file differs."""
        return self.basis or ("low" if self.higher else "high")

    @property
    def radius(self) -> float:
        """The radius in the units of the ladder; 0 for the clean image."""
        return 0.0 if self.eps is None else number(self.eps)


def scored_metric(criterion: Criterion, card: DatasetCard) -> Criterion:
    """Return a criterion about the metric whose critical radius is judged; others as they are."""
    if not criterion.critical:
        return criterion
    usual = "dice" if card.task == "segmentation" else "accuracy"
    return criterion.model_copy(update={"metric": criterion.of or usual})


class CriteriaFile(NamedTuple):
    """A file of criteria.

    Attributes:
        file: name of the file.
        sha256: SHA-256 of its bytes.
        modified: time of its last change in UTC, ISO 8601, whole seconds.
        criteria: the criteria in the order of the file.
        command: its path on the command line.
    """

    file: str
    sha256: str
    modified: str
    criteria: tuple[Criterion, ...]
    command: str


def read_criteria(path: Path) -> CriteriaFile:
    """Return the criteria in a TOML file.

    Raises:
        SpecError: the file cannot be read or is not TOML, or a criterion is wrong: it has an
            unknown key or metric, a value of a wrong type, no limit or two limits, or a limit
            outside the metric's range.
    """
    try:
        content = path.read_bytes()
        tables = tomllib.loads(content.decode())
    except OSError as error:
        raise SpecError(f"expected criteria in {path}, got: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"expected TOML in {path}, got: {error}") from None
    if set(tables) != {"criteria"} or not _tables(tables["criteria"]):
        listed = ", ".join(tables) or "nothing"
        raise SpecError(f"expected only [[criteria]] tables in {path}, got {listed}")
    criteria = tuple(
        _criterion(table, f"{path}, criterion {number}")
        for number, table in enumerate(tables["criteria"], 1)
    )
    modified = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    digest = hashlib.sha256(content).hexdigest()
    return CriteriaFile(path.name, digest, modified, criteria, str(path))


def _tables(value: Any) -> bool:  # noqa: ANN401 - whatever the file holds
    return (
        isinstance(value, list) and bool(value) and all(isinstance(table, dict) for table in value)
    )


def _criterion(table: dict[str, Any], where: str) -> Criterion:
    for key in table:
        if key not in Criterion.model_fields:
            raise SpecError(f"{where}: {UnknownNameError('key', key, Criterion.model_fields)}")
    if str(table.get("metric")) == CRITICAL and isinstance(table.get("at_least"), str):
        try:
            table = table | {"at_least": number(table["at_least"])}
        except SpecError as error:
            raise SpecError(f"{where}: at_least: {error}") from None
    criterion = registry.validate(Criterion, table, where)
    if criterion.base not in METRICS:
        raise SpecError(f"{where}: {UnknownNameError('metric', criterion.metric, METRICS)}")
    for problem in _problems(criterion):
        raise SpecError(f"{where}: {problem}")
    return criterion


def _problems(c: Criterion) -> list[str]:
    higher, _, most = METRICS[c.base]
    problems = _critical_problems(c)
    if problems:
        return problems
    part = re.fullmatch(r"\w+(\[.+\])?", c.metric)
    if (
        part is None
        or (part[1] is None) != (c.base != "recall")
        and c.base not in _METRICS_OF_REGIONS
    ):
        form = "recall[CLASS]" if c.base == "recall" else c.base
        problems.append(f"expected metric {form}, got {c.metric!r}")
    if (c.at_least is None) == (c.at_most is None):
        problems.append("expected either at_least or at_most, got both or none")
        return problems
    key, opposite = ("at_least", "at_most") if higher else ("at_most", "at_least")
    if (c.at_least is not None) != higher:
        better = "higher" if higher else "lower"
        problems.append(f"expected {key} with {c.metric} ({better} is better), got {opposite}")
    if not 0 <= c.limit <= most:
        problems.append(f"expected {key} in [0, {most:g}] with {c.metric}, got {c.limit:g}")
    if c.basis not in (None, "value", "low" if higher else "high"):
        end = "low" if higher else "high"
        problems.append(f"expected basis {end!r} or 'value' with {key}, got {c.basis!r}")
    if c.metric == "subgroup_gap" and not c.subgroup:
        problems.append('expected subgroup with subgroup_gap, e.g. subgroup = "sex", got none')
    return problems + _radius_problems(c)


def _critical_problems(c: Criterion) -> list[str]:
    """Return what is wrong with the fields of a critical radius, or why there may be none."""
    if not c.critical:
        stray = [key for key in ("level", "of") if key in c.model_fields_set]
        return [f"expected {key} with metric {CRITICAL!r} alone, got it" for key in stray]
    if c.eps is not None or c.attack == "clean":
        return [f"expected neither eps nor attack = 'clean' with {CRITICAL}, got one"]
    if c.level is not None and not 0 < c.level < 1:
        return [f"expected level between 0 and 1, got {c.level:g}"]
    if c.of and (c.of.partition("[")[0] not in METRICS or not METRICS[c.of.partition("[")[0]][0]):
        return [f"expected of = a metric of which higher is better, got {c.of!r}"]
    if c.of.partition("[")[0] in (CRITICAL, "auc"):
        return [f"expected of = a metric that has a worst case, got {c.of!r}"]
    if c.at_least is None or c.at_most is not None:
        return [
            f"expected at_least with {CRITICAL}, got {'none' if c.at_most is None else 'at_most'}"
        ]
    if not c.limit > 0:
        return [f"expected at_least > 0 with {CRITICAL}, got {c.at_least!r}"]
    return []


def _radius_problems(c: Criterion) -> list[str]:
    if c.critical:
        return []
    if (c.eps is None) != (c.attack == "clean"):
        return [
            "expected eps with every attack but 'clean', got "
            + ("none" if c.eps is None else "one")
        ]
    if c.eps is None:
        return []
    try:
        radius = c.radius
    except SpecError as error:
        return [f"eps: {error}"]
    if radius <= 0:
        return [f"expected eps > 0, got {c.eps!r}"]
    if c.norm == "linf" and radius > 1:
        grey = "" if "/" in str(c.eps) else f": perhaps '{radius:g}/255'"
        return [f"expected eps <= 1 with linf (white is 1), got {radius:g}{grey}"]
    return []
