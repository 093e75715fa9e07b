"""The command `verify`: recompute records and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_med.cli import choices
from robustbench_med.errors import BenchError, ResultsError

if TYPE_CHECKING:
    from robustbench_med.bench.record import Stored
    from robustbench_med.bench.verify.verify import Finding

_COMMITTED = Path("results")
_WORDS = ("match", "within rounding", "mismatch", "not verified")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(verify)


def verify(
    ctx: typer.Context,
    records: Annotated[
        list[str],
        typer.Argument(
            metavar="RECORD...",
            help="Records, each by its folder, its record.json, or a case id (see --results); or "
            "folders of records, such as results/quick.",
        ),
    ],
    data: choices.Data = None,
    results: choices.RecordResults = _COMMITTED,
    images: Annotated[
        bool,
        typer.Option(
            "--images", help="Check the images that `run --save-images` saved, without an attack."
        ),
    ] = False,
    dataset: choices.RecordDataset = None,
    victim: choices.RecordVictim = None,
    surrogate: choices.RecordSurrogate = None,
    run_code: choices.RunCode = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Recompute records and print whether each matches (a mismatch ends with exit code 1).

    The case of each record runs again with the weights, data and versions that the record names;
    with --images, its saved adversarial images are checked instead. All values of a record are
    compared, except where and when it was made. Data files are read to their last byte. If another
    machine made it, one more run measures how far that machine's rounding may move its values: they
    match "within rounding".
    """
    from robustbench_med.bench import store
    from robustbench_med.bench.setup import SetupCache
    from robustbench_med.bench.verify.replay import Places
    from robustbench_med.bench.verify.verify import verify as recompute
    from robustbench_med.datasets.file_state import checked_in_full
    from robustbench_med.devices import device_of

    ctx.with_resource(checked_in_full())
    homes = [home for record in records for home in record_folders(record, results)]
    setups, verdicts = SetupCache(device_of(device)), []
    places = Places(dataset, victim, surrogate)
    for home in dict.fromkeys(homes):
        try:
            stored = store.read(home)
            finding = recompute(
                stored,
                data=data,
                images=images,
                device=device,
                code=run_code,
                places=places,
                setups=setups,
            )
        except BenchError as error:
            if len(homes) == 1:
                raise
            verdicts.append(("not verified", home))
            typer.echo(f"{home}\nnot verified: {error}")
            continue
        verdicts.append((finding.word, home))
        if len(homes) > 1 or home.name in records:  # an id: print its folder
            typer.echo(f"record: {home}")
        _print_finding(stored, finding, images)
    if len(verdicts) > 1:
        _print_summary(verdicts)
    words = [word for word, _ in verdicts]
    if "mismatch" in words:
        raise typer.Exit(1)
    if "not verified" in words:
        raise typer.Exit(2)


def _print_finding(stored: Stored, finding: Finding, images: bool) -> None:
    how = "from the saved images" if images else "by running the case again"
    typer.echo(f"{stored.record.case_id}  {stored.record.case.label}")
    typer.echo(f"{_verdict(finding)}, {how}")
    if finding.machines:
        typer.echo(f"  {finding.machines}")
    for line in finding.lines:
        typer.echo(f"  {line}")
    if images and finding.word != "mismatch":
        typer.echo(
            "  checked: each image of a successful attack, and its ball; not checked: that the "
            "other images are robust"
        )


def _print_summary(verdicts: list[tuple[str, Path]]) -> None:
    """Print how many records have each verdict, and the folders of those that do not match."""
    counts = {word: sum(verdict == word for verdict, _ in verdicts) for word in _WORDS}
    listed = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    typer.echo(f"\n{len(verdicts)} records: {listed}")
    for word in _WORDS[1:]:
        for verdict, home in verdicts:
            if verdict == word:
                typer.echo(f"  {word:<15}  {home}")


def record_folders(record: str, results: Path) -> list[Path]:
    """Return the folders of the records that an argument names: one, or all below a folder.

    The records of a folder `local`, where `run` writes, are included only if there are no others.

    Raises:
        ResultsError: there is no record, or several folders have a record of the id.
    """
    from robustbench_med.bench import store

    path = Path(record)
    if not path.is_dir() or store.has_record(path):
        return [record_folder(record, results)]
    homes = store.homes_below(path)
    local = path / choices.LOCAL.name
    homes = [home for home in homes if not home.is_relative_to(local)] or homes
    if not homes:
        raise ResultsError(f"expected a record in {path}, or records below it, got none")
    return [home.resolve() for home in homes]


def record_folder(record: str, results: Path) -> Path:
    """Return the folder of a record that is named by folder, file, or case id.

    If an id is also in `results/local`, where `run` writes, the committed record is returned.

    Raises:
        ResultsError: there is no record, or several folders have a record of the id.
    """
    from robustbench_med.bench import store

    path = Path(record)
    if path.name == store.RECORD:
        return path.parent.resolve()
    if path.is_dir() or store.has_record(path):
        return path.resolve()
    homes = store.homes_below(results) if path.name == record else []
    homes = [home for home in homes if home.name == record]
    local = results / choices.LOCAL.name
    homes = [home for home in homes if not home.is_relative_to(local)] or homes
    if len(homes) == 1:
        return homes[0].resolve()
    if homes:
        places = ", ".join(str(home) for home in homes)
        raise ResultsError(f"expected one record {record}, got several: name one of {places}")
    raise ResultsError(
        f"expected a record's folder, its record.json, or a case id below {results}, got {record!r}"
    )


def _verdict(finding: Finding) -> str:
    if not finding.samples:
        return finding.word
    if not finding.differing and finding.word == "within rounding":
        return f"{finding.word}: all {finding.samples} outcomes as recorded, some values near them"
    if not finding.differing:
        return f"{finding.word}: all {finding.samples} samples as recorded"
    return f"{finding.word}: {finding.differing} of {finding.samples} samples differ"
