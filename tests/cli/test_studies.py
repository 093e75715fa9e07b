"""`run studies` and `plan studies` with data or weights that are not there yet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustbench_med import registry
from robustbench_med.cards import ModelCard, Recipe
from robustbench_med.cli import app
from robustbench_med.studies import study as study_files
from robustbench_med.studies.outcome import read_outcomes
from tests.bench.toys import small_phantoms

UNTRAINED = ModelCard(
    name="later",
    title="Trained later",
    family="resnet",
    dataset="phantom_chest",
    builder="timm:resnet10t(channels=[4, 4, 4, 4], stem_width=4)",
    recipe=Recipe(epochs=1, batch=6),
)
STUDY = """
title = "Toy"
source = "A paper."
summary = "One step breaks it."
protocol = "p"
substitute = "s"
conclusion = "c"
{rows}

[[grids]]
datasets = ["phantom_chest", "gone"]
victims = {victims}
attacks = ["fgsm"]
ladder = ["2/255", "8/255"]
n = 8
"""
ROW = """
[[rows]]
id = "{dataset}_{victim}"
label = "FGSM"
question = "breaks"
published = {{ dataset = "{dataset}", victim = "{victim}", protocol = "fgsm(eps=8/255)", reading = "accuracy", n = 8 }}
"""  # noqa: E501
RUNS = [("phantom_chest", "chest_resnet"), ("gone", "chest_resnet")]


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Work in an empty folder, with a study of which one dataset has no file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROBUSTBENCH_MED_DATA", raising=False)
    monkeypatch.setattr(study_files, "FOLDER", tmp_path)
    study_files.studies.cache_clear()
    chest = registry.find("datasets", "phantom_chest")
    gone = {"name": "gone", "function": "", "file": "gone.npz", "synthetic": False}
    with small_phantoms(), registry.register("datasets", chest.model_copy(update=gone)):
        yield
    study_files.studies.cache_clear()


def write(runs: list[tuple[str, str]], name: str = "toy") -> None:
    rows = "".join(ROW.format(dataset=dataset, victim=victim) for dataset, victim in runs)
    victims = json.dumps(list(dict.fromkeys(victim for _, victim in runs)))
    Path(f"{name}.toml").write_text(STUDY.format(rows=rows, victims=victims), "utf-8")


def command(*words: str, code: int) -> str:
    result = CliRunner().invoke(app, [*words, "--results", "r"])
    assert result.exit_code == code, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


def failures(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("not scored: ")]


def test_a_missing_dataset_costs_one_line_and_its_own_rows() -> None:
    write(RUNS)
    write(RUNS[1:], "other")
    (line,) = failures(command("run", "studies", code=1))
    assert line.startswith("not scored: Toy, Toy: gone: expected gone.npz in ")
    assert "ROBUSTBENCH_MED_DATA" in line
    assert list(read_outcomes(Path("r/studies"), "toy")) == ["phantom_chest_chest_resnet"]
    page = Path("r/studies/studies.html").read_text(encoding="utf-8")
    assert "not run yet: <code>python -m robustbench_med run studies --study other" in page
    # what has run is not run again, and needs no other study's data
    assert failures(command("run", "studies", "--study", "toy", code=1))
    output = command("plan", "studies", code=1)
    assert len(failures(output)) == 1
    assert "All cases are finished." in output
    assert [line.split("│")[1:4] for line in output.splitlines() if line.startswith("│ Toy")] == [
        [" Toy   ", "         1 ", "        0 "],
        [" Toy   ", "         2 ", "        1 "],
    ]


def test_without_any_data_nothing_but_the_reason_is_printed() -> None:
    write(RUNS[1:])
    assert len(failures(command("run", "studies", code=1))) == 1
    assert not Path("r/studies/studies.html").exists()
    assert len(failures(command("plan", "studies", code=1))) == 1


def test_a_plan_names_the_victims_that_are_trained_first() -> None:
    write([("phantom_chest", "chest_resnet"), ("phantom_chest", "later")])
    Path("toy.toml").write_text(
        Path("toy.toml").read_text("utf-8").replace(', "gone"]', "]"), "utf-8"
    )
    with registry.register("models", UNTRAINED):
        output = command("plan", "studies", code=0)
        assert "later" in output.partition("To be trained first")[2]
        assert "1 corrected case of these victims will be listed below" in output
        assert "Studies of the literature: 1 case" in output
        assert not failures(output)
        assert not (Path("cache") / "victims").exists()


def test_what_needs_a_victim_without_training_data_is_left_out() -> None:
    write([("phantom_chest", "chest_resnet"), ("phantom_chest", "later")])
    lost = UNTRAINED.model_copy(update={"dataset": "gone"})
    with registry.register("models", lost):
        (line,) = failures(command("run", "studies", code=1))
        assert "gone.npz" in line
        assert list(read_outcomes(Path("r/studies"), "toy")) == ["phantom_chest_chest_resnet"]


def test_unshipped_victims_are_marked(tmp_path: Path) -> None:
    with registry.register("models", UNTRAINED):
        listed = CliRunner().invoke(app, ["list", "models"]).output
        (line,) = [line for line in listed.splitlines() if line.startswith("  later ")]
        assert "on phantom_chest, trained here when needed" in line
        shown = CliRunner().invoke(app, ["show", "later"]).output
        assert "weights: not shipped: trained here when a study needs it, or by" in shown
        home = next((tmp_path / "cache").glob("victims/*"), None)
        assert home is None
