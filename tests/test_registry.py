"""Names that other packages and this process add to the registry."""

from __future__ import annotations

import json
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_med import cli, registry, run_suite
from robustbench_med.bench.transfer import trained_on
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.datasets.load import load_dataset
from robustbench_med.declarations import attack, defense, model
from robustbench_med.defense import Defended
from robustbench_med.errors import SpecError, UnknownNameError
from robustbench_med.models.load import load_victim
from robustbench_med.models.source import resolve_model
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images
from robustbench_med.victim import Victim
from tests.bench.toys import card_of

PACKAGE = """
    import numpy as np
    import torch

    from robustbench_med.cards import DatasetCard
    from robustbench_med.datasets.dataset import Arrays, Dataset
    from robustbench_med.declarations import attack, defense, model
    from robustbench_med.defense import Defended


    @attack(title="Brighten", summary="All values rise.", norms=("linf",), schedule="ascend",
            cost=lambda: 1)
    def brighten(problem, *, rng, part: float = 1.0):
        '''Return brighter images.

        Args:
            problem: the batch attacked.
            rng: unused.
            part: of the radius, in [0, 1].
        '''
        return problem.ball.step(problem.x, torch.ones_like(problem.x), problem.x, part)


    @defense(title="Floor", kind="transform")
    def floor(victim, *, level: float = 0.0):
        '''Return the victim behind a floor of the grey values.

        Args:
            victim: undefended.
            level: the least value, in [0, 1].
        '''
        return Defended(victim)


    def _read(split):
        rng = np.random.default_rng(0)
        x = rng.integers(0, 120, (12, 8, 8), dtype=np.uint8)
        y = np.arange(12) % 2
        x[y == 1] += 120
        return Arrays(x, y, np.array([f"{split}{i}" for i in range(12)]))


    squares = Dataset(
        DatasetCard(name="squares", title="Squares", modality="drawn", task="single_label",
                    classes=("dark", "bright"), normal=0, channels=1, size=(8, 8)),
        _read,
    )


    @model(title="Mean", dataset="squares", summary="Looks at the mean.")
    def mean_net():
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        with torch.no_grad():
            net[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 64))
            net[1].bias.copy_(torch.tensor([30.0, -30.0]))
        return net
"""
POINTS = """
    [robustbench_med.attacks]
    brighten = toy_plugin:brighten
    broken_attack = toy_plugin.nothing:here
    pgd = toy_plugin:brighten

    [robustbench_med.defenses]
    floor = toy_plugin:floor

    [robustbench_med.datasets]
    squares = toy_plugin:squares

    [robustbench_med.models]
    mean_net = toy_plugin:mean_net
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder that holds an installed package with entry points of every kind."""
    home = tmp_path / "site"
    info = home / "toy_plugin-1.2.dist-info"
    info.mkdir(parents=True)
    (home / "toy_plugin.py").write_text(textwrap.dedent(PACKAGE))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(POINTS))
    return home


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Install the package in this process, until the end of the test."""
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    registry.refresh()
    yield
    sys.modules.pop("toy_plugin", None)
    monkeypatch.undo()
    registry.refresh()


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    installed: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Call:
    """Run a command in this process; return its exit code, output and errors."""

    def run(text: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robustbench_med", *shlex.split(text)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_list_and_show_say_where_a_plug_in_comes_from(
    call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, _ = call("list attacks")
    assert code == 0
    row = next(line for line in out.splitlines() if "brighten" in line)
    assert "toy-plugin 1.2" in row
    first, second = caplog.messages
    assert "toy-plugin 1.2: expected a new name of an attack, got 'pgd'" in first
    assert "toy-plugin 1.2: attack 'broken_attack' cannot be loaded: Module" in second
    for kind, name in (("defenses", "floor"), ("datasets", "squares"), ("models", "mean_net")):
        cards = json.loads(call(f"list {kind} --json")[1])
        origins = {card["name"]: card["from"] for card in cards}
        assert origins.pop(name) == "toy-plugin 1.2"
        assert set(origins.values()) == {registry.ours()}
    shown = json.loads(call("show brighten --json")[1])
    assert shown["from"] == "toy-plugin 1.2"
    assert shown["parameters"][0]["meaning"] == "of the radius, in [0, 1]."


def test_a_plug_in_is_planned_and_run(call: Call, tmp_path: Path) -> None:
    words = (
        "quick --dataset squares --victim mean_net --attack brighten --eps 2/255,64/255 "
        "--defense none --defense floor -n 12"
    )
    code, out, _ = call(f"plan {words}")
    assert code == 0
    assert "2 cases" in out
    assert call(f"run {words} --examples 0")[0] == 0
    stored = sorted((tmp_path / "results" / "local" / "custom").glob("*/record.json"))
    records = [json.loads(path.read_text()) for path in stored]
    assert {record["case"]["defense"] for record in records} == {"none", "floor(level=0.0)"}
    for record in records:
        assert (record["status"], record["case"]["attack"]) == ("ok", "brighten")
        assert record["model_card"]["name"] == "mean_net"
        assert record["dataset_card"]["name"] == "squares"


def test_a_plug_in_runs_in_several_processes(call: Call, tmp_path: Path) -> None:
    words = (
        "quick --dataset squares --victim mean_net --attack brighten --eps 64/255 "
        "--defense none --defense floor -n 12 --examples 0 --jobs 2"
    )
    code, out, _ = call(f"run {words}")
    assert code == 0, out
    assert len(list((tmp_path / "results" / "local" / "custom").glob("*/record.json"))) == 2


def test_what_this_process_registered_runs_in_several_processes(tmp_path: Path) -> None:
    with (
        registry.register("attacks", grey),
        registry.register("defenses", same),
        registry.register("datasets", toy()),
        registry.register("models", nothing),
    ):
        ran = run_suite(
            "quick",
            results=tmp_path,
            datasets=["toy"],
            victims=["nothing"],
            attacks=["grey"],
            ladder=[0.1],
            defenses=["none", "same"],
            jobs=2,
        )
    assert not ran.not_scored
    assert len(ran.records) == 2


def test_a_plug_in_that_exits_at_import_costs_one_line(
    site: Path,
    installed: None,  # noqa: ARG001
    caplog: pytest.LogCaptureFixture,
) -> None:
    (site / "toy_plugin.py").write_text("raise SystemExit('no licence')")
    assert "floor" not in registry.load("defenses")
    assert caplog.messages == [
        "toy-plugin 1.2: defense 'floor' cannot be loaded: SystemExit: no licence"
    ]


def test_a_plug_in_adds_no_victim_to_shipped_data(call: Call) -> None:
    before = call("plan quick --dataset phantom_chest --attack fgsm --eps 2/255")[1]
    card = registry.find("models", "mean_net").model_copy(
        update={"name": "other_net", "dataset": "phantom_chest"}
    )
    with registry.register("models", card):
        after = call("plan quick --dataset phantom_chest --attack fgsm --eps 2/255")[1]
    assert "chest_resnet" in before
    assert "other_net" not in after
    assert "mean_net" in call("plan quick --dataset squares --attack fgsm --eps 2/255")[1]


def test_a_broken_plug_in_is_one_line_where_it_is_asked_for(call: Call) -> None:
    code, _, err = call("show broken_attack")
    assert code == 2
    assert "attack 'broken_attack' cannot be loaded" in err.splitlines()[-1]


def test_help_and_shipped_names_import_no_plug_in(
    site: Path,
    installed: None,
    call: Call,  # noqa: ARG001
) -> None:
    (site / "toy_plugin.py").write_text("raise SystemExit('imported')")
    assert call("--help")[0] == 0
    assert registry.find("attacks", "fgsm").name == "fgsm"
    assert {"brighten", "pgd"} <= set(registry.names("attacks"))
    assert load_dataset("phantom_chest").card.name == "phantom_chest"
    assert "toy_plugin" not in sys.modules


@attack(title="Grey", norms=("linf",), schedule="ascend", cost=lambda: 1)
def grey(problem: Problem, *, rng: Draws) -> Images:
    """Return grey images."""
    return problem.ball.project(torch.full_like(problem.x, 0.5), problem.x)


@defense(title="Same", kind="transform")
def same(victim: Victim) -> Defended:
    """Return the victim as it is."""
    return Defended(victim)


@model(title="Nothing", dataset="toy")
def nothing() -> nn.Module:
    """Return a network that ignores its input."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def toy(name: str = "toy") -> Dataset:
    def read(split: SplitName) -> Arrays:
        ids = np.array([f"{split}{i}" for i in range(4)])
        images = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
        return Arrays(images, np.arange(4) % 2, ids)

    return Dataset(card_of(torch.zeros(1, 1, 4, 4), 2, name=name), read)


def test_a_registered_name_is_there_until_the_end_of_the_block() -> None:
    with registry.register("attacks", grey) as registered:
        card = registry.find("attacks", "grey")
        assert registry.load("attacks")["grey"] == card == registered.card
        assert registry.function("attacks", card) is grey
        assert registry.origin("attacks", "grey") == "registered in this process"
    with pytest.raises(UnknownNameError, match="expected a known attack, got 'grey'"):
        registry.find("attacks", "grey")


def test_a_plain_call_registers_until_it_is_removed() -> None:
    registered = registry.register("defenses", same)
    assert registry.find("defenses", "same").title == "Same"
    registered.remove()
    assert "same" not in registry.names("defenses")


def test_a_registered_model_and_dataset_are_loaded() -> None:
    with registry.register("datasets", toy()), registry.register("models", nothing):
        data = load_dataset("toy")
        assert len(data.batch("test")) == 4
        first, second = (load_victim("nothing", data.card) for _ in range(2))
        assert first.victim.logits(data.batch("test").x).shape == (4, 2)
        assert first.sha256 == second.sha256
        assert first.card.dataset == "toy"


def test_a_surrogate_that_was_registered_states_its_own_data() -> None:
    data = toy("other")
    with registry.register("datasets", toy()), registry.register("models", nothing):
        assert trained_on(resolve_model("nothing"), data.card).name == "toy"


@pytest.mark.parametrize(
    ("kind", "item", "message"),
    [
        ("attacks", same, r"expected a function declared with @attack\(...\), got same"),
        ("defenses", 3, r"expected a function declared with @defense\(...\), got int"),
        ("datasets", grey, "expected a Dataset or a DatasetCard, got function"),
        ("models", grey, r"expected a function declared with @model\(...\), got grey"),
    ],
)
def test_what_cannot_be_registered_is_refused(
    kind: registry.Kind, item: object, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        registry.register(kind, item)


def test_a_name_that_is_taken_is_refused_unless_it_is_to_be_replaced() -> None:
    taken = toy("phantom_chest")
    with pytest.raises(
        SpecError,
        match="expected a new name of a dataset, got 'phantom_chest': robustbench_med has it",
    ):
        registry.register("datasets", taken)
    shipped = registry.find("datasets", "phantom_chest")
    with registry.register("datasets", taken, replace=True):
        assert registry.find("datasets", "phantom_chest") == taken.card
        with pytest.raises(SpecError, match="got 'phantom_chest': this process has it"):
            registry.register("datasets", taken)
    assert registry.find("datasets", "phantom_chest") == shipped
