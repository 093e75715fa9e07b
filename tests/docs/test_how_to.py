"""What the how-to pages tell a person to add works as written, in a copy of the checkout."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from robustbench_med import cli, registry
from robustbench_med.datasets.load import load_dataset
from robustbench_med.models.load import load_victim
from robustbench_med.problem import Problem
from robustbench_med.search import Nearest, Search
from tests.docs.pages import CHECKOUT, blocks, source
from tests.toys import clear_images, distance, linear_victim, problem_of

PAGES = ("add_an_attack.md", "add_a_defense.md", "add_a_model.md", "add_a_dataset.md")
PACKAGES = ("robustbench_med", "attacks", "defenses", "leaderboard")
LINES = 30


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the code, its weights linked."""
    for folder in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=ignored)
    zoo = Path("robustbench_med/models/zoo")
    for weights in (CHECKOUT / zoo).glob("*.safetensors"):
        (tmp_path / zoo / weights.name).symlink_to(weights)
    return tmp_path


def run(words: list[str], folder: Path) -> str:
    """Run a command of Python in this process, with the packages of the folder imported anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "200")
        patch.syspath_prepend(folder)
        before = forget_packages()
        try:
            if words[1].endswith(".py"):
                runpy.run_path(words[1])
                return ""
            assert words[:3] == ["python", "-m", "robustbench_med"]
            cli = importlib.import_module("robustbench_med.cli")
            assert Path(str(cli.__file__)).is_relative_to(folder)
            result = CliRunner().invoke(cli.app, words[3:])
        finally:
            forget_packages()
            sys.modules.update(before)
    assert result.exit_code == 0, f"{words}\n{result.output}\n{result.exception!r}"
    return result.output


def forget_packages() -> dict[str, ModuleType]:
    """Remove the modules of this project's packages from those imported, and return them."""
    names = [name for name in sys.modules if name.partition(".")[0] in PACKAGES]
    return {name: sys.modules.pop(name) for name in names}


def follow(page: str, folder: Path) -> str:
    """Do all that a page says in its order; return what the last command printed."""
    said = ""
    for block in blocks(page):
        if block.path:
            path = folder / block.path
            before = path.read_text() + "\n" if path.suffix == ".toml" else ""
            assert before or not path.exists(), f"{page} writes over {block.path}"
            path.write_text(before + block.text)
        for words in block.commands:
            said = run(words, folder)
    return said


def records(folder: Path) -> list[dict[str, Any]]:
    found = (folder / "results" / "local" / "quick").glob("*/record.json")
    return [json.loads(path.read_text()) for path in found]


@pytest.mark.slow
def test_an_attack_as_the_page_says(copy: Path) -> None:
    follow("add_an_attack.md", copy)
    (record,) = records(copy)
    assert record["case"]["attack"] == "brighten"
    assert record["status"] == "ok"
    assert record["audit"]["over_budget"] == 0
    assert record["audit"]["max_size"] == pytest.approx([2 / 255, 8 / 255], rel=1e-4)
    assert "Brightness" in run(["python", "-m", "robustbench_med", "list", "attacks"], copy)


@pytest.mark.slow
def test_a_defense_as_the_page_says(copy: Path) -> None:
    said = follow("add_a_defense.md", copy)
    made = {(r["case"].get("defense", "none"), r["case"].get("knowledge")) for r in records(copy)}
    assert {defense for defense, _ in made} == {"none", "invert"}
    assert len(made) == 3
    assert "Negative" in said


@pytest.mark.slow
def test_a_model_as_the_page_says(copy: Path) -> None:
    follow("add_a_model.md", copy)
    victims = {r["case"]["victim"] for r in records(copy)}
    assert victims == {"timm:resnet10t(weights='mine.safetensors')", "chest_small"}
    card = json.loads((copy / "robustbench_med/models/zoo/chest_small.json").read_text())
    assert len(card["sha256"]) == 64
    assert card["measured"]["balanced_accuracy"] > 0.4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")  # exporters of torch warn
def test_a_deployed_model_as_the_page_says(copy: Path) -> None:
    follow("deployed_models.md", copy)
    cards = {r["case"]["victim"]: r["model_card"] for r in records(copy)}
    assert cards.keys() == {"model.onnx", "model.onnx(runtime=True)", "model.pt"}
    assert all("logits are taken from before it" in str(card["notes"]) for card in cards.values())
    assert [name for name, card in cards.items() if card.get("queries_only")] == [
        "model.onnx(runtime=True)"
    ]


@pytest.mark.slow
def test_a_dataset_as_the_page_says(copy: Path) -> None:
    said = follow("add_a_dataset.md", copy)
    assert "phantom_discs" in said
    code = """
    from robustbench_med.datasets.load import load_dataset
    batch = load_dataset("phantom_discs").batch("test")
    means = [float(batch.x[batch.y == k, :, 32, 32].mean()) for k in (0, 1)]
    print(*batch.x.shape, len(set(batch.patients)), means[0] < 0.4 < means[1])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["48", "1", "64", "64", "16", "True"]


@pytest.mark.slow
def test_a_model_is_hardened_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (block,) = blocks("harden.md")
    for words in block.commands:
        result = CliRunner().invoke(cli.app, words[3:])
        assert result.exit_code == 0, result.output
    assert "Our ResNet, hardened" in result.output
    assert {r["case"]["victim"] for r in records(tmp_path)} == {"plain/card.json", "hard/card.json"}


@pytest.mark.slow
def test_a_function_in_a_file_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, command, *_ = blocks("plug_ins.md")
    assert (module.path, len(command.commands)) == ("mine.py", 1)
    (tmp_path / module.path).write_text(module.text)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, command.commands[0][3:])
    assert result.exit_code == 0, result.output
    cases = {(r["case"]["attack"], r["case"].get("defense", "none")) for r in records(tmp_path)}
    assert cases == {
        (a, d) for a in ("fgsm", "mine.py:brighten") for d in ("none", "mine.py:nothing")
    }


def test_a_plug_in_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's module and entry points, installed; then its last block in the same process."""
    *_, module, points, registering = blocks("plug_ins.md")
    (tmp_path / module.path).write_text(module.text)
    info = tmp_path / "med_plugin-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: med-plugin\nVersion: 0.1\n")
    groups = tomllib.loads(points.text)["project"]["entry-points"]
    lines = [
        line
        for group, names in groups.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in names.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    registry.refresh()
    try:
        for kind in ("attacks", "defenses", "datasets", "models"):
            (name,) = groups[f"robustbench_med.{kind}"]
            assert registry.origin(kind, name) == "med-plugin 0.1"
        data = load_dataset("squares")
        assert (
            load_victim("linear_net", data.card)
            .victim.logits(data.batch("test").x)
            .isfinite()
            .all()
        )
    finally:
        monkeypatch.undo()
        sys.modules.pop("med_plugin", None)
        registry.refresh()
    names: dict[str, Any] = {}
    exec(module.text, names)  # noqa: S102 - the page's own code
    names["brighten"].__module__ = names["nothing"].__module__ = "med_plugin"
    exec(registering.text, names)  # noqa: S102 - the page's own code
    assert registry.find("attacks", "brighten").title == "Brighten"
    names["added"].remove()
    assert "brighten" not in registry.names("attacks")
    assert "nothing" not in registry.names("defenses")


@pytest.mark.parametrize("page", PAGES)
def test_an_addition_is_short_and_every_block_is_run(page: str) -> None:
    found = blocks(page)
    assert sum(bool(block.commands) for block in found) >= 1
    code = [block.text.splitlines() for block in found if block.language == "python"]
    assert code
    assert all(len(lines) <= LINES for lines in code), f"{page}: expected at most {LINES} lines"
    for block in found:
        ways = bool(block.path) + bool(block.commands) + (block.text in fragments())
        assert ways == 1, f"{page}: nobody runs\n{block.text}"
    fences = [line for line in source(page).splitlines() if line.startswith("```")]
    assert 2 * len(found) == len(fences)  # none escaped the pattern


def fragments() -> list[str]:
    """Return the blocks of the page on attacks that show the inside of a function."""
    found = blocks("add_an_attack.md")
    return [b.text for b in found if b.language == "python" and not b.path]


def test_the_fragments_of_attacks_run() -> None:
    """In a function of their own, on a problem whose answer is known."""
    search, nearest = fragments()
    victim = linear_victim()
    x = clear_images(victim, 6)
    y = victim(x).logits.argmax(1)
    problem: Problem = problem_of(
        victim, x, y, eps=float(1.05 * distance(victim, x, y, "linf").max())
    )
    names: dict[str, Any] = {"Search": Search, "Nearest": Nearest}
    body = textwrap.indent(search, "    ")
    exec(f"def climbing(problem, steps):\n{body}", names)  # noqa: S102 - the page's own code
    z = names["climbing"](problem, 5)
    assert bool(problem.probe(z).success.all())
    body = textwrap.indent(nearest, "    ")
    exec(f"def nearest(problem, z):\n{body}", names)  # noqa: S102 - the page's own code
    assert torch.equal(names["nearest"](problem, z), z)
