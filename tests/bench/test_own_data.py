"""Own files through the bench: another form scores the same, and a defect is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import robustbench_med as rm
from robustbench_med.bench import store
from robustbench_med.bench.record import Record
from robustbench_med.bench.verify.verify import verify
from robustbench_med.errors import DataError, SpecError
from tests.toys import Linear

SPLITS = ("train", "val", "test")
N = 30
W = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).sign()
X = np.random.default_rng(1).uniform(0.35, 0.65, (len(SPLITS), N, 8, 8)).astype(np.float32)


def linear(k: int) -> nn.Module:
    return Linear(W[:k], -0.5 * W[:k].sum(1))


class Pixels(nn.Module):
    """Background where dark, class 1 where bright, and classes that are never called."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        bright = 20 * (x - 0.5)
        never = [torch.full_like(x, -9.0) + 0 * x] * (self.k - 2)
        return torch.cat([-bright, bright, *never], 1)


class Findings(nn.Module):
    """Three findings, and more that are never called."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1) - 0.5
        never = -9 + 0 * flat[:, : self.k - 3]
        return torch.cat([flat @ W[:3].T, never], 1)


def ids(k: int) -> NDArray[np.int64]:
    """Return the class of every image of each split; one in ten is labelled otherwise."""
    found = linear(k)(torch.from_numpy(X.reshape(-1, 64))).argmax(1).reshape(len(SPLITS), N)
    found[:, ::10] = (found[:, ::10] + 1) % k
    labels: NDArray[np.int64] = found.numpy()
    return labels


def save(path: Path, key: str, truth: NDArray[Any], **changed: Any) -> Path:  # noqa: ANN401
    arrays: dict[str, Any] = {}
    for i, split in enumerate(SPLITS):
        arrays |= {f"{split}_images": X[i], f"{split}_{key}": truth[i]}
    np.savez(path, **{k: v for k, v in (arrays | changed).items() if v is not None})
    return path


def record(model: nn.Module, path: Path, attack: str = "fgsm", **options: Any) -> Record:  # noqa: ANN401
    return rm.evaluate(model, path, attack, eps=0.01, **options).records[0].record


def metrics(one: Record, *names: str) -> list[float]:
    return [rung.metrics[name].value for rung in one.rungs for name in names]


CALLS = ("accuracy", "balanced_accuracy", "auc", "f1", "attack_success")


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.bool_, np.float64])
def test_one_hot_labels_score_as_class_ids(tmp_path: Path, k: int, kind: type[np.generic]) -> None:
    truth = ids(k)
    plain = record(linear(k), save(tmp_path / "mine.npz", "labels", truth))
    hot = record(linear(k), save(tmp_path / "mine.npz", "labels", np.eye(k, dtype=kind)[truth]))
    assert metrics(hot, *CALLS) == metrics(plain, *CALLS)
    assert any("one-hot" in note for note in hot.notes)
    assert not any("one-hot" in note for note in plain.notes)


DICE = ("dice", "iou", "hd95", "nsd", "volume_error", "attack_success")
MASKS = (X > 0.5).astype(np.uint8)
MASKS[..., :2] = 1 - MASKS[..., :2]  # a part is labelled otherwise


def names(k: int) -> str:
    return json.dumps({"classes": ["background", "lesion", *(f"extra {i}" for i in range(2, k))]})


@pytest.mark.parametrize("attack", ["fgsm", "segpgd(steps=5)", "pgd(steps=5, loss='dice')"])
def test_classes_that_never_occur_lift_no_mean_and_no_attack(tmp_path: Path, attack: str) -> None:
    path = tmp_path / "mine.npz"
    alone = record(Pixels(2), save(path, "masks", MASKS, info=names(2)), attack)
    for k in (3, 5):
        more = record(Pixels(k), save(path, "masks", MASKS, info=names(k)), attack)
        np.testing.assert_allclose(metrics(more, *DICE), metrics(alone, *DICE), atol=1e-6)
        assert "dice[extra 2]" not in more.rungs[0].metrics
        assert any("counted nowhere: extra 2" in note for note in more.notes)
    with pytest.raises(SpecError, match=r"expected a region in lesion, got 'extra 2'"):
        record(Pixels(5), path, attack, objective="region(name='extra 2')")


def test_a_record_without_absent_regions_is_verified(tmp_path: Path) -> None:
    Path(tmp_path / "model.py").write_text(
        "import torch\n"
        "class Pixels(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        bright = 20 * (x - 0.5)\n"
        "        return torch.cat([-bright, bright, -9 + 0 * x], 1)\n"
    )
    path = save(tmp_path / "mine.npz", "masks", MASKS, info=names(3))
    spec = f"{tmp_path / 'model.py'}:Pixels"
    rm.evaluate(spec, str(path), "fgsm", eps=0.01, results=tmp_path / "kept", n=6)
    (stored,) = store.read_all(tmp_path / "kept")[0]
    assert verify(stored, code=True).word == "match"


ALARMS = ("specificity", "sensitivity", "balanced_accuracy", "auc", "f1")


def test_findings_that_never_occur_lift_no_mean(tmp_path: Path) -> None:
    flat = torch.from_numpy(X.reshape(-1, 8, 8))
    truth = (Findings(3)(flat) > 0).int().reshape(len(SPLITS), N, 3).numpy()
    truth[:, ::7] = 1 - truth[:, ::7]
    alone = record(Findings(3), save(tmp_path / "mine.npz", "labels", truth))
    more = np.concatenate([truth, np.zeros_like(truth[..., :2])], 2)
    other = record(Findings(5), save(tmp_path / "mine.npz", "labels", more))
    clean = [one.rungs[0].metrics[name].value for one in (alone, other) for name in ALARMS]
    np.testing.assert_allclose(clean[:5], clean[5:], atol=1e-9)
    assert np.isfinite(clean).all()
    assert other.dataset_card.absent == ("finding 3", "finding 4")
    assert "nowhere present in test, and left out of means over findings: finding 3, finding 4" in (
        other.notes
    )


def test_a_class_that_never_occurs_leaves_no_mean_undefined(tmp_path: Path) -> None:
    info = json.dumps({"classes": ["a", "b", "c", "d"]})
    truth = ids(3)
    alone = record(linear(3), save(tmp_path / "mine.npz", "labels", truth))
    bias = torch.cat([-0.5 * W[:3].sum(1), torch.tensor([-99.0])])
    module = Linear(W, bias)
    other = record(module, save(tmp_path / "mine.npz", "labels", truth, info=info))
    np.testing.assert_allclose(
        metrics(other, "balanced_accuracy", "auc", "f1"),
        metrics(alone, "balanced_accuracy", "auc", "f1"),
        atol=1e-6,
    )


# --- defects of a split are named as what they are ----------------------------------------------

NAN = X[1].copy()
NAN[0, 0, 0] = np.nan
DEFECTS: list[tuple[str, Any, str]] = [
    ("images", NAN, "expected finite images, got NaN"),
    ("images", X[1] * 300, r"expected float images in \[0,1\], got "),
    ("images", X[1].astype(np.int64), "expected uint8 or float in .* got int64"),
    ("images", X[1][:, :7], r"expected images of shape \(8, 8\), got \(7, 8\)"),
    ("images", np.zeros((N, 8, 8), np.uint8), "expected images with content"),
    ("labels", None, "expected the key '{split}_labels'"),
    ("labels", np.arange(N - 1) % 2, "expected 30 rows, one per image, got 29"),
    ("labels", np.full(N, 0.5), "got fractions such as 0.5"),
    ("labels", np.arange(N) % 2 * 2 - 1, "got only -1 and 1"),
    ("labels", np.arange(N) % 2 + 1, r"expected labels in 0\.\.1|rows"),
    ("labels", np.full(N, -1), "-1 for every image"),
    ("ids", np.array(["a"] * N), "expected one id per image, got 1 for 30"),
    ("ids", np.array(["a"]), "val_ids: expected 30 names|train_ids: expected 30 names"),
    ("patients", np.array(["p"] * 3), "_patients: expected 30 names"),
]


@pytest.mark.parametrize(("key", "value", "message"), DEFECTS)
@pytest.mark.parametrize("split", ["val", "train"])
def test_a_defect_of_a_split_is_no_missing_split(
    tmp_path: Path, split: str, key: str, value: NDArray[Any] | None, message: str
) -> None:
    info = json.dumps({"classes": ["a", "b"]})
    path = save(tmp_path / "mine.npz", "labels", ids(2), **{f"{split}_{key}": value}, info=info)
    run: Callable[[], object] = lambda: record(linear(2), path)  # noqa: E731
    if split == "train":
        if "every image" in message:
            pytest.skip("a split without labels is fitted on by no attack")
        run = lambda: record(linear(2), path, "uap", n=4)  # noqa: E731
    with pytest.raises(Exception, match=message.format(split=split)) as caught:
        run()
    assert "got none" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["val", "train"])
def test_a_missing_split_is_said_to_be_missing(tmp_path: Path, split: str) -> None:
    gone = {f"{split}_images": None, f"{split}_labels": None}
    path = save(tmp_path / "mine.npz", "labels", ids(2), **gone)
    what = "a validation split for the operating point" if split == "val" else "a training split"
    with pytest.raises(DataError, match=f"expected {what}.*, got none: add {split}_images"):
        record(linear(2), path, "fgsm" if split == "val" else "uap", n=4)


def test_what_is_left_out_is_said_on_the_command_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth = ids(2)
    truth[2, :5] = -1
    one = record(linear(2), save(tmp_path / "left_out.npz", "labels", truth))
    line = "5 of 30 images of test have no label (-1) and are not scored"
    assert one.n == N - 5
    assert line in one.notes
    assert f"left_out: {line}" in caplog.messages


def test_the_attacks_of_a_suite_that_are_for_labels_are_left_out_of_masks(tmp_path: Path) -> None:
    from robustbench_med.bench.plan import plan
    from robustbench_med.bench.suite import find_suite, override

    path = save(tmp_path / "mine.npz", "masks", MASKS, info=names(2))
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Conv2d(1, 2, 1)\n"
    )
    fields = {"datasets": [str(path)], "victims": [f"{tmp_path / 'net.py'}:make()"]}
    named = fields | {"attacks": ["deepfool"], "ladder": [0.01]}
    own, failures = plan(override(find_suite("quick"), fields | {"ladder": [0.01]}, None))
    assert not failures
    assert {case.attack.card.name for case in own} == {"fgsm", "pgd"}
    with pytest.raises(SpecError, match="got segmentation"):
        plan(override(find_suite("quick"), named, None))
