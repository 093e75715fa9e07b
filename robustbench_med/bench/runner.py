"""Runner: the cases of a plan, one by one; a broken case costs itself only."""

from __future__ import annotations

import logging
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from robustbench_med.bench import store
from robustbench_med.bench.execute import execute
from robustbench_med.bench.plan import Planned
from robustbench_med.bench.prepare import Prepared, prepare, shared_by
from robustbench_med.bench.surrogate import Surrogate, crafted_alike, load_surrogate
from robustbench_med.errors import BenchError, InvalidOutputError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

_log = logging.getLogger(__name__)


def run_cases(
    planned: list[Planned],
    folder: Path,
    *,
    console: Console,
    command: str,
    force: bool = False,
    examples: int = 4,
    device: str = "auto",
) -> list[tuple[str, str]]:
    """Run the cases that `folder` has no record of; return (label, reason) of those that failed.

    Args:
        planned: in the order they run; cases that share a victim should stand together.
        folder: of the suite, below the results folder.
        console: shows the progress.
        command: runs the suite again; goes into the provenance with the case's id.
        force: compute finished cases too and replace their records.
        examples: pictures a case, at most.
        device: "cpu", "cuda", "cuda:1", or "auto".

    Raises:
        SpecError: no such device.
        ResultsError: the folder cannot be written any more.
    """
    where = device_of(device)
    waiting = [one for one in planned if force or not store.finished(folder, one.case.id)]
    if len(waiting) < len(planned):
        console.print(
            f"{len(planned) - len(waiting)} of {len(planned)} cases are finished in {folder}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    failed: list[tuple[str, str]] = []
    ready = _Shared(where)
    weights = [one.seconds or 1.0 for one in waiting]
    with _progress(console) as bar:
        task = bar.add_task("", total=sum(weights))
        for one, weight in zip(waiting, weights, strict=True):
            bar.update(task, description=one.case.label)
            try:
                outcome = execute(
                    one,
                    lambda one=one: ready.of(one),  # type: ignore[misc]
                    command=f"{command} --case {one.case.id} --force",
                    examples=examples,
                    device=str(where),
                )
            except BenchError as error:
                failed.append((one.case.label, str(error)))
            except (
                Exception
            ) as error:  # a model is foreign code: it may raise anything, and costs one case
                _log.debug("%s", traceback.format_exc())
                last = traceback.extract_tb(error.__traceback__)[-1]
                reason = (
                    f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
                )
                failed.append((one.case.label, reason))
            else:
                store.write(folder, *outcome, replace=force)
            bar.advance(task, weight)
    return failed


class _Shared:
    """The last prepared victim, which cases in a row share as they do its failure; surrogates."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._key: tuple[object, ...] = ()
        self._value: Prepared | InvalidOutputError | None = None
        self._dataset = ""
        self._surrogates: dict[tuple[object, ...], Surrogate] = {}

    def of(self, one: Planned) -> Prepared:
        ready = self._prepared(one)
        if one.case.surrogate is None:
            return ready
        if one.case.dataset != self._dataset:  # candidates of another dataset are of no more use
            self._dataset, self._surrogates = one.case.dataset, {}
        key = crafted_alike(one.case)
        if key not in self._surrogates:
            self._surrogates[key] = load_surrogate(one.case, one.data.card, self._device)
        return replace(ready, surrogate=self._surrogates[key])

    def _prepared(self, one: Planned) -> Prepared:
        key = shared_by(one.case)
        if key != self._key or self._value is None:
            self._value = None
            try:
                self._value = prepare(one.case, one.data, self._device)
            except InvalidOutputError as error:
                self._value = error
            self._key = key
        if isinstance(self._value, InvalidOutputError):
            raise self._value
        return self._value


def device_of(name: str) -> torch.device:
    """Return the device a name stands for; "auto" is CUDA where there is one.

    Raises:
        SpecError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise SpecError(f"expected a device of this machine (cpu), got {name!r}: {first}") from None
    return device


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
    )
