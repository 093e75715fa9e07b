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

    from robustbench_med.bench.plan import Broken, Planned
    from robustbench_med.bench.store import Damaged
    from robustbench_med.bench.suite import Suite


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

    Cases finished before in the same results folder are not computed again.
    """
    from rich.console import Console

    from robustbench_med.bench import store
    from robustbench_med.bench.runner import run_cases

    chosen = choices.suite_of(ctx.params)
    folder = results / chosen.name
    store.check_writable(folder)
    console = Console()
    planned, broken = _plan(chosen, data, console)
    failed = run_cases(
        _only(planned, case) if case else planned,
        folder,
        console=console,
        command=choices.command_of(ctx.params),
        force=force,
        examples=examples,
        images=save_images or chosen.save_images,
        device=device,
        jobs=jobs,
    )
    refused = [(one.label, str(one.error)) for one in broken]
    lost = [*refused, *failed]
    _not_scored(lost + _publish(folder, chosen.title, console, planned=planned, lost=lost), console)


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
    """Print the cases of a suite and what they cost at most, without running them."""
    from rich.console import Console
    from rich.table import Table

    from robustbench_med.bench import store

    chosen = choices.suite_of(ctx.params)
    console = Console()
    planned, broken = _plan(chosen, data, console)
    table = Table(title=f"{chosen.title}: {len(planned)} cases", title_justify="left")
    for heading in ("case", "dataset", "victim", "attack", "at most", "state"):
        right, id_ = heading == "at most", heading == "case"
        table.add_column(heading, justify="right" if right else "left", no_wrap=id_ or right)
    for one in planned:
        seconds = "?" if one.seconds is None else f"{one.seconds:.1f} s"
        done = "finished" if store.finished(results / chosen.name, one.case.id) else ""
        table.add_row(
            one.case.id, one.case.dataset, one.case.victim, one.case.attack, seconds, done
        )
    console.print(table)
    total = sum(one.seconds or 0 for one in planned)
    console.print(f"{total:.0f} s at most, by the gradient times measured in the victims' cards")
    _not_scored([(one.label, str(one.error)) for one in broken], console)


def leaderboard(
    folder: Annotated[
        Path, typer.Argument(help="Folder of records: one suite's, or one that holds several.")
    ] = LOCAL,
) -> None:
    """Write the tables and the page of the records in a folder, beside them."""
    from rich.console import Console

    console = Console()
    folders = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
    folders = [one for one in folders if any(one.glob("*/record.json"))]
    if not folders:
        raise ResultsError(f"expected records below {folder}, got none: run a suite first")
    lines = [line for one in folders for line in _publish(one, one.resolve().name, console)]
    _not_scored(lines, console)


def _plan(suite: Suite, data: Path | None, console: Console) -> tuple[list[Planned], list[Broken]]:
    from robustbench_med.bench.plan import plan

    with console.status("reading data and cards"):
        planned, broken = plan(suite, data=data)
    if not planned and broken:
        raise broken[0].error
    return planned, broken


def _only(planned: list[Planned], ids: list[str]) -> list[Planned]:
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


def _not_scored(lines: list[tuple[str, str]], console: Console) -> None:
    for label, reason in lines:
        text = f"not scored: {label}: {reason}"
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    if lines:
        raise typer.Exit(1)


def _publish(
    folder: Path,
    title: str,
    console: Console,
    *,
    planned: list[Planned] | None = None,
    lost: list[tuple[str, str]] | None = None,
) -> list[tuple[str, str]]:
    """Write and print the boards of `folder`; return its unreadable records.

    Args:
        folder: of the records.
        title: of the page.
        console: shows the tables.
        planned: only these cases.
        lost: (label, reason) of what has no record; the page says so.
    """
    from robustbench_med import registry
    from robustbench_med.bench import store

    pages: Any = registry.module("leaderboard")
    only = None if planned is None else {one.case.id for one in planned}
    stored, damaged = store.read_each(folder, only=only)
    gone = [
        *_gone(pages, {one.record.case_id for one in stored}, planned or [], lost or []),
        *(_damaged(pages, one) for one in damaged),
    ]
    if stored or damaged:
        pages.show(stored, console, lost=gone)
        try:
            page = pages.publish(stored, folder, title=title, lost=gone)
        except OSError as error:
            raise ResultsError(f"expected to write into {folder}, got: {error.strerror}") from None
        line = f"\nleaderboard: {page}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return [("record", one.line) for one in damaged]


def _gone(
    pages: Any,  # noqa: ANN401 - of the leaderboard
    finished: set[str],
    planned: list[Planned],
    lost: list[tuple[str, str]],
) -> list[Any]:
    """Return what failed as the page takes it; a case whose older record stands is none."""
    from robustbench_med import registry, spec

    reasons, found = dict(lost), []
    for one in planned:
        case = one.case
        if case.label not in reasons or case.id in finished:
            continue
        shield = spec.parse(case.defense).name
        cards = (
            registry.find("attacks", case.attack),
            None if shield == "none" else registry.find("defenses", shield),
        )
        found.append(pages.Lost(case.label, reasons[case.label], case, *cards))
    known = {one.case.label for one in planned}
    return [*found, *(pages.Lost(label, reason) for label, reason in lost if label not in known)]


def _damaged(pages: Any, one: Damaged) -> Any:  # noqa: ANN401 - of the leaderboard
    label, reason = one.home.name, one.line.replace(str(one.home), one.home.name)
    record = one.record
    if record is None:
        return pages.Lost(label, reason)
    cards = record.attack_card, record.defense_card
    return pages.Lost(f"{record.case.label} ({label})", reason, record.case, *cards)
