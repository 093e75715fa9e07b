"""The function `evaluate`, the cases that it runs, and the scores of their records."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console

from robustbench_med.bench import store
from robustbench_med.bench.publish import publish
from robustbench_med.bench.record import Flag, Stored
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.suite import title_of
from robustbench_med.cards import Norm
from robustbench_med.datasets.dataset import SplitName
from robustbench_med.errors import BenchError, InvalidOutputError, SpecError
from robustbench_med.evaluation_request import Radii, make_request
from robustbench_med.extra_metrics import check_metrics, extra_columns
from robustbench_med.model_handle import (
    DataLike,
    ModelLike,
    api_function,
    join_steps,
    restored_device,
)
from robustbench_med.models.preprocess import parse_preprocess
from robustbench_med.native_units import to_image_radius
from robustbench_med.score_frame import WORST, ScoreFrame, attack_names, score_frame
from robustbench_med.stats import Estimate
from robustbench_med.stats.crossing import HALF, Crossing, crossing
from robustbench_med.subgroups import Grouping, groupings
from robustbench_med.worst_case import means, success_at, worst_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    def critical_radius(self, level: float = HALF, *, of: str = "") -> Crossing:
        """Return the radius, or of a shift the severity, where the worst case falls below a level.

        It lies between two radii that were attacked, `held` and `fell`; its 95 % interval by
        patient is `low` to `high`. `fell` is inf where the score holds to the end, and
        0 where it is below the level without any change.

        Args:
            level: the level, a share or a Dice between 0 and 1.
            of: "sensitivity", where one of two classes is normal; by default accuracy or Dice.

        Raises:
            SpecError: the level or the score is none of these.
        """
        if not 0 < level < 1:
            raise SpecError(f"expected a level between 0 and 1, got {level!r}")
        radii = (0.0, *self.radii)
        images = self._ill() if of == "sensitivity" else None
        if of not in ("", "sensitivity"):
            raise SpecError(f"expected of='sensitivity' or none, got {of!r}")
        scores = []
        for eps in radii:
            table = worst_at(self.records, eps)
            among = table if images is None else table[table.index.isin(images)]
            scores.append(means(among, self.records[0])[1])
        found = crossing(radii, scores, level)
        if found is None:
            raise SpecError("expected an image that is scored, got none")
        return found

    def _ill(self) -> set[str]:
        """Return the ids of the images whose true class is the disease, of two classes."""
        record = self.records[0].record
        card = record.dataset_card
        if not card.binary or card.normal is None or record.case.objective != "untargeted":
            raise SpecError(
                "expected two classes, one of them normal, and untargeted attacks for a critical "
                f"radius of sensitivity, got {', '.join(card.classes)}"
            )
        samples = self.records[0].samples
        return set(samples["sample"][samples["truth"].astype(int) == 1 - card.normal])

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
    severity: Radii | None = None,
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
        severity: the severities of shifts, which take no `eps`: a number above 0 and up to 1, or
            several; by default 0.25, 0.5, 0.75 and 1.
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
        severity=severity,
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
