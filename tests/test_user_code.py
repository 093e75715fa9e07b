"""Functions in a file of the user's own: what runs, its hash, and one line for every mistake."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from robustbench_med import registry, user_code
from robustbench_med.bench.attack_spec import resolve_attack, validate_parameters
from robustbench_med.bench.defense_spec import resolve_defense
from robustbench_med.bench.suite import Grid
from robustbench_med.errors import BenchError, SpecError
from robustbench_med.objectives import make
from robustbench_med.spec import parse

CARD = registry.find("datasets", "phantom_chest")
PLAIN = '''
from helper import PART

def brighten(problem, *, rng, part: float = PART):
    """Return brighter images.

    Args:
        part: fraction of the radius.
    """
    return problem.ball.step(problem.x, problem.x * 0 + 1, problem.x, part)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper.py").write_text("PART = 0.5\n")
    return tmp_path


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return name


def validated(name: str, text: str = "") -> None:
    grid = Grid(datasets=("phantom_chest",), attacks=(name,), ladder=(2 / 255,))
    attack = resolve_attack(f"{name}{text}", grid)
    validate_parameters(attack, CARD, make("untargeted", CARD.task, card=CARD), "linf")


def test_a_plain_function_has_a_card(folder: Path) -> None:
    name = f"{write(folder, PLAIN)}:brighten"
    card = registry.find("attacks", name)
    assert (card.name, card.title, card.summary) == (name, "brighten", "Return brighter images.")
    assert (card.parameters, card.meanings) == ({"part": 0.5}, {"part": "fraction of the radius."})
    # every radius is attacked anew: nothing is inferred for an attack that nobody described
    assert (card.schedule, card.norms) == ("ascend", ("linf", "l2", "l1", "l0"))
    assert registry.origin("attacks", name) == "mine.py, your own file"
    validated(name, "(part=1)")


def test_a_declared_function_keeps_its_card(folder: Path) -> None:
    text = "from robustbench_med.declarations import defense\n"
    text += "@defense(title='Nothing', kind='detector')\ndef f(victim, *, fitting): ...\n"
    card = registry.find("defenses", f"{write(folder, text)}:f")
    assert (card.title, card.kind, card.fitted) == ("Nothing", "detector", True)


def test_a_plain_function_of_images_and_truth_retrains(folder: Path) -> None:
    name = f"{write(folder, 'def f(victim, x, y, *, loss): ...')}:f"
    assert registry.find("defenses", name).kind == "training"


def test_the_hash_covers_the_file_and_what_it_imports_beside_it(folder: Path) -> None:
    name = f"{write(folder, PLAIN)}:brighten"
    first = registry.find("attacks", name)
    assert registry.find("attacks", name).sha256 == first.sha256 != ""
    assert "helper" not in sys.modules
    (folder / "helper.py").write_text("PART = 0.25\n")
    second = registry.find("attacks", name)
    assert second.sha256 != first.sha256
    assert second.parameters == {"part": 0.25}
    (folder / "unrelated.py").write_text("x = 1\n")
    assert registry.find("attacks", name).sha256 == second.sha256
    # what was planned does not run as something else
    with pytest.raises(SpecError, match="expected the code the plan saw, got other: run again"):
        registry.function("attacks", first)
    assert registry.function("attacks", second).__name__ == "brighten"


def test_an_edit_that_a_compiled_copy_would_hide_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    name, helper = f"{write(folder, PLAIN)}:brighten", folder / "helper.py"
    second = helper.stat().st_mtime_ns
    assert registry.find("attacks", name).parameters == {"part": 0.5}
    helper.write_text("PART = 0.2\n")  # as long as before, and as old
    os.utime(helper, ns=(second, second))
    assert registry.find("attacks", name).parameters == {"part": 0.2}
    assert {path.name for path in folder.iterdir()} == {"mine.py", "helper.py"}
    assert not sys.dont_write_bytecode


def test_libraries_of_an_environment_beside_the_file_stay_imported(folder: Path) -> None:
    home = folder / ".venv" / "site-packages"
    home.mkdir(parents=True)
    (home / "some_library.py").write_text("x = 1\n")
    text = f"import sys\nsys.path.insert(0, {str(home)!r})\nimport some_library\n"
    try:
        user_code.load(f"{write(folder, text + 'def f(): ...')}:f")
        assert "some_library" in sys.modules
    finally:
        sys.modules.pop("some_library", None)


def test_a_path_may_have_any_form(folder: Path) -> None:
    write(folder, PLAIN)
    for path in ("./mine.py", str(folder / "mine.py"), "../" + folder.name + "/mine.py"):
        name, parameters = parse(f"{path}:brighten(part=1/4)")
        assert (name, parameters) == (f"{path}:brighten", {"part": 0.25})
        assert registry.find("attacks", name).title == "brighten"
    assert user_code.split("torchattacks:PGD") is None
    assert user_code.split("timm:net(weights='a.py:b')") is None


ATTACKS = [
    ("x = 1", "expected a function 'f' in mine.py, got none"),
    ("f = 1", "expected a function 'f' in mine.py, got none"),
    ("def f(:", "expected code that runs, got SyntaxError"),
    ("1 / 0", "expected code that runs, got ZeroDivisionError: division by zero"),
    ("import gone_away", "expected code that runs, got ModuleNotFoundError"),
    ("raise SystemExit(3)", "expected code that runs, got SystemExit: 3"),
    ("def f(x): ...", "expected an attack, a function of problem, rng, got f without problem"),
    ("def f(problem, *, rng, part): ...", "expected a default of each parameter, got none of"),
    ("def f(problem, *, rng): ...", "expected an attack that returns images, got None"),
    ("def f(problem, *, rng): return problem.gone", "expected code that runs, got AttributeError"),
    (
        "from robustbench_med.declarations import defense\n"
        "@defense(title='t', kind='transform')\ndef f(victim): ...",
        "expected an attack, got a function declared with @defense",
    ),
]


@pytest.mark.parametrize(("text", "message"), ATTACKS)
def test_a_mistake_in_an_attack_is_one_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match="mine.py") as caught:
        validated(f"{write(folder, text)}:f")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


DEFENSES = [
    ("def f(x): ...", "expected a defense, a function of victim, got f without victim"),
    ("def f(victim, *, a): ...", "expected a default of each parameter, got none of 'a'"),
    ("def f(victim): return victim", "expected a function that returns Defended(victim), got one"),
    ("def f(victim): return victim.gone", "expected code that runs, got AttributeError"),
    (
        "from dataclasses import replace\nfrom robustbench_med.defense import Defended\n"
        "def f(victim): return Defended(replace(victim, guard=lambda x, logits: x.sum()))",
        'expected @defense(..., kind="detector") of a defense that rejects images',
    ),
]


@pytest.mark.parametrize(("text", "message"), DEFENSES)
def test_a_mistake_in_a_defense_is_one_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(BenchError, match="mine.py") as caught:
        resolve_defense(f"{write(folder, text)}:f", CARD)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"expected a Python file at gone\.py, got none"):
        registry.find("attacks", "gone.py:f")
    os.mkdir("folder.py")
    with pytest.raises(SpecError, match="expected a Python file"):
        registry.find("attacks", "folder.py:f")
