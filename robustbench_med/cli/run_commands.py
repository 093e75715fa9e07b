"""`run`, `plan` and `leaderboard`: from a suite to its page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_med.cli import choices
from robustbench_med.cli.choices import LOCAL
from robustbench_med.errors import ResultsError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from robustbench_med.bench.failure import Failure
    from robustbench_med.bench.publish import Published
    from robustbench_med.bench.resolved_case import ResolvedCase
    from robustbench_med.bench.suite import Suite
    from robustbench_med.bench.timing import Seconds


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
    dataset: choices.Datasets = None,
    victim: choices.Victims = None,
    defense: choices.Defenses = None,
    knowledge: choices.Knowledge = None,
    attack: choices.Attacks = None,
    eps: choices.Eps = None,
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
        list[str] | None, typer.Option("--case", help="Only the case with this id; repeatable.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compute finished cases again.")] = False,
    examples: Annotated[
        int, typer.Option("--examples", min=0, help="Pictures of a case for the gallery.")
    ] = 4,
    save_images: Annotated[
        bool,
        typer.Option(
            "--save-images",
            help="Save the adversarial images of each case, for `verify --images`: float32, a "
            "megabyte for every 20 broken images of 3 x 64 x 64.",
        ),
    ] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            envvar="ROBUSTBENCH_MED_JOBS",
            help="Victims attacked at once, in processes that share the cores; by default as many "
            "as pay on this machine.",
        ),
    ] = None,
) -> None:
    """Attack the victims of a suite, score them, and write tables and the leaderboard page.

    Cases finished before in the same results folder are not computed again, and the page, the CSV
    and the Markdown file hold all records of that folder, of earlier runs too.
    """
    from rich.console import Console

    from robustbench_med.bench import store
    from robustbench_med.bench.runner import run_cases

    chosen = choices.suite_of(ctx.params)
    folder = results / chosen.name
    store.check_writable(folder)
    console = Console()
    planned, refused = _plan(chosen, data, console)
    chosen_cases = _only(planned, case) if case else planned
    failed = run_cases(
        chosen_cases,
        folder,
        console=console,
        command=choices.command_of(ctx.params),
        force=force,
        examples=examples,
        images=save_images or chosen.save_images,
        device=device,
        jobs=jobs,
    )
    failures = [*refused, *failed]
    result = _publish(folder, chosen.title, console, planned=chosen_cases, failures=failures)
    _not_scored(failures + _unreadable(result), console)


def plan_command(
    ctx: typer.Context,
    suite: choices.SuiteName = "quick",
    data: choices.Data = None,
    results: choices.Results = LOCAL,
    dataset: choices.Datasets = None,
    victim: choices.Victims = None,
    defense: choices.Defenses = None,
    knowledge: choices.Knowledge = None,
    attack: choices.Attacks = None,
    eps: choices.Eps = None,
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
    """Print the cases of a suite and what they cost on this machine, without running them."""
    from rich.console import Console
    from rich.table import Table

    from robustbench_med.bench.timing import Clock, words

    chosen = choices.suite_of(ctx.params)
    console = Console()
    planned, refused = _plan(chosen, data, console)
    with console.status("timing one small batch of each victim"):
        clock = Clock()
        costs = [clock.seconds(one) for one in planned]
    finished = [_finished(results / chosen.name, one.case.id) for one in planned]
    table = Table(title=f"{chosen.title}: {len(planned)} cases", title_justify="left")
    for heading in ("case", "dataset", "victim", "attack", "about", "state"):
        right, id_ = heading == "about", heading == "case"
        table.add_column(heading, justify="right" if right else "left", no_wrap=id_ or right)
    for one, cost, done in zip(planned, costs, finished, strict=True):
        case, about = one.case, "?" if cost is None else words(cost.likely)
        state = "finished" if done else ""
        table.add_row(case.id, case.dataset, case.victim, case.attack, about, state)
    console.print(table)
    left = [cost for cost, done in zip(costs, finished, strict=True) if not done]
    console.print(_cost(left), highlight=False, markup=False, soft_wrap=True)
    _not_scored(refused, console)


def _finished(folder: Path, case_id: str) -> bool:
    """Return whether a case has a record; where it has no folder, pandas is not imported."""
    if not (folder / case_id).is_dir():
        return False
    from robustbench_med.bench import store

    return store.finished(folder, case_id)


def _cost(left: list[Seconds | None]) -> str:
    """Return a line on what the cases that are left cost."""
    from robustbench_med.bench.timing import words

    timed = [cost for cost in left if cost is not None]
    if not left:
        return "all are finished"
    if not timed:
        return "how long they take is not known: their victims cannot be timed"
    about, most = (sum(getattr(cost, name) for cost in timed) for name in ("likely", "most"))
    unknown = (
        f"; {len(left) - len(timed)} cases could not be timed" if len(timed) < len(left) else ""
    )
    return (
        f"about {words(about)} of attacks on this machine, {words(most)} if no image breaks; their "
        f"checks, and what a defense adds, come on top{unknown}"
    )


def leaderboard(
    folder: Annotated[
        Path, typer.Argument(help="Folder of records: one suite's, or one that holds several.")
    ] = LOCAL,
) -> None:
    """Write the tables and the page of the records in a folder, beside them.

    Of a folder that holds several suites, also `index.html`, which leads to the page of each.
    """
    from rich.console import Console

    from robustbench_med import registry
    from robustbench_med.bench.suite import title_of

    console = Console()
    suites = _suite_folders(folder, console)
    published = {suite: _publish(suite, title_of(suite), console) for suite in suites}
    if suites != [folder]:
        pages: Any = registry.module("leaderboard")
        entries = [
            pages.suite_entry(
                result.boards, suite, title=title_of(suite), not_scored=result.not_scored
            )
            for suite, result in published.items()
        ]
        line = f"\nstart page: {pages.write_start_page(entries, folder)}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    unreadable = [failure for result in published.values() for failure in _unreadable(result)]
    _not_scored(unreadable, console)


def _suite_folders(folder: Path, console: Console) -> list[Path]:
    """Return the folders of records: `folder` itself, or those it holds; print what is left out.

    Raises:
        ResultsError: there are none.
    """
    from robustbench_med.bench import store

    if not folder.is_dir():
        raise ResultsError(f"expected a folder of records, got {folder}: there is no such folder")
    if store.is_loose(folder):
        raise ResultsError(
            f"expected the folder of a suite, got that of one case: give {folder.resolve().parent}"
        )
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    suites = [path for path in (folder, *inside) if store.holds_records(path)]
    if not suites:
        raise ResultsError(f"expected records below {folder}, got none: run a suite first")
    if folder not in suites:
        for path in inside:
            if path not in suites and not path.name.startswith("."):
                line = f"left out: {path} holds no records of its own"
                console.print(line, highlight=False, soft_wrap=True, markup=False)
    return suites


def _plan(
    suite: Suite, data: Path | None, console: Console
) -> tuple[list[ResolvedCase], list[Failure]]:
    from robustbench_med.bench.plan import plan

    with console.status("reading data and cards"):
        planned, refused = plan(suite, data=data)
    if not planned and refused:
        raise refused[0].exception
    return planned, refused


def _only(planned: list[ResolvedCase], ids: list[str]) -> list[ResolvedCase]:
    known = [one.case.id for one in planned]
    meant = {text: [one for one in known if text and one.startswith(text)] for text in ids}
    unknown = {text for text, found in meant.items() if len(set(found)) != 1}
    if unknown:
        raise SpecError(
            f"expected ids of single cases of this plan, or their first digits, got "
            f"{', '.join(sorted(unknown))}: `plan` prints them; an id changes with weights, data "
            "and parameters"
        )
    wanted = {found[0] for found in meant.values()}
    return [one for one in planned if one.case.id in wanted]


def _not_scored(failures: list[Failure], console: Console) -> None:
    for failure in failures:
        text = f"not scored: {failure}"
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _publish(
    folder: Path,
    title: str,
    console: Console,
    *,
    planned: list[ResolvedCase] | None = None,
    failures: list[Failure] | None = None,
) -> Published:
    """Write the boards of all records in `folder`, then print them; return what was written.

    The page, CSV and Markdown are written first, so that they do not depend on what can be printed.

    Args:
        folder: of the records.
        title: of the page.
        console: shows the tables: of a run, the boards on which one of its cases stands.
        planned: the cases of a run.
        failures: of the run; the page names them.
    """
    from robustbench_med import registry
    from robustbench_med.bench.publish import publish

    found = publish(folder, title, planned=planned, failures=failures or [])
    if found.page is None:
        return found
    pages: Any = registry.module("leaderboard")
    own = None if planned is None else {one.case.id for one in planned}
    left = pages.show_boards(found.boards, console, only=own)
    lines = [f"\nleaderboard: {found.page}"]
    earlier = 0 if own is None else len(found.cases - own)
    if own is not None and earlier:
        lines.append(
            f"It holds all records of the folder: {_count(len(found.cases & own), 'case')} of this "
            f"run and {earlier} of earlier ones"
            + (f"; {_count(left, 'board')} of those alone not printed here" if left else "")
            + "."
        )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return found


def _unreadable(published: Published) -> list[Failure]:
    """Return the records of a folder that cannot be read."""
    from robustbench_med.bench.failure import Failure

    return [Failure(label="record", reason=line) for line in published.damaged]


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"
