"""The function `evaluate`, the cases that it runs, and the scores of their records."""

from __future__ import annotations

import math
import shlex
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console

from robustbench_med import registry
from robustbench_med.bench import store
from robustbench_med.bench.plan import plan
from robustbench_med.bench.publish import publish
from robustbench_med.bench.record import Flag, Stored
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.suite import Grid, Suite, title_of
from robustbench_med.cards import Norm
from robustbench_med.datasets.dataset import SplitName
from robustbench_med.errors import BenchError, InvalidOutputError, SpecError
from robustbench_med.extra_metrics import check_metrics, extra_columns
from robustbench_med.model_handle import (
    DataLike,
    ModelHandle,
    ModelLike,
    api_function,
    join_steps,
    resolve_dataset,
    resolve_model,
    restored_device,
)
from robustbench_med.models.preprocess import parse_preprocess
from robustbench_med.native_units import to_image_radius
from robustbench_med.printable import plain
from robustbench_med.registry import is_own
from robustbench_med.score_frame import WORST, ScoreFrame, attack_names, score_frame
from robustbench_med.stats import Estimate
from robustbench_med.subgroups import Grouping, groupings
from robustbench_med.worst_case import means, success_at, worst_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Radii = float | str | Sequence[float | str]  # in [0,1] image units; "2/255" and "1/255,2/255" too
_API_NAMES = {"ladder": "eps", "defenses": "defense"}  # field of a grid -> its name in the API


@dataclass(frozen=True)
class EvaluationRequest:
    """One model on one dataset under some attacks, as a call of the API requests it.

    Attributes:
        model: the model as the caller passed it.
        data: the data as the caller passed it.
        attacks: specs of the attacks.
        seed: seed of everything random.
        fields: the other fields of a suite's grid.
    """

    model: ModelLike
    data: DataLike
    attacks: tuple[str, ...]
    seed: int
    fields: dict[str, Any]

    def plan_cases(
        self,
        *,
        folder: str | Path | None = None,
        name: str | None = None,
        **options: object,
    ) -> list[ResolvedCase]:
        """Return the planned cases.

        Args:
            folder: the folder with the files of real datasets.
            name: the name of a torch module, or of a model of the user's own.
            options: mean, std, returns and output of a torch module; None means not stated.

        Raises:
            BenchError: an argument is wrong, or a case cannot run.
        """
        data_name, dataset = resolve_dataset(self.data, folder=folder)
        titles = {}
        if name is not None and isinstance(self.model, str | Path) and is_own(str(self.model)):
            titles, name = {str(self.model): plain(name)}, None
        victim, loaded = resolve_model(self.model, dataset.card, name=name, **options)
        grid = {
            "datasets": [data_name],
            "victims": [victim],
            "attacks": self.attacks,
            "stated": True,
            **self.fields,
        }
        values = {"name": "asked", "title": "Asked", "seed": self.seed, "grids": [grid]}
        suite = registry.validate(Suite, values, "arguments")
        victims = {} if loaded is None else {victim: loaded}
        planned, refused = plan(
            suite, datasets={data_name: dataset}, victims=victims, titles=titles
        )
        if refused:
            raise refused[0].exception
        if not planned:
            knowledge, attacks = self.fields["knowledge"][0], ", ".join(self.attacks)
            raise SpecError(
                f"expected an attack by gradients with knowledge {knowledge}, got {attacks}"
            )
        if len({item.case.victim for item in planned}) != 1:
            raise SpecError(f"expected one model, got {victim!r}, which stands for several")
        return planned

    @property
    def command(self) -> str:
        """A command that computes the cases again; objects of the caller are in angle brackets."""
        defaults = Grid.model_fields
        stated = {
            _API_NAMES.get(key, key): value
            for key, value in self.fields.items()
            if key not in defaults or value != defaults[key].default
        }
        for key in ("defense", "knowledge"):
            if key in stated:
                stated[key] = stated[key][0]
        options = "".join(
            f", {key}={value!r}" for key, value in (stated | {"seed": self.seed}).items()
        )
        model, data = _as_literal(self.model), _as_literal(self.data)
        return python_command(f"evaluate({model}, {data}, {list(self.attacks)!r}{options})")


def make_request(
    model: ModelLike,
    data: DataLike,
    attacks: str | Sequence[str],
    *,
    eps: Radii | None,
    seed: int,
    defense: str = "none",
    knowledge: str = "adaptive",
    **fields: Any,  # noqa: ANN401 - the suite's schema checks them
) -> EvaluationRequest:
    """Return the request for the arguments of `evaluate` or `attack`.

    Raises:
        SpecError: a defense is requested for a model that has one.
    """
    if isinstance(model, ModelHandle) and model.defense != "none":
        if defense != "none":
            raise SpecError(f"expected one defense, got {defense} before {model.defense}")
        defense = model.defense
    radii: Any = eps.split(",") if isinstance(eps, str) else eps
    several = not isinstance(radii, str) and isinstance(radii, Iterable)  # arrays are no Sequence
    ladder = () if radii is None else tuple(radii) if several else (radii,)
    grid = {"ladder": ladder, "defenses": (defense,), "knowledge": (knowledge,)}
    specs = (attacks,) if isinstance(attacks, str) else tuple(attacks)
    return EvaluationRequest(model, data, specs, seed, {**grid, **fields})


def python_command(call: str) -> str:
    """Return a Python call as a command of the shell.

    The command ends with the sign of a comment, to which the runner adds the id of a case.
    """
    plain = call if '"' in call else call.replace("'", '"')  # quotes that need no escape
    return f"python -c {shlex.quote(f'from robustbench_med import *; {plain}')}  #"


def _as_literal(value: object) -> str:
    if isinstance(value, ModelHandle):
        value = value.name
    return repr(str(value)) if isinstance(value, str | Path) else f"<{type(value).__name__}>"


@dataclass(frozen=True, repr=False)
class Evaluation:
    """How well one model performs under one or several attacks.

    The score of an image is its worst one under any of the attacks. For labels and findings, the
    score is whether the model is right on the clean image and under every attack (`accuracy`); for
    masks it is the lowest Dice (`dice`). With another objective than untargeted it is what a board
    of that objective shows.

    Attributes:
        records: one record per attack, each with its samples table.
        metrics: MAITE Metrics that `table` computes beside the score.
    """

    records: list[Stored]
    metrics: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        case, worst = self.records[0].record.case, self.interval
        names = ", ".join(dict.fromkeys(stored.record.case.attack for stored in self.records))
        score = f"{worst.value:.3f} ({worst.low:.3f} to {worst.high:.3f})"
        return (
            f"<Evaluation of {case.victim} on {case.dataset}: clean {self.clean:.3f}, "
            f"under {names} at {self.radii[-1]:.5f} {score}, "
            f"{len(self.flags)} flags>"
        )

    @cached_property
    def radii(self) -> tuple[float, ...]:
        """All radii that were attacked, in rising order."""
        return tuple(sorted({eps for stored in self.records for eps in stored.record.case.ladder}))

    @property
    def accuracy(self) -> float:
        """The worst-case accuracy at the largest radius.

        Raises:
            SpecError: the data has masks.
        """
        self._expect(masks=False)
        return self.interval.value

    @property
    def dice(self) -> float:
        """The worst-case Dice at the largest radius, as the mean over regions and images.

        Raises:
            SpecError: the data has labels or findings.
        """
        self._expect(masks=True)
        return self.interval.value

    @property
    def clean(self) -> float:
        """The accuracy or Dice without an attack."""
        return self.clean_interval.value

    @cached_property
    def interval(self) -> Estimate:
        """The worst-case score at the largest radius with its 95 % interval."""
        return self.at(self.radii[-1])

    @cached_property
    def clean_interval(self) -> Estimate:
        """The score without an attack with its 95 % interval."""
        return self.at(0)

    def at(self, eps: int | float | str) -> Estimate:
        """Return the worst-case score at one of the radii that were attacked; 0 is clean.

        A text may have a unit of the data, as "10HU".

        An attack that ran at smaller radii only counts with its largest one, because the smaller
        ball lies inside the larger.

        Raises:
            SpecError: nothing was attacked at this radius.
        """
        return means(worst_at(self.records, self._attacked(eps)), self.records[0])[1]

    def _attacked(self, eps: int | float | str | None) -> float:
        """Return a radius that was attacked in image units; None is the largest."""
        if eps is None:
            return self.radii[-1]
        record = self.records[0].record
        steps = parse_preprocess(record.model_card.preprocess, record.dataset_card)
        eps = to_image_radius(eps, record.dataset_card, () if steps is None else steps.windows)
        known = (0.0, *self.radii)
        if not any(math.isclose(eps, radius, rel_tol=1e-6, abs_tol=1e-12) for radius in known):
            listed = ", ".join(f"{radius:g}" for radius in known)
            raise SpecError(f"expected a radius that was attacked ({listed}), got {eps:g}")
        return eps

    def subgroups(self, eps: int | float | str | None = None) -> list[Grouping]:
        """Return the scores of the subgroups in each column of the data, clean and at a radius.

        Args:
            eps: as for `at`; by default the largest radius.
        """
        return groupings(worst_at(self.records, self._attacked(eps)), self.records[0])

    @property
    def attack_success(self) -> float:
        """Share of the attacked images on which any attack succeeds at the largest radius."""
        success = pd.concat([success_at(stored, self.radii[-1]) for stored in self.records], axis=1)
        return float(success.any(axis=1).mean()) if len(success) else math.nan

    @property
    def flags(self) -> tuple[Flag, ...]:
        """All reasons to distrust one of the records."""
        return tuple(flag for stored in self.records for flag in stored.record.flags)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The samples tables of all records, with the attack of each in a column `attack`."""
        tables = [
            stored.samples.assign(attack=stored.record.case.attack) for stored in self.records
        ]
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def _scores(self) -> ScoreFrame:
        return score_frame(self.records, self.radii, self.at)

    def table(self) -> pd.DataFrame:
        """Return the scores as numbers: a row per radius, 0 is clean, and a column per attack.

        The index `eps` has the radii. The columns have two levels: `worst_case` and each attack;
        under each `value`, `low` and `high`, the score with its 95 % interval. Shares are numbers
        from 0 to 1, and NaN where an attack did not run at a radius. Each number that a metric of
        `metrics` computes is one more column, "METRIC.KEY", without an interval. For a file,
        `found.table().to_csv("scores.csv")`.
        """
        return self._scores.table(self._extra)

    @cached_property
    def _extra(self) -> dict[tuple[str, str], list[float]]:
        if not self.metrics:
            return {}
        columns = dict(zip(attack_names(self.records), ([r] for r in self.records), strict=True))
        return extra_columns(self.metrics, {WORST: self.records, **columns}, (0.0, *self.radii))

    def to_latex(self, *, caption: str | None = None, label: str = "tab:robustness") -> str:
        """Return the scores as a table in LaTeX; the document loads the package `booktabs`.

        Args:
            caption: the caption as LaTeX; by default it names the model, the data and the norm.
            label: the label that the document refers to the table by.
        """
        return self._scores.latex(caption=caption, label=label)

    def plot(self) -> Figure:
        """Return a matplotlib figure of the scores against the radius, with 95 % bands.

        `found.plot().savefig("curves.pdf")` writes it.
        """
        return self._scores.plot()

    def _expect(self, *, masks: bool) -> None:
        if masks != (self.records[0].record.dataset_card.task == "segmentation"):
            kind, score = ("masks", "dice") if not masks else ("labels", "accuracy")
            raise SpecError(f"expected {'masks' if masks else 'labels'}, got {kind}: read .{score}")


@api_function
def evaluate(
    model: ModelLike,
    data: DataLike,
    attacks: str | Sequence[str] = "ensemble",
    *,
    eps: Radii | None = None,
    norm: Norm = "linf",
    n: int | None = None,
    split: SplitName = "test",
    seed: int = 0,
    defense: str = "none",
    knowledge: str = "adaptive",
    objective: str = "untargeted",
    results: str | Path | None = None,
    device: str = "auto",
    jobs: int = 1,
    name: str | None = None,
    preprocess: str | None = None,
    mean: Any = None,  # noqa: ANN401 - numbers in any form
    std: Any = None,  # noqa: ANN401
    returns: str | None = None,
    output: Any = None,  # noqa: ANN401 - a key, an index, or several
    folder: str | Path | None = None,
    metrics: Sequence[Any] = (),
    **grid: object,
) -> Evaluation:
    """Attack a model and return its scores: the records that the command `run` would write.

    Args:
        model: a name, a spec as `--victim` takes it, a torch module, or what `load_model` or
            `defend` returned.
        data: a name, an `.npz` file or a Dataset.
        attacks: the spec of one attack, or several; a spec may state its radius,
            "pgd(eps=2/255)".
        eps: the radii of the attacks that state none, in [0,1] image units: 0.01, "2/255", in a
            unit of the data: "10HU", "4gl" (stored steps), "8/255 window"; or several.
        norm: "linf", "l2", "l1" or "l0".
        n: how many images are drawn from the split; None = all.
        split: "train", "val" or "test".
        seed: seed of everything random.
        defense: a defense to wrap the model in, e.g. "jpeg(quality=50)".
        knowledge: what the attacker knows about the defense: "adaptive" (all of it), "oblivious"
            (nothing), or the name of a detector that is evaded instead.
        objective: the attacker's goal, e.g. "targeted(target=1)".
        results: a folder of records. Cases that are finished there are not computed again, and a
            page in that folder is updated. None keeps no records.
        device: "cpu", "cuda", "cuda:1", or "auto".
        jobs: how many processes share the cores.
        name: the name of a torch module, see `load_model`, or of a model of your own on boards.
        preprocess: the steps between a stored image and the model, see `load_model`.
        mean: the mean of a torch module.
        std: the standard deviation of a torch module.
        returns: what a torch module returns: "logits" or "probabilities".
        output: which of several outputs of a torch module to read.
        folder: the folder with the files of real datasets.
        metrics: MAITE Metrics, of labels or findings, which `table` shows beside the score.
        grid: other fields of a suite's grid: operating_point="argmax", channels=["T1"],
            surrogates=["chest_vgg"], draws=8, guide="bfloat16", budget="mean_norm", n_fit=64.

    Raises:
        InvalidOutputError: the model returned NaN or Inf.
        BenchError: an argument is wrong, or a case could not be scored.
    """
    check_metrics(metrics)
    model, preprocess = join_steps(model, preprocess)
    request = make_request(
        model,
        data,
        attacks,
        eps=eps,
        seed=seed,
        defense=defense,
        knowledge=knowledge,
        norm=norm,
        objective=objective,
        n=n,
        split=split,
        **grid,
    )
    options = {"mean": mean, "std": std, "returns": returns, "output": output}
    options["preprocess"] = preprocess
    with restored_device(model), tempfile.TemporaryDirectory() as temporary:
        planned = request.plan_cases(folder=folder, name=name, **options)
        home = Path(temporary if results is None else results)
        store.check_writable(home)
        failures = run_cases(
            planned,
            home,
            console=Console(quiet=True),
            command=request.command,
            examples=0 if results is None else 4,
            device=device,
            jobs=jobs,
        )
        if (home / "leaderboard.html").exists():  # the page shows all records of its folder
            publish(home, title_of(home), planned=planned, failures=failures)
        if failures:
            raise BenchError(f"not scored: {failures[0]}")
        records = [store.read(home / item.case.id) for item in planned]
    for stored in records:
        if stored.record.status == "invalid":
            raise InvalidOutputError(f"{stored.record.case.label}: {stored.record.reason}")
    if results is None:
        records = [stored._replace(folder="") for stored in records]
    return Evaluation(records, tuple(metrics))
