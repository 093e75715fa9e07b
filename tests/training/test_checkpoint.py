"""A killed training continues to the same weights; a diverging one stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from robustbench_med import cli
from robustbench_med.errors import CheckpointError, DivergedError
from robustbench_med.training import fit as fitting
from robustbench_med.training.train import train
from tests.training.test_adversarial_training import card, data

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "pgd_at": {"defense": "pgd_at(steps=2)"},
    "average": {"defense": "trades(steps=2)", "ema": 0.8, "precision": "bfloat16"},
    "parts": {"accumulate": 3},
    "patience": {"defense": "fast_at", "patience": 3, "ema": 0.5},
    "universal": {"defense": "universal_at(every=2)"},
}


class KilledError(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "epoch"),
    [("plain", 1), ("parts", 1), ("pgd_at", 3), ("average", 1), ("patience", 2), ("universal", 1)],
)
def test_a_killed_training_continues_to_the_same_weights(
    tmp_path: Path, name: str, epoch: int
) -> None:
    toy = card(epochs=4, **RECIPES[name])
    whole = train(toy, data(), tmp_path / "whole")

    def kill(fraction: float) -> None:
        if fraction > (epoch + 0.5) / 4:
            raise KilledError

    with pytest.raises(KilledError):
        train(toy, data(), tmp_path / "killed", progress=kill)
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["toy.checkpoint"]
    torch.rand(3)  # whatever the generator did in between
    fractions: list[float] = []
    lines: list[str] = []
    again = train(toy, data(), tmp_path / "killed", progress=fractions.append, log=lines.append)
    assert again.sha256 == whole.sha256
    assert min(fractions) > epoch / 4  # what was done is not done again
    assert lines[0].startswith(f"continues after epoch {epoch} of 4")
    assert not (tmp_path / "killed" / "toy.checkpoint").exists()


def test_killed_after_the_last_epoch_or_while_stopping_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = card(epochs=6, defense="fast_at", patience=1)
    whole = train(toy, data(), tmp_path / "whole")

    def kill(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_finish", kill)
        with pytest.raises(KilledError):
            train(toy, data(), tmp_path / "killed")
    fractions: list[float] = []
    again = train(toy, data(), tmp_path / "killed", progress=fractions.append)
    assert again.sha256 == whole.sha256
    assert fractions == []


def _killed(out: Path, **changed: Any) -> Path:  # noqa: ANN401
    def kill(fraction: float) -> None:
        if fraction > 0.6:
            raise KilledError

    with pytest.raises(KilledError):
        train(card(epochs=2, **changed), data(), out, progress=kill)
    return out / "toy.checkpoint"


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    path = _killed(tmp_path)
    before = path.read_bytes()
    text = "expected a checkpoint of this card, recipe and data, got .*toy.checkpoint of another"
    for other_card, images in (
        (card(epochs=2, lr=0.1), data()),
        (card(epochs=2, defense="fast_at"), data()),
        (card(epochs=2), data(n=22)),
    ):
        with pytest.raises(CheckpointError, match=text):
            train(other_card, images, tmp_path)
    assert path.read_bytes() == before
    train(card(epochs=2), data(), tmp_path)


@pytest.mark.parametrize("cut", [0, 5, 2000])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, cut: int) -> None:
    path = _killed(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="expected a readable checkpoint, got .*remove it"):
        train(card(epochs=2), data(), tmp_path)


def test_a_file_of_weights_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "toy.checkpoint")
    with pytest.raises(CheckpointError, match="expected a readable checkpoint"):
        train(card(epochs=2), data(), tmp_path)


def test_a_write_that_is_stopped_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustbench_med.training import checkpoint

    path = _killed(tmp_path)
    before = path.read_bytes()

    def half(tensors: object, target: Path, metadata: object) -> None:
        target.write_bytes(b"half")
        raise KilledError

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(KilledError):
        train(card(epochs=2), data(), tmp_path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["toy.checkpoint"]


def test_divergence_stops_with_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = fitting.batch_loss, []

    def nan(*words: Any) -> Tensor:  # noqa: ANN401
        calls.append(1)
        value = real(*words)
        return value * float("nan") if len(calls) == 5 else value  # 3 batches an epoch

    toy = card(epochs=3, defense="fast_at")
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "batch_loss", nan)
        text = "expected finite loss, got nan in epoch 2 of 3: the last good checkpoint, after "
        with pytest.raises(DivergedError, match=text + "epoch 1, is .*toy.checkpoint; lower"):
            train(toy, data(), tmp_path / "a")
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["toy.checkpoint"]
    whole = train(toy, data(), tmp_path / "b")
    assert train(toy, data(), tmp_path / "a").sha256 == whole.sha256  # it was good


def test_weights_that_blow_up_are_never_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="in epoch 1 of 2: there is no checkpoint; lower"):
        train(card(epochs=2, lr=1e38), data(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_without_a_bad_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fitting.batch_loss

    def steep(task: Any, *words: Any) -> Tensor:  # noqa: ANN401
        value = real(task, *words)
        value.register_hook(lambda g: g * float("nan"))
        return value

    monkeypatch.setattr(fitting, "batch_loss", steep)
    with pytest.raises(DivergedError, match="expected finite weights, got nan in epoch 1 of 1"):
        train(card(batch=24), data(), tmp_path)  # one batch: its loss is seen before its step


@pytest.mark.slow
def test_kill_9_and_again(tmp_path: Path) -> None:
    words = ["train", "chest_resnet", "--defense", "fast_at(eps=2/255)", "--epochs", "2", "--out"]

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "robustbench_med", *words, str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )

    name = "chest_resnet_fast_at"
    assert CliRunner().invoke(cli.app, [*words, str(tmp_path / "whole")]).exit_code == 0
    killed = start(tmp_path / "killed")
    for _ in range(6000):
        if (tmp_path / "killed" / f"{name}.checkpoint").exists():
            break
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "killed" / f"{name}.safetensors").exists()
    assert start(tmp_path / "killed").wait(300) == 0
    value = [
        (tmp_path / entry / f"{name}.safetensors").read_bytes() for entry in ("whole", "killed")
    ]
    assert value[0] == value[1]
