"""The commands `run`, `plan` and `leaderboard`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_med.cli import choices, study_run
from robustbench_med.cli.choices import LOCAL
from robustbench_med.cli.show_results import (
    counted,
    publish_boards,
    report_failures,
    unreadable,
)
from robustbench_med.errors import ResultsError, SpecError
from robustbench_med.paths import PACKED_RECORDS

if TYPE_CHECKING:
    from rich.console import Console

    from robustbench_med.bench.case import Case
    from robustbench_med.bench.failure import Failure
    from robustbench_med.bench.resolved_case import ResolvedCase
    from robustbench_med.bench.suite import Suite
    from robustbench_med.bench.timing import Seconds
    from robustbench_med.cli.study_run import Lacking
    from robustbench_med.studies.study import Study


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(run)
    app.command("plan")(plan_command)
    app.command()(leaderboard)


def run(
    ctx: typer.Context,
    suite: choices.SuiteName = "quick",
    data: choices.Data = None,
    results: choices.Results = LOCAL,
    study: choices.Studies = None,
    dataset: choices.Datasets = None,
    victim: choices.Victims = None,
    name: choices.Name = None,
    preprocess: choices.Preprocess = None,
    defense: choices.Defenses = None,
    knowledge: choices.Knowledge = None,
    attack: choices.Attacks = None,
    eps: choices.Eps = None,
    severity: choices.Severity = None,
    norm: choices.Norm = None,
    channels: choices.Channels = None,
    objective: choices.Objective = None,
    operating_point: choices.OperatingPoint = None,
    guide: choices.Guide = None,
    surrogate: choices.Surrogates = None,
    budget: choices.Budget = None,
    draws: choices.Averaged = None,
    n: choices.Number = None,
    seed: choices.Seed = None,
    case: Annotated[
        list[str] | None, typer.Option("--case", help="Run only the case with this id; repeatable.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compute finished cases again.")] = False,
    examples: Annotated[
        int,
        typer.Option("--examples", min=0, help="How many pictures of each case the gallery shows."),
    ] = 4,
    save_images: Annotated[
        bool,
        typer.Option(
            "--save-images",
            help="Save the adversarial images of each case, for `verify --images`: a megabyte for "
            "every 20 images of 3 x 64 x 64 pixels.",
        ),
    ] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            envvar="ROBUSTBENCH_MED_JOBS",
            help="How many workers share the cores of this machine, or its GPUs. By default as "
            "many as save time.",
        ),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            "--executor",
            help="Where the cases are computed: inline (in this process), processes (of this "
            "machine) or dask (a cluster). By default inline for one job, else processes.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            help="The address (tcp://HOST:8786) or the scheduler file of a Dask cluster that runs.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            help="The longest time of a shard, or another step of a case, in seconds. A case that "
            "takes longer is not scored, and the run goes on.",
        ),
    ] = None,
    shard: Annotated[
        int | None,
        typer.Option(
            "--shard",
            min=1,
            help="How many images of a case are attacked together, by default as many as 32 MiB "
            "hold as float32. A stopped run loses at most one shard.",
        ),
    ] = None,
    max_requests: choices.MaxRequests = None,
    check_data: choices.CheckData = False,
) -> None:
    """Attack the victims of a suite, score them, and write tables and the leaderboard page.

    A case that is finished in the results folder is not computed again. The page, the CSV and the
    Markdown file show all records of that folder, also those of earlier runs.
    """
    from rich.console import Console

    console = Console()
    with console.status("loading libraries"):
        from robustbench_med.bench import store
        from robustbench_med.bench.runner import executor_of, run_cases
        from robustbench_med.datasets.file_state import checked_in_full

    ctx.with_resource(choices.limited_requests(max_requests, "dask" if scheduler else executor))
    ctx.with_resource(checked_in_full(check_data))
    selected_suite = choices.suite_of(ctx.params)
    folder = results / selected_suite.name
    store.check_writable(folder)
    studies = choices.studies_of(ctx.params)
    if studies:
        planned, refused = _prepare_studies(
            studies, selected_suite, folder, data, console, measured=not case
        )
    else:
        planned, refused = _plan(selected_suite, data, console, choices.titles_of(ctx.params))
    if case:
        planned = _select_cases(planned, case)
    if name is not None and not force:
        choices.print_kept_names(planned, folder, console)
    failed = run_cases(
        planned,
        folder,
        console=console,
        command=choices.command_of(ctx.params),
        force=force,
        examples=examples,
        images=save_images or selected_suite.save_images,
        device=device,
        jobs=jobs,
        shard=shard,
        executor=executor_of(executor),
        scheduler=scheduler,
        timeout=timeout,
    )
    failures = [*refused, *failed]
    title = selected_suite.title
    result = publish_boards(folder, title, console, planned=planned, failures=failures)
    report_failures(failures + unreadable(result), console)


def plan_command(
    ctx: typer.Context,
    suite: choices.SuiteName = "quick",
    data: choices.Data = None,
    results: choices.Results = LOCAL,
    study: choices.Studies = None,
    dataset: choices.Datasets = None,
    victim: choices.Victims = None,
    name: choices.Name = None,
    preprocess: choices.Preprocess = None,
    defense: choices.Defenses = None,
    knowledge: choices.Knowledge = None,
    attack: choices.Attacks = None,
    eps: choices.Eps = None,
    severity: choices.Severity = None,
    norm: choices.Norm = None,
    channels: choices.Channels = None,
    objective: choices.Objective = None,
    operating_point: choices.OperatingPoint = None,
    guide: choices.Guide = None,
    surrogate: choices.Surrogates = None,
    budget: choices.Budget = None,
    draws: choices.Averaged = None,
    n: choices.Number = None,
    seed: choices.Seed = None,
) -> None:
    """Print the cases of a suite and how long they take on this machine, without running them."""
    from rich.console import Console
    from rich.table import Table

    from robustbench_med.bench.timing import Clock, words

    selected_suite = choices.suite_of(ctx.params)
    console = Console()
    folder = results / selected_suite.name
    studies = choices.studies_of(ctx.params)
    if studies:
        lacking, refused = study_run.print_needs(studies, selected_suite, folder, data, console)
        planned, failures = _plan_usable(selected_suite, lacking, data, console)
        refused += failures
    else:
        planned, refused = _plan(selected_suite, data, console, choices.titles_of(ctx.params))
    with console.status("timing one small batch of each victim"):
        clock = Clock()
        costs = [clock.seconds(resolved) for resolved in planned]
    finished = [_is_finished(folder, resolved.case.id) for resolved in planned]
    title = f"{selected_suite.title}: {counted(len(planned), 'case')}"
    table = Table(title=title, title_justify="left")
    for heading in ("case", "dataset", "victim", "attack", "time", "state"):
        right, id_ = heading == "time", heading == "case"
        table.add_column(
            heading, justify="right" if right else "left", no_wrap=id_ or right, overflow="fold"
        )
    for resolved, cost, is_finished in zip(planned, costs, finished, strict=True):
        case, time = resolved.case, "?" if cost is None else words(cost.total)
        state = "finished" if is_finished else ""
        table.add_row(case.id, case.dataset, _victim_words(case), case.attack, time, state)
    if planned:
        console.print(table)
        unfinished = [cost for cost, done in zip(costs, finished, strict=True) if not done]
        console.print(_time_line(unfinished), highlight=False, markup=False, soft_wrap=True)
    report_failures(refused, console)


def _victim_words(case: Case) -> str:
    """Return the victim of a case with its defense and its surrogate, if it has them."""
    from rich.markup import escape

    words = case.victim
    if case.defense != "none":
        words += f" + {case.defense.partition('(')[0]}"
    return escape(f"{words} from {case.surrogate}" if case.surrogate else words)


def _is_finished(folder: Path, case_id: str) -> bool:
    """Return whether a case has a record; pandas is imported only where there may be one."""
    if not (folder / case_id).is_dir() and not (folder / PACKED_RECORDS).is_file():
        return False
    from robustbench_med.bench import store

    return store.finished(folder, case_id)


def _time_line(costs: list[Seconds | None]) -> str:
    """Return a line on how long the unfinished cases take."""
    from robustbench_med.bench.timing import words

    timed = [cost for cost in costs if cost is not None]
    if not costs:
        return "All cases are finished."
    if not timed:
        return "It is not known how long the cases take: their victims cannot be timed."
    likely, most, checks, setup = (sum(part) for part in zip(*timed, strict=True))
    untimed = len(costs) - len(timed)
    line = (
        f"The cases take about {words(likely + checks + setup)} on this machine in one process: "
        f"{words(setup)} to prepare the victims, {words(likely)} for the attacks, or "
        f"{words(most)} if no image breaks, and {words(checks)} for the checks. Defenses add to "
        "that."
    )
    return line + (f" {counted(untimed, 'case')} could not be timed." if untimed else "")


def leaderboard(
    folder: Annotated[
        Path, typer.Argument(help="The folder of one suite's records, or a folder of such folders.")
    ] = LOCAL,
    figures: Annotated[
        bool,
        typer.Option(
            "--figures",
            help="Also write each figure as SVG and PDF, and a wide CSV, beside the page, which "
            "then links to them.",
        ),
    ] = False,
) -> None:
    """Write the tables and the leaderboard page of the records in a folder.

    For a folder of several suites, also write `index.html`, which links to the page of each.
    """
    from rich.console import Console

    from robustbench_med.bench.publish import pages

    console = Console()
    suites = _suite_folders(folder, console)
    published = {
        suite: publish_boards(suite, choices.title_of(suite), console, figures=figures)
        for suite in suites
    }
    if suites != [folder]:
        entries = [
            pages().suite_entry(
                result.boards, suite, title=choices.title_of(suite), not_scored=result.not_scored
            )
            for suite, result in published.items()
        ]
        line = f"\nstart page: {pages().write_start_page(entries, folder)}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    damaged = [failure for result in published.values() for failure in unreadable(result)]
    report_failures(damaged, console)


def _suite_folders(folder: Path, console: Console) -> list[Path]:
    """Return the suite folders: `folder` itself or those below it; print which are skipped.

    Raises:
        ResultsError: there are no records.
    """
    from robustbench_med.bench import store

    if not folder.is_dir():
        what = "a file" if folder.exists() else "there is no such folder"
        raise ResultsError(f"expected a folder of records, got {folder}: {what}")
    if store.has_record(folder):
        raise ResultsError(
            f"expected the folder of a suite, got that of one case: pass {folder.resolve().parent}"
        )
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    suites = [path for path in (folder, *inside) if store.holds_records(path)]
    if not suites:
        raise ResultsError(f"expected records below {folder}, got none: run a suite first")
    if folder not in suites:
        for path in inside:
            if path not in suites and not path.name.startswith("."):
                line = f"skipped: {path} has no records"
                console.print(line, highlight=False, soft_wrap=True, markup=False)
    return suites


def _plan(
    suite: Suite, data: Path | None, console: Console, titles: Mapping[str, str] | None = None
) -> tuple[list[ResolvedCase], list[Failure]]:
    from robustbench_med.bench.plan import plan

    with console.status("reading data, loading and probing models"):
        planned, refused = plan(suite, data=data, titles=titles)
    if not planned and refused:
        raise refused[0].exception
    return planned, refused


def _prepare_studies(
    studies: list[Study],
    suite: Suite,
    folder: Path,
    data: Path | None,
    console: Console,
    *,
    measured: bool,
) -> tuple[list[ResolvedCase], list[Failure]]:
    """Train the victims of studies, run their published protocols, and plan the corrected cases.

    Args:
        studies: the studies.
        suite: the suite of their corrected cases.
        folder: the results folder of the suite.
        data: folder with the files of named datasets.
        console: shows the progress.
        measured: whether the published protocols run.

    Returns:
        The corrected cases, and what could not be read, trained, measured or planned.
    """
    missing, failures = study_run.missing_datasets(studies, data)
    lacking, untrained = study_run.train_victims(studies, missing, data, console)
    planned, refused = _plan_usable(suite, lacking, data, console)
    failures += [*untrained, *refused]
    if measured:
        failures += study_run.measure_studies(studies, folder, data, console, lacking)
    return planned, failures


def _plan_usable(
    suite: Suite, lacking: Lacking, data: Path | None, console: Console
) -> tuple[list[ResolvedCase], list[Failure]]:
    """Plan the part of a suite whose data and victims are there."""
    part = study_run.usable(suite, lacking)
    return ([], []) if part is None else _plan(part, data, console)


def _select_cases(planned: list[ResolvedCase], ids: list[str]) -> list[ResolvedCase]:
    """Return the cases whose ids start with the given digits."""
    known = [resolved.case.id for resolved in planned]
    matches = {
        text: {case_id for case_id in known if text and case_id.startswith(text)} for text in ids
    }
    ambiguous = sorted(text for text, case_ids in matches.items() if len(case_ids) != 1)
    if ambiguous:
        raise SpecError(
            f"expected ids of single cases of this plan, or their first digits, got "
            f"{', '.join(ambiguous)}: `plan` prints them; an id changes with weights, data "
            "and parameters"
        )
    selected = set().union(*matches.values())
    return [resolved for resolved in planned if resolved.case.id in selected]
