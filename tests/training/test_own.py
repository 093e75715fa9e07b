"""Models trained on a person's own data: the card, the code beside it, the parts of a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import robustbench_med as rm
from robustbench_med import cli
from robustbench_med.bench import store
from robustbench_med.cards import Recipe
from robustbench_med.contract import InputContract
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import BenchError, ChecksumError, SpecError, VictimError
from robustbench_med.models.load import load_victim
from robustbench_med.models.source import executes_code
from robustbench_med.training import own
from robustbench_med.training.estimate import GIB, TrainingCost, estimate
from robustbench_med.training.fit import fit
from robustbench_med.training.own import own_card
from robustbench_med.training.train import HUB, train
from robustbench_med.victim import Victim

NET = """
from torch import nn
from parts import WIDTH

def make(channels, outputs, width=WIDTH):
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, outputs),
    )

def pixels(channels, outputs):
    return nn.Conv2d(channels, outputs, 3, padding=1)

def soft(channels, outputs):
    return nn.Sequential(make(channels, outputs), nn.Softmax(1))

def wide(channels, outputs):
    return make(channels, outputs + 1)
"""


def save(path: Path, task: str = "labels", n: int = 16, **changed: Any) -> str:  # noqa: ANN401
    """Write a file of one's own; the place of a bright square is the class."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"info": json.dumps({"classes": ["well", "ill"]})}
    for split in ("train", "val", "test"):
        y = np.arange(n) % 2
        x = rng.integers(40, 100, (n, 16, 16), dtype=np.uint8)
        for image, label in zip(x, y, strict=True):
            image[4:12, 2 + 6 * label : 8 + 6 * label] += 120
        truth = {
            "labels": y[:, None],
            "findings": np.stack([y, 1 - y], 1),
            "masks": (x > 110).astype(np.uint8),
        }[task]
        arrays |= {
            f"{split}_images": x,
            f"{split}_{'masks' if task == 'masks' else 'labels'}": truth,
        }
    if task == "findings":
        arrays["info"] = json.dumps({"classes": ["a", "b"], "task": "multi_label"})
    arrays |= changed
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return str(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "parts.py").write_text("WIDTH = 6\n")
    save(tmp_path / "mine.npz")
    return tmp_path


def made(model: str, out: str = "out", data: str = "mine.npz", **changes: Any) -> Any:  # noqa: ANN401
    changes = {"epochs": 2, "batch": 8} | changes
    defense = changes.pop("defense", "")
    return own_card(model, load_dataset(data), data, Path(out), defense=defense, changes=changes)


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_a_trained_card_is_taken_by_path(folder: Path) -> None:
    words = ("--dataset", "mine.npz", "--model", "net.py:make(width=8)", "--out", "out")
    result = call("train", *words, "--epochs", "2", "--batch", "8", "--accumulate", "2")
    assert result.exit_code == 0, result.output
    assert "16 images, 2 epochs of 2 steps of 8 images in 2 parts: about" in result.output
    assert "run --dataset mine.npz --model out/card.json" in result.output
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"card.json", "card.safetensors", "net.py", "parts.py"}
    # the folder stands alone
    Path("net.py").unlink()
    Path("parts.py").unlink()
    Path("out").rename("moved")
    data = load_dataset("mine.npz")
    loaded = load_victim("moved/card.json", data.card)
    assert loaded.card.builder == "net.py:make(width=8)"
    assert loaded.card.fits is not None
    assert loaded.card.fits.classes == ("well", "ill")
    assert executes_code("moved/card.json")
    shown = call("show", "moved/card.json")
    assert shown.exit_code == 0, shown.output
    assert "model mine_make" in shown.output
    assert "weights: card.safetensors" in shown.output
    assert "from: moved/card.json" in shown.output
    with pytest.raises(VictimError, match=r"expected the card of a trained model at gone\.json"):
        raise call("show", "gone.json").exception or AssertionError
    run = ("run", "--dataset", "mine.npz", "--model", "moved/card.json", "--attack", "fgsm")
    result = call(*run, "--eps", "2/255", "--examples", "0", "--results", "r")
    assert result.exit_code == 0, result.output
    (stored,) = store.read_all(Path("r/custom"))[0]
    accuracy = stored.record.rungs[0].metrics["accuracy"].value
    assert loaded.card.measured is not None
    assert accuracy == pytest.approx(loaded.card.measured.accuracy, abs=1e-4)
    assert any("model, code and weights are the user's own" in n for n in stored.record.notes)
    # from Python too, with or without a defense around it
    handle = rm.load_model("moved/card.json", dataset=data)
    found = rm.evaluate(handle, data, "fgsm", eps="2/255")
    assert found.records[0].record.case.victim == "moved/card.json"
    assert found.interval.value == stored.record.rungs[1].metrics["accuracy"].value
    behind = rm.evaluate(rm.defend(handle, "jpeg", data), data, "fgsm", eps="2/255")
    assert behind.records[0].record.case.defense.startswith("jpeg")
    # a record may come from anybody
    result = call("verify", Path(stored.folder))
    assert isinstance(result.exception, SpecError)
    assert "--run-code" in str(result.exception)
    assert call("verify", Path(stored.folder), "--run-code").exit_code == 0
    # other code, other classes and another range are no silent difference
    save(folder / "other.npz", info=json.dumps({"classes": ["ill", "well"]}))
    with pytest.raises(VictimError, match=r"expected classes \('well', 'ill'\), as in its train"):
        load_victim("moved/card.json", load_dataset("other.npz").card)
    changed = data.card.model_copy(update={"native_range": "HU -1000..1000"})
    with pytest.raises(VictimError, match="expected native range grey level 0..255"):
        load_victim("moved/card.json", changed)
    (folder / "moved" / "parts.py").write_text("WIDTH = 6  # as before\n")
    with pytest.raises(ChecksumError, match="expected the code that mine_make was trained with"):
        load_victim("moved/card.json", data.card)


@pytest.mark.parametrize(
    ("task", "model", "defense"),
    [
        ("labels", "net.py:make", "pgd_at(eps=2/255, steps=2)"),
        ("findings", "net.py:make", ""),
        ("masks", "net.py:pixels", "pgd_at(eps=2/255, steps=2)"),
    ],
)
def test_every_task_trains_with_and_without_a_defense(
    folder: Path, task: str, model: str, defense: str
) -> None:
    data = save(folder / "data.npz", task)
    lines: list[str] = []
    card = made(model, data=data, defense=defense, epochs=1)
    trained = train(card, load_dataset(data), Path("out"), stem="card", log=lines.append)
    loaded = load_victim("out/card.json", load_dataset(data).card)
    assert loaded.card == trained
    assert loaded.card.measured is not None
    assert ("robust" in lines[0]) == bool(defense)
    assert trained.name.endswith("pgd_at") == bool(defense)


def test_a_defense_in_a_file_trains_and_the_card_says_so(folder: Path) -> None:
    text = "def mine(victim, x, y, *, loss, factor: float = 2.0):\n"
    Path("defense.py").write_text(text + "    return factor * loss(victim(x).logits, y)\n")
    card = made("net.py:make", defense="defense.py:mine(factor=3)", epochs=1)
    assert card.name == "mine_make_mine"
    (note,) = card.notes
    assert note.startswith("trained with code from outside this project: defense.py:mine (SHA-256")
    lines: list[str] = []
    data = load_dataset("mine.npz")
    trained = train(card, data, Path("out"), stem="card", log=lines.append)
    plain = train(
        made("net.py:make", "plain", epochs=1), data, Path("plain"), stem="card", log=lines.append
    )
    # the loss is that of the plain training times the factor of the defense
    defended, undefended = (float(line.split("loss ")[1].split(",")[0]) for line in lines)
    assert defended == pytest.approx(3 * undefended, rel=0.2)
    assert trained.sha256 != plain.sha256


class _Plain(nn.Module):
    """A network without batch norm, whose gradient is a mean over images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(256, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x.flatten(1))
        return logits


def _gradient(accumulate: int, precision: str = "float32") -> Tensor:
    data = load_dataset("mine.npz")
    torch.manual_seed(0)
    module = _Plain()
    recipe = Recipe(epochs=1, batch=16, accumulate=accumulate, precision=precision)
    victim = Victim(module, InputContract(1, (16, 16)))
    fit(victim, data.batch("train", stored=True), data.card, recipe)
    assert module.body.weight.grad is not None
    return module.body.weight.grad


def test_the_parts_of_a_batch_give_the_gradient_of_the_batch(folder: Path) -> None:
    # both classes are equally frequent in this file, but not in every part
    whole = _gradient(1)
    for accumulate in (2, 4, 8):
        torch.testing.assert_close(_gradient(accumulate), whole, rtol=1e-4, atol=1e-7)
    half = _gradient(4, "bfloat16")
    torch.testing.assert_close(half, whole, rtol=0.05, atol=1e-3)
    assert not torch.equal(half, whole)


def test_an_estimate_counts_what_autograd_keeps_and_changes_nothing(folder: Path) -> None:
    data = load_dataset("mine.npz")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(2048, 2))
    victim = Victim(module, InputContract(1, (16, 16)))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = torch.get_rng_state()
    weights = sum(p.numel() for p in module.parameters()) * 4

    def kept(batch: int, accumulate: int = 1, **recipe: Any) -> int:  # noqa: ANN401
        fields = {"epochs": 3, "batch": batch, "accumulate": accumulate} | recipe
        stored = data.batch("train", stored=True)
        return estimate(victim, stored, data.card, Recipe(**fields)).bytes - 4 * weights

    # images, the output of the convolution and that of batch norm: 17 values a pixel
    for n in (8, 16):
        assert kept(n) == pytest.approx(n * 256 * 17 * 4, rel=0.05)
    assert kept(16, 4) == pytest.approx(kept(16) / 4, rel=0.1)
    assert kept(8, ema=0.9) - kept(8) == pytest.approx(weights)
    assert kept(8, defense="pgd_at(steps=2)") == pytest.approx(2 * kept(8), rel=0.1)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_training_that_does_not_fit_says_what_helps() -> None:
    cost = TrainingCost(1000, 10, 32, 32, 2, 600.0, 9 * GIB, 4 * GIB, "cuda:0")
    text = (
        "1000 images, 10 epochs of 32 steps of 32 images in 2 parts: about 10 min an epoch, 1.7 h "
        "in all, and 9.0 GiB of memory on cuda:0"
    )
    assert (
        str(cost) == f"{text}, of which 4.0 GiB are free: --accumulate 4 splits each batch into"
        " smaller parts"
    )
    assert str(cost._replace(free=9 * GIB)) == text


def test_a_start_is_loaded_and_hashed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset("mine.npz")
    first = train(made("net.py:make", "plain"), data, Path("plain"), stem="card")
    card = made("net.py:make", start="plain/card.json", defense="fast_at", epochs=1, lr=1e-12)
    assert card.undefended == "plain/card.json"
    train(card, data, Path("out"), stem="card")
    x = data.batch("test").x
    # nothing is learnt at such a rate: what comes out is what went in
    logits = [load_victim(f"{f}/card.json", data.card).victim for f in ("plain", "out")]
    with torch.no_grad():
        was, now = (victim.module[0](x) for victim in logits)  # type: ignore[index]
    torch.testing.assert_close(was, now, rtol=1e-2, atol=1e-2)
    assert first.recipe is not None
    asked: list[bool] = []

    def no_hub(name: str, *, pretrained: bool, **arguments: Any) -> nn.Module:  # noqa: ANN401
        asked.append(pretrained)
        return nn.Sequential(nn.Flatten(), nn.Linear(256, 2))

    monkeypatch.setattr("timm.create_model", no_hub)
    card = made("timm:resnet18(pretrained=True)", epochs=1)
    assert (card.recipe.start, card.recipe.lr, card.builder) == (HUB, own.IMAGENET, "timm:resnet18")
    train(card, data, Path("hub"), stem="card")
    assert asked.count(True) == 1


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("net.py:soft", {}, "expected a network that returns logits alone, got probabilities"),
    ("net.py:wide", {}, "expected 1 or 2 logits for this data, got outputs"),
    ("net.py:gone", {}, "expected a function 'gone' in net.py, got none"),
    ("net.py:make(depth=3)", {}, "expected code that runs, got TypeError"),
    ("timm:resnt18", {}, "expected a known timm model, got 'resnt18'"),
    ("net.py:make(pretrained=True)", {}, "expected pretrained=True with timm:NAME alone"),
    ("net.py:make", {"batch": 4, "accumulate": 3}, "expected parts of at least 2 images"),
    ("net.py:make", {"lr": "fast"}, "recipe|train: lr"),
    ("net.py:make", {"defense": "jpeg"}, "expected a defense that trains, got one of kind"),
    ("net.py:make", {"start": "gone.safetensors"}, "expected a weights file at gone.safetensors"),
    ("net.py:make", {"start": "gone.json"}, "expected the card of a trained model at gone.json"),
]


@pytest.mark.parametrize(("model", "changes", "message"), WRONG)
def test_a_mistake_is_one_line_before_anything_trains(
    folder: Path, model: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchError, match=message) as caught:
        made(model, **changes)
    assert "\n" not in str(caught.value)
    assert not Path("out/card.safetensors").exists()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_split_is_said_before_anything_trains(folder: Path, split: str) -> None:
    missing: dict[str, Any] = {f"{split}_images": None, f"{split}_labels": None}
    save(folder / "part.npz", **missing)
    with pytest.raises(BenchError, match=f"{split}_images"):
        made("net.py:make", data="part.npz")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dataset", "mine.npz"), "or --dataset, --model and --out, got no --model"),
        (("--dataset", "mine.npz", "--model", "net.py:make"), "got no --out"),
        (("chest_resnet", "--model", "net.py:make"), "expected a shipped model, or --dataset"),
    ],
)
def test_the_command_says_what_is_lacking(
    folder: Path, words: tuple[str, ...], message: str
) -> None:
    result = call("train", *words)
    assert isinstance(result.exception, SpecError)
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "expected the card of a model"), ('{"name": "x"}', "expected the card of a model")],
)
def test_a_file_that_is_no_card_is_one_line(folder: Path, content: str, message: str) -> None:
    Path("card.json").write_text(content)
    with pytest.raises(VictimError, match=message) as caught:
        load_victim("card.json", load_dataset("mine.npz").card)
    assert "\n" not in str(caught.value)
    card = made("net.py:make").model_copy(update={"weights": "../w.safetensors"})
    Path("card.json").write_text(card.model_dump_json())
    with pytest.raises(VictimError, match="expected a card with a weights file beside it"):
        load_victim("card.json", load_dataset("mine.npz").card)
