"""`train`: reproduce a shipped model from the recipe in its card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustbench_med.cli import choices


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(train)


def train(
    card: Annotated[str, typer.Argument(help="A model of the zoo: list models.")],
    data: choices.Data = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the weights and the card.")] = Path(
        "results/local/zoo"
    ),
) -> None:
    """Train a model of the zoo by the recipe in its card, seeded, and write weights and card."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from robustbench_med import registry
    from robustbench_med.bench.store import check_writable
    from robustbench_med.cards import ModelCard
    from robustbench_med.datasets.load import load_dataset
    from robustbench_med.models import train as training

    console = Console()
    shipped: ModelCard = registry.find("models", card)
    check_writable(out)
    dataset = load_dataset(shipped.dataset, data=data)
    bar = Progress(
        TextColumn(f"{card} on {shipped.dataset}", markup=False),
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f} %  left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=1.0)
        made = training.train(
            shipped, dataset, out, progress=lambda share: bar.update(task, completed=share)
        )
    if made.measured is None:
        raise RuntimeError("train returned a card without measurements")
    name, value = made.measured.headline
    console.print(
        f"{out / made.weights}: {name} {value:.3f}, "
        f"sha256 {made.sha256[:12]}..., "
        + ("the shipped weights" if made.sha256 == shipped.sha256 else "not the shipped bytes"),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
