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
    defense: Annotated[
        str | None,
        typer.Option("--defense", help="Train with it, e.g. 'pgd_at(eps=4/255)': list defenses."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Epochs instead of the recipe's.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="Shipped victim whose weights it starts from.")
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option("--ema", help="Decay of a moving average of the weights, e.g. 0.95; 0 = off."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option("--patience", help="Stop after so many epochs of no better validation."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="float32, or bfloat16: mixed precision.")
    ] = None,
) -> None:
    """Train a model of the zoo by the recipe in its card, seeded, and write weights and card.

    Stopped, it goes on from its last epoch when called again, to the same weights.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from robustbench_med import registry
    from robustbench_med.bench.store import check_writable
    from robustbench_med.cards import ModelCard
    from robustbench_med.datasets.load import load_dataset
    from robustbench_med.training import train as training

    console = Console()
    wanted: ModelCard = registry.find("models", card)
    if defense is not None:
        wanted = training.defended(wanted, defense)
    changes = {"epochs": epochs, "start": start, "ema": ema}
    changes |= {"patience": patience, "precision": precision}
    wanted = training.adjusted(wanted, {k: v for k, v in changes.items() if v is not None})
    training.check(wanted)
    check_writable(out)
    dataset = load_dataset(wanted.dataset, data=data)
    bar = Progress(
        TextColumn(f"{wanted.name} on {wanted.dataset}", markup=False),
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f} %  left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=1.0)
        made = training.train(
            wanted,
            dataset,
            out,
            progress=lambda share: bar.update(task, completed=share),
            tell=lambda line: bar.console.print(
                line, highlight=False, markup=False, soft_wrap=True
            ),
        )
    if made.measured is None:
        raise RuntimeError("train returned a card without measurements")
    name, value = made.measured.headline
    console.print(
        f"{out / made.weights}: {name} {value:.3f}, "
        f"sha256 {made.sha256[:12]}...{_beside(made.sha256, wanted.sha256)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _beside(found: str, shipped: str) -> str:
    if not shipped:
        return ""
    return ", the shipped weights" if found == shipped else ", not the shipped bytes"
