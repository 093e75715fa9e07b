"""The fixture that a test calls to measure a model and to compare it with its record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from robustbench_med import registry
from robustbench_med.api import evaluate
from robustbench_med.bench import store
from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Stored
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.verify.replay import changed, replan
from robustbench_med.errors import BenchError, ResultsError, SpecError
from robustbench_med.evaluation import Evaluation
from robustbench_med.files import locked
from robustbench_med.gate.compare import Comparison, check_choices, compare, identical
from robustbench_med.gate.flags import Doubts, accepted, judge
from robustbench_med.gate.measured_score import MeasuredRadius, MeasuredScore
from robustbench_med.gate.records import AGAIN, home_of, recorded, rewrite
from robustbench_med.model_handle import DataLike, ModelLike
from robustbench_med.spec import number
from robustbench_med.stats import Estimate
from robustbench_med.stats.crossing import HALF
from robustbench_med.subgroups import FEWEST, Grouping, Subgroup

# settings of the gate, which are not passed to robustbench_med.evaluate
_GATE_SETTINGS = (
    "level",
    "fails",
    "accept",
)
# fields in which a case may differ from its record: these parts may have become weaker
_MAY_CHANGE = (
    "victim",
    "victim_sha256",
    "surrogate_sha256",
    "attack_version",
    "defense_version",
)


@dataclass(frozen=True)
class Measured:
    """The scores of a model under attack, as numbers with their intervals.

    Attributes:
        evaluation: the Evaluation, with all other results.
    """

    evaluation: Evaluation

    @property
    def accuracy(self) -> MeasuredScore:
        """The worst-case accuracy at the largest radius."""
        _ = _or_fail(lambda: self.evaluation.accuracy)
        return self._score(self.evaluation.interval)

    @property
    def dice(self) -> MeasuredScore:
        """The worst-case Dice at the largest radius."""
        _ = _or_fail(lambda: self.evaluation.dice)
        return self._score(self.evaluation.interval)

    @property
    def clean(self) -> MeasuredScore:
        """The accuracy or Dice without an attack."""
        return self._score(self.evaluation.clean_interval)

    @property
    def interval(self) -> Estimate:
        """The worst-case score at the largest radius with its 95 % interval."""
        return self.evaluation.interval

    @property
    def records(self) -> list[Stored]:
        """One record for each attack."""
        return self.evaluation.records

    def at(self, eps: float | int) -> MeasuredScore:
        """Return the worst-case score at one of the radii that were attacked; 0 is clean."""
        return self._score(_or_fail(lambda: self.evaluation.at(eps)))

    def critical_radius(self, level: float = HALF, *, of: str = "") -> MeasuredRadius:
        """Return the radius or severity up to which the worst case is at a level or above.

        `interval.low` of it is the radius up to which that is sure. The arguments are those of
        `Evaluation.critical_radius`.
        """
        found = _or_fail(lambda: self.evaluation.critical_radius(level, of=of))
        return MeasuredRadius.found(found, self.records[0].record.n)

    def worst_subgroup(self, column: str, at: float | int | None = None) -> MeasuredScore:
        """Return the lowest worst-case score of the subgroups of a column, at a radius.

        Subgroups that are too small to be compared do not count. The interval is that of the lowest
        true score, see `Grouping.lowest`.

        Args:
            column: the column, such as "sex".
            at: the radius in image units, 0 = clean; None = the largest.
        """
        groups = self._groups(column, at)
        group = min(groups, key=lambda group: group.scores[1].value)
        return MeasuredScore.of(Grouping(column, tuple(groups), 0).lowest(1), group.images)

    def gap(self, column: str, at: float | int | None = None) -> MeasuredScore:
        """Return by how much the weakest subgroup of a column scores less than the other images.

        The arguments are those of `worst_subgroup`.
        """
        group = min(self._groups(column, at), key=lambda group: group.difference[1].value)
        e = group.difference[1]
        turned = Estimate(value=-e.value, low=-e.high, high=-e.low)
        return MeasuredScore.of(turned, group.images)

    def _groups(self, column: str, at: float | int | None) -> list[Subgroup]:
        found = _or_fail(lambda: self.evaluation.subgroups(at))
        known = {grouping.column: grouping for grouping in found}
        if column not in known:
            listed = ", ".join(known) or "none: the data have no subgroups"
            pytest.fail(f"expected a column of subgroups ({listed}), got {column!r}", pytrace=False)
        groups = [g for g in known[column].subgroups if math.isfinite(g.difference[1].value)]
        if not groups:
            pytest.fail(
                f"expected two subgroups of {column} with {FEWEST} patients or images each, got "
                + ", ".join(f"{g.name} with {g.patients}" for g in known[column].subgroups),
                pytrace=False,
            )
        return groups

    def _score(self, estimate: Estimate) -> MeasuredScore:
        return MeasuredScore.of(estimate, self.records[0].record.n)


@dataclass(frozen=True)
class Robustness:
    """Measures models under attack, and compares them with their records.

    Attributes:
        cache: folder of the records of this session, shared by all tests and workers.
        settings: defaults of the calls, from the marker.
        data: folder with the files of real datasets.
        update: whether the measured result is written as the record.
        tell: adds a line to the summary of the session.
    """

    cache: Path
    settings: dict[str, Any] = field(default_factory=dict)
    data: Path | None = None
    update: bool = False
    tell: Callable[[str], None] = print

    def __call__(
        self,
        model: ModelLike,
        data: DataLike,
        attacks: str | Sequence[str] = "ensemble",
        **settings: Any,  # noqa: ANN401 - those of robustbench_med.evaluate, and accept
    ) -> Measured:
        """Measure a model under attack; the arguments are those of `robustbench_med.evaluate`.

        The test fails if a record has a flag, for the same reason for which a board does not rank
        its row: its numbers cannot be trusted. `accept` names flags that do not fail the test. A
        case that was measured before in this session is not computed again.
        """
        __tracebackhide__ = True
        names = _or_fail(lambda: self._accepted(settings))
        measured = Measured(_or_fail(lambda: self._evaluate(model, data, attacks, settings)))
        doubts = judge(measured.records, names)
        for line in doubts.accepted:
            self.tell(line)
        if doubts.refused:
            pytest.fail(doubts.message("robustness"), pytrace=False)
        return measured

    def holds(
        self,
        record: str | Path,
        model: ModelLike | None = None,
        data: DataLike | None = None,
        attacks: str | Sequence[str] | None = None,
        *,
        at: float | int | str | None = None,
        by: str | Sequence[str] = (),
        **settings: Any,  # noqa: ANN401 - those of robustbench_med.evaluate, level and fails
    ) -> Comparison:
        """Fail the test if a model is significantly weaker than its record.

        The test also fails if the new result has a flag that the record does not have, unless the
        flag is accepted by name or only clean images are compared.

        Args:
            record: the folder of a record, or a folder that contains (or will contain) one record.
            model: as in `robustbench_med.evaluate`; by default the case of the record runs again,
                with the weights, attacks and data of today.
            data: likewise.
            attacks: the spec of one attack, likewise.
            at: the only radius to test, in image units, 0 = clean; None = clean and every radius
                of the ladder.
            by: columns of subgroups, such as "sex": no subgroup may be weaker than it was.
            settings: as in `robustbench_med.evaluate`; also `level` = 0.05, the share of unchanged
                models that fail; `fails` = "drop", "rise" or "either"; `accept` = names of flags
                that do not fail the test.
        """
        __tracebackhide__ = True
        comparison: Comparison
        comparison, doubts = _or_fail(
            lambda: self._compared(Path(record), model, data, attacks, at, by, settings)
        )
        if comparison.left_out:
            self.tell(f"too small to be compared: {', '.join(comparison.left_out)}")
        # the flags of an attack do not concern clean images
        clean_only = at is not None and number(at) == 0
        lines = [] if comparison.holds else [comparison.message]
        if doubts.refused and not clean_only:
            lines.append(doubts.message("robustness.holds"))
        if lines:
            lines.append(f"record: {record} (rewrite it with --robustness-update)")
            pytest.fail("\n".join(lines), pytrace=False)
        return comparison

    def _compared(
        self,
        path: Path,
        model: ModelLike | None,
        data: DataLike | None,
        attacks: str | Sequence[str] | None,
        at: float | int | str | None,
        by: str | Sequence[str],
        settings: dict[str, Any],
    ) -> tuple[Comparison, Doubts]:
        chosen_settings = self.settings | settings
        how = {key: chosen_settings[key] for key in ("level", "fails") if key in chosen_settings}
        check_choices(**how)
        names = self._accepted(settings)
        home = home_of(path)
        with locked(home) if self.update else nullcontext():
            before = recorded(path)
        if before is None and (model is None or not self.update):
            way = "name model, data and attacks, and " if model is None else ""
            raise ResultsError(
                f"expected a record in {path}, got none: {way}run pytest --robustness-update to "
                "write it"
            )
        if model is None and before is not None:
            now = self._again(before.record.case)
        else:
            now = self._asked_for(model, data, attacks, settings)
        if self.update:
            compare(now, now, eps=at, by=by, **how)  # refuse a record that no comparison could fail
            alike = before is not None and not _changes(before.record.case, now.record.case)
            doubts = judge([now], names, before if alike else None)
            if doubts.refused:  # and one that would hide its new flags
                raise ResultsError(f"not written: {doubts.message('robustness.holds')}")
            with locked(home):  # another worker may have written it since
                before = recorded(path) or recorded(home / now.record.case_id)
                if before is None or not _same(before, now):
                    written = rewrite(home, now, None if before is None else Path(before.folder))
                    named = path.parent if path.name == "record.json" else path
                    moved = home != named and named.name != written.name
                    hint = ": its id is new, name it so in the test" if moved else ""
                    self.tell(f"wrote {written}{hint}")
                    before = now
        assert before is not None  # noqa: S101 - without an update refused above, else written
        _check(before.record.case, now.record.case)
        doubts = judge([now], names, before)
        for line in doubts.accepted:
            self.tell(line)
        return compare(before, now, eps=at, by=by, **how), doubts

    def _accepted(self, settings: dict[str, Any]) -> tuple[str, ...]:
        return accepted((self.settings | settings).get("accept", ()))

    def _asked_for(
        self,
        model: ModelLike | None,
        data: DataLike | None,
        attacks: str | Sequence[str] | None,
        settings: dict[str, Any],
    ) -> Stored:
        if model is None or data is None or attacks is None:
            raise SpecError("expected model, data and attacks together, or none of them")
        records = self._evaluate(model, data, attacks, settings).records
        if len(records) != 1:
            raise SpecError(f"expected one attack for a record, got {len(records)}")
        return records[0]

    def _evaluate(
        self,
        model: ModelLike,
        data: DataLike,
        attacks: str | Sequence[str],
        settings: dict[str, Any],
    ) -> Evaluation:
        arguments = {
            key: value
            for key, value in (self.settings | settings).items()
            if key not in _GATE_SETTINGS
        }
        return evaluate(
            model, data, attacks, **{"folder": self.data, "results": self.cache} | arguments
        )

    def _again(self, case: Case) -> Stored:
        planned = replan(case, data=self.data, code=True)  # the test names the record itself
        store.check_writable(self.cache)
        failed = run_cases(
            [planned],
            self.cache,
            console=Console(quiet=True),
            command=AGAIN,
            examples=0,
        )
        if failed:
            raise BenchError(f"not scored: {failed[0]}")
        return store.read(self.cache / planned.case.id)


def _same(before: Stored, now: Stored) -> bool:
    """Whether two records have the same case, flags and scores; paths of files may differ."""
    changes = changed(before.record.case, _moved(before.record.case, now.record.case))
    scored = before.record.status == "ok"
    flags = [{flag.name for flag in stored.record.doubts} for stored in (before, now)]
    return scored and not changes and flags[0] == flags[1] and identical(before, now)


def _check(before: Case, now: Case) -> None:
    """Raise ResultsError if two cases differ in a field that is not in `_MAY_CHANGE`."""
    lines = _changes(before, now)
    if lines:
        raise ResultsError(f"{lines[0]}: pytest --robustness-update writes the record anew")


def _changes(before: Case, now: Case) -> list[str]:
    """Return the differences of two cases in the fields that are not in `_MAY_CHANGE`."""
    alike = {name: getattr(before, name) for name in _MAY_CHANGE}
    return changed(before, _moved(before, now).model_copy(update=alike))


def _moved(before: Case, now: Case) -> Case:
    """Return a case in which the paths of the user's own files are those of a record's case."""
    names = {}
    if _own_data(before.dataset) and _own_data(now.dataset):
        names["dataset"] = before.dataset
    for role in ("victim", "surrogate"):
        pair = [getattr(case, role) for case in (before, now)]
        if all(name is not None and registry.is_own(name) for name in pair):
            names[role] = pair[0]
    return now.model_copy(update=names)


def _own_data(name: str) -> bool:
    return name not in registry.names("datasets")


def _or_fail(ask: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever was asked for
    """Return the result of a call; an error of the user fails the test with one line."""
    __tracebackhide__ = True
    try:
        return ask()
    except BenchError as error:
        line = str(error)
    # outside the handler, because pytest would print the handled error too
    pytest.fail(line, pytrace=False)
