"""Training with a defense runs for every task and method; mistakes are refused in one line."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from robustbench_med import cli, registry
from robustbench_med.cards import DatasetCard, ModelCard, Recipe, Task
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.errors import BenchError, SpecError, UnknownNameError, VictimError
from robustbench_med.models import weights
from robustbench_med.models.load import ZOO, untrained
from robustbench_med.training import fit as fitting
from robustbench_med.training import train as training
from robustbench_med.training.adversarial_setup import adversarial_setup
from robustbench_med.training.train import train
from robustbench_med.training.validation import ValidationScores
from tests.bench.toys import dataset_of

RECIPE = Recipe(epochs=1, batch=8, augment=("flip",))
BUILDERS: dict[Task, str] = {
    "single_label": "vgg(cfg=[8, 'M'], mlp_ratio=0.01)",
    "multi_label": "vgg(cfg=[8, 'M'], mlp_ratio=0.01)",
    "segmentation": "segnet(widths=(4, 8))",
}


def card(task: Task = "single_label", **changed: Any) -> ModelCard:  # noqa: ANN401
    recipe = RECIPE.model_copy(update=changed)
    values = {"name": "toy", "title": "Toy", "family": "vgg", "dataset": "toy"}
    return ModelCard.model_validate({**values, "builder": BUILDERS[task], "recipe": recipe})


def data(task: Task = "single_label", *, n: int = 24) -> Dataset:
    x = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    y = torch.arange(n) % 2
    x[y == 1, :, 4:8, 4:8] += 0.5
    if task == "multi_label":
        y = torch.stack([y, 1 - y], 1)
        y[0, 0] = -1
    if task == "segmentation":
        y = (x[:, 0] > 0.5).long()
    return dataset_of(x, y, 2, task=task)


METHODS = ["pgd_at", "trades", "mart", "fast_at", "universal_at"]
QUICK = {"pgd_at": "steps=2", "trades": "steps=2", "mart": "steps=2"}


TAKEN = [(m, task) for m in METHODS for task in registry.load("defenses")[m].tasks]


def test_all_but_one_method_take_every_task() -> None:
    assert {pair for pair in product(METHODS, BUILDERS) if pair not in TAKEN} == {
        ("mart", "multi_label"),
        ("mart", "segmentation"),
    }


@pytest.mark.parametrize(("method", "task"), TAKEN)
def test_every_method_trains_every_task_it_takes(tmp_path: Path, method: str, task: Task) -> None:
    spec = f"{method}({QUICK.get(method, 'eps=0.02')})"
    plain = train(card(task), data(task), tmp_path / "plain")
    lines: list[str] = []
    first = train(card(task, defense=spec), data(task), tmp_path / "one", log=lines.append)
    second = train(card(task, defense=spec), data(task), tmp_path / "two")
    assert first.sha256 == second.sha256 != plain.sha256
    (line,) = lines
    metric = "Dice" if task == "segmentation" else "balanced accuracy"
    assert line.startswith("epoch 1/1: loss ")
    assert f"validation {metric} clean 0." in line or f"validation {metric} clean 1." in line
    assert ", robust " in line
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"toy.safetensors", "toy.json"}


def test_mixed_precision_trains_other_but_like_weights(tmp_path: Path) -> None:
    parameters = {}
    for precision in ("float32", "bfloat16"):
        trained = train(card(defense="fast_at", precision=precision), data(), tmp_path / precision)
        victim = untrained(trained, data().card)
        weights.read(victim.module, tmp_path / precision / trained.weights, sha256=trained.sha256)
        parameters[precision] = torch.cat(
            [p.detach().flatten() for p in victim.module.parameters()]
        )
    assert not torch.equal(parameters["float32"], parameters["bfloat16"])
    torch.testing.assert_close(parameters["float32"], parameters["bfloat16"], atol=0.02, rtol=0.1)


def test_an_average_without_memory_is_the_weights(tmp_path: Path) -> None:
    tensors = {}
    for ema in (0.0, 1e-9, 0.9):
        trained = train(card(ema=ema, epochs=2), data(), tmp_path / str(ema))
        victim = untrained(trained, data().card)
        weights.read(victim.module, tmp_path / str(ema) / trained.weights)
        tensors[ema] = torch.cat([p.detach().flatten() for p in victim.module.parameters()])
    torch.testing.assert_close(tensors[1e-9], tensors[0.0], atol=1e-6, rtol=1e-5)
    assert float((tensors[0.9] - tensors[0.0]).abs().max()) > 1e-3


def test_it_stops_after_the_patience_and_keeps_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    epochs: list[dict[str, Tensor]] = []

    def validate(victim: Any, *_: Any) -> ValidationScores:  # noqa: ANN401
        state = victim.module.state_dict()
        epochs.append({key: weights.as_stored(value).clone() for key, value in state.items()})
        return ValidationScores("balanced accuracy", 1.0, next(scores))

    monkeypatch.setattr(fitting, "validate", validate)
    trained = train(card(epochs=8, patience=2, defense="fast_at"), data(), tmp_path)
    assert len(epochs) == 4  # an equal score is no better one
    stored = load_file(tmp_path / trained.weights)
    equal = [all(torch.equal(state[key], stored[key]) for key in stored) for state in epochs]
    assert equal == [False, True, False, False]


def test_a_patience_without_a_defense_watches_the_clean_score(tmp_path: Path) -> None:
    lines: list[str] = []
    train(card(epochs=3, patience=1), data(), tmp_path, log=lines.append)
    assert lines
    assert not any("robust" in line for line in lines)


def test_it_starts_from_the_weights_of_a_shipped_victim() -> None:
    shipped = registry.load("models")["chest_resnet"]
    dataset_card = registry.load("datasets")[shipped.dataset]
    x = torch.rand(4, dataset_card.channels, *dataset_card.size)
    few = dataset_of(x, torch.arange(4) % 2, 2)
    recipe = Recipe(epochs=1, batch=4, lr=1e-9, weight_decay=0, start="chest_resnet")
    toy = shipped.model_copy(update={"recipe": recipe, "name": "toy"})

    def near(out: Path, start: str) -> float:
        trained = train(
            toy.model_copy(update={"recipe": recipe.model_copy(update={"start": start})}), few, out
        )
        a, b = untrained(trained, few.card).module, untrained(trained, few.card).module
        weights.read(a, out / trained.weights)
        weights.read(b, ZOO / shipped.weights)
        pairs = zip(a.parameters(), b.parameters(), strict=True)
        return max(float((p - q).detach().abs().max()) for p, q in pairs)

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        assert near(Path(folder) / "a", "chest_resnet") < 1e-3  # stored in half precision
        assert near(Path(folder) / "b", "") > 1e-2
        with pytest.raises(VictimError, match="expected the weights of this architecture"):
            near(Path(folder) / "c", "chest_vgg")


REFUSED = {
    "pgd_at(total_step=2)": r"pgd_at: expected a known parameter \(eps, .*\), got 'total_step'",
    "pgd_at(steps=2.5)": "pgd_at: expected steps to be of type int, got 2.5",
    "pgd_at(eps=1e999)": "pgd_at: expected a finite eps, got inf",
    "pgd_at(eps=2)": r"expected eps <= 1 .*, got 2: 2 grey levels are 2/255",
    "pgd_at(eps=0)": "pgd_at: expected eps > 0, got 0",
    "pgd_at(norm='l1')": "pgd_at: expected an attack in l1 on single_label, got pgd_last",
    "pgd_at(attack='segpgd')": "pgd_at: expected an attack in linf on single_label, got segpgd",
    "pgd_at(attack='uap')": "pgd_at: expected an attack on single images, got uap",
    "universal_at(attack='pgd')": "universal_at: expected a universal attack, got pgd",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_a_defense_that_cannot_be_is_refused(spec: str) -> None:
    with pytest.raises(SpecError, match=REFUSED[spec]):
        adversarial_setup(spec, data().card)


def test_a_defense_of_another_task_names_those_it_takes() -> None:
    with pytest.raises(SpecError, match="mart: expected single_label data, got multi_label"):
        adversarial_setup("mart", data("multi_label").card)
    with pytest.raises(SpecError, match="expected a victim that trains on whole images"):
        adversarial_setup("universal_at", data("segmentation").card, windowed=True)
    with pytest.raises(UnknownNameError, match="expected a known defense, got 'pgd_ta'"):
        adversarial_setup("pgd_ta", data().card)


def test_a_defense_that_does_not_train() -> None:
    with pytest.raises(SpecError, match="expected a defense that trains, got one of kind transf"):
        adversarial_setup("jpeg", data().card)


def test_another_attack_takes_of_the_effort_what_it_knows(tmp_path: Path) -> None:
    trained = train(card(defense="pgd_at(steps=3, attack='apgd')"), data(), tmp_path)
    assert trained.measured is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema": 1.5}, "chest_resnet: ema: Input should be less than 1, got 1.5"),
        ({"precision": "half"}, "precision: Input should be 'float32' or 'bfloat16', got 'half'"),
        ({"start": "nobody"}, "expected a known model, got 'nobody'"),
    ],
)
def test_a_recipe_that_cannot_be_followed(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        training.check(training.adjusted(registry.load("models")["chest_resnet"], changes))


def test_the_card_of_a_defended_victim() -> None:
    shipped = registry.find("models", "chest_resnet")
    plain = shipped.model_copy(update={"name": "toy_resnet"})
    defended = training.defended(plain, "trades(eps=2/255)")
    assert defended.name == "toy_resnet_trades"
    assert defended.undefended == "toy_resnet"
    assert defended.title == "ResNet, TRADES"
    assert defended.recipe is not None
    assert defended.recipe.defense == "trades(eps=0.00784313725490196)"
    assert (defended.weights, defended.sha256, defended.measured) == ("", "", None)
    recipe = Recipe(epochs=3, defense="trades(eps=0.01, beta=2.0)", start="toy_resnet")
    trained = defended.model_copy(update={"recipe": recipe, "sha256": "abc"})
    with registry.register("models", trained):
        assert training.defended(plain, "trades(beta=2.0)") == trained
        changed = training.defended(plain, "trades(beta=4.0)").recipe
    assert changed is not None
    assert changed.defense == "trades(eps=0.01, beta=4.0)"
    assert changed.epochs == 3
    longer = recipe.model_copy(update={"epochs": 7})
    assert training.adjusted(trained, {"epochs": 7}).recipe == longer
    bare = plain.model_copy(update={"recipe": None})
    assert training.adjusted(bare, {"epochs": 7}) == bare
    for refuse in (training.check, lambda plain_card: training.defended(plain_card, "pgd_at")):
        with pytest.raises(SpecError, match="expected a card with a recipe, got toy_resnet"):
            refuse(bare)


def test_the_command_refuses_before_it_loads_data(tmp_path: Path) -> None:
    words = ["train", "chest_findings_resnet", "--defense", "mart", "--out", str(tmp_path / "zoo")]
    findings: DatasetCard = registry.find("datasets", "phantom_chest_findings")
    with registry.register("datasets", Dataset(findings, unread), replace=True):
        result = CliRunner().invoke(cli.app, words)
    assert isinstance(result.exception, SpecError)
    assert "mart: expected single_label data, got multi_label" in str(result.exception)
    assert not (tmp_path / "zoo").exists()


def unread(split: SplitName) -> Arrays:
    raise AssertionError(f"{split} is read")
