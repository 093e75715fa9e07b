"""Progress: images, a rate, and a time left that holds once a tenth of the work is done."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from robustbench_med.bench.progress import Pace, Show
from robustbench_med.bench.queue import CaseRun, Queue, case_runs
from robustbench_med.bench.steps import Needs, ShardStep
from tests.bench.test_driver import cases

ATTACKS = {"fgsm": 0.05, "pgd": 1.0, "ensemble": 6.0, "deepfool": 0.3}  # true weight of each


def runs_of(victims: int) -> list[CaseRun]:
    """Return cases of several victims; what a weight says is wrong by a factor for each attack."""
    template = cases()[0]
    return [
        CaseRun(
            template._replace(case=template.case.model_copy(update={"attack": a, "victim": v})),
            group=v,
            images=100,
            weight=weight,
        )
        for v in (f"v{i}" for i in range(victims))
        for a, weight in ATTACKS.items()
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_time_left_holds_within_a_factor_of_two_after_a_tenth(workers: int, seed: int) -> None:
    """Two or more workers take cases of other victims; the clock is that of the simulation."""
    rng = np.random.default_rng(seed)
    wrong = {attack: float(rng.uniform(0.5, 2.0)) for attack in ATTACKS}
    runs = runs_of(12)
    true = {
        run.id: run.weight * wrong[run.resolved.case.attack] * float(rng.uniform(0.7, 1.4))
        for run in runs
    }
    queue, pace, now = Queue(runs), Pace(runs), 0.0
    busy: dict[str, tuple[CaseRun, float, float]] = {}  # with its begin and its end
    log: list[tuple[float, float]] = []
    while queue.unfinished:
        for worker in (f"w{i}" for i in range(workers)):
            if worker not in busy and (pick := queue.next(worker, now)) is not None:
                pick[0].begin(None)
                busy[worker] = (pick[0], now, now + true[pick[0].id])
        worker = min(busy, key=lambda name: busy[name][2])
        run, began, now = busy.pop(worker)
        run.state = "ended"
        pace.add(run, now - began)
        running = [(other, now - since) for other, since, _ in busy.values()]
        if (seconds := pace.seconds_remaining(running, workers)) is not None:
            log.append((now, seconds))
    checked = [(at, seconds) for at, seconds in log if 0.1 * now <= at <= 0.8 * now]
    assert len(checked) > 10
    for at, seconds in checked:
        assert 0.5 <= seconds / (now - at) <= 2.0, (at, now)


def test_the_shards_of_one_large_case_tell_how_long_it_takes() -> None:
    (run, *_) = case_runs(cases()[:1], in_order=True)
    run.images = 100
    pace = Pace([run])
    run.begin(None)
    assert pace.seconds_remaining([(run, 0.0)], 2) is None
    run.open(Needs("", tuple(range(1, 10)), (10,) * 10, None), "w0")
    pace.add(run, 3.0)
    assert run.done == pytest.approx(0.1)
    assert pace.seconds_remaining([], 1) == pytest.approx(27.0)
    assert pace.seconds_remaining([], 2) == pytest.approx(13.5)
    for number in (1, 2):
        run.begin(ShardStep(number, ""))
        run.finish_shard(ShardStep(number, ""))
        pace.add(run, 3.0)
    assert pace.seconds_remaining([], 1) == pytest.approx(21.0)


def test_a_log_gets_lines_and_a_terminal_none() -> None:
    for terminal in (False, True):
        runs = case_runs(cases(), in_order=True)
        text = StringIO()
        console = Console(file=text, force_terminal=terminal, width=200)
        show = Show(runs, {run.id: "label" for run in runs}, console, 0.0)
        runs[0].state = "ended"
        show.update(7300.0, runs[0])
        assert ("9 of 27 images, 1 of 3 cases done, " in text.getvalue()) != terminal
        assert ("about 2.0 h left" in text.getvalue()) != terminal
