"""Our objects under MAITE's own checks and tasks, and its objects under ours."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import robustbench_med as rm
from robustbench_med.datasets.dataset import SplitName
from robustbench_med.errors import BenchError, DataError, SpecError
from robustbench_med.maite import (
    MaiteAttack,
    MaiteDataset,
    MaiteMetrics,
    MaiteModel,
    MaiteModule,
    from_augmentation,
    from_dataset,
)
from tests.bench.toys import dataset_of, save_npz
from tests.docs.pages import blocks

maite = pytest.importorskip("maite")
ROOT = Path(__file__).parents[1]
SPLITS: tuple[SplitName, ...] = ("val", "test")
OURS = {"Dataset", "Model", "Augmentation", "Metric"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401
    return rm.load_dataset(save_npz(tmp_path_factory.mktemp("data") / "mine.npz", n=16))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2))


def test_entry_points_have_the_full_names_of_the_protocols() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    groups = {group: names for group, names in points.items() if group.startswith("maite.")}
    assert {group.rpartition(".")[2] for group in groups} == OURS
    for group, names in groups.items():
        module, _, protocol = group.rpartition(".")
        assert hasattr(importlib.import_module(module), protocol)
        for point in names.values():
            home, _, name = point.partition(":")
            assert isinstance(getattr(importlib.import_module(home), name), type)


def test_spotcheck_passes_through_a_whole_evaluation(data: Any, net: nn.Module) -> None:  # noqa: ANN401
    from maite.protocols import image_classification as ic
    from maite.spotcheck import SpotcheckError, spotcheck_component
    from maite.tasks import evaluate

    ours = {
        ic.Dataset: MaiteDataset(data),
        ic.Model: MaiteModel(net, data),
        ic.Augmentation: MaiteAttack("pgd(steps=3)", net, data, eps="8/255"),
        ic.Metric: MaiteMetrics(data),
    }
    checked: dict[Any, Any] = {}
    for protocol, component in ours.items():
        assert isinstance(component, protocol)
        checked[protocol] = spotcheck_component(protocol)(component)
    parts = {
        "model": checked[ic.Model],
        "dataset": checked[ic.Dataset],
        "metric": checked[ic.Metric],
        "batch_size": 5,
    }
    clean, _, _ = evaluate(**parts)
    attacked, _, _ = evaluate(**parts, augmentation=checked[ic.Augmentation])
    # the numbers are those of our own bench
    found = rm.evaluate(net, data, "pgd(steps=3)", eps="8/255", operating_point="argmax")
    for computed, estimate in ((clean, found.clean_interval), (attacked, found.interval)):
        got = [computed[f"accuracy{end}"] for end in ("", "_low", "_high")]
        assert got == pytest.approx([estimate.value, estimate.low, estimate.high])
    assert attacked["accuracy"] < clean["accuracy"]

    # a check that finds nothing wrong anywhere would prove nothing
    class Flat(MaiteModel):
        def __call__(self, batch_input: Any, /) -> Any:  # noqa: ANN401
            return [np.zeros((1, 2)) for _ in batch_input]

    flat: Any = Flat(net, data)
    wrong = spotcheck_component(ic.Model)(flat)  # type: ignore[type-abstract]
    with pytest.raises(SpotcheckError):
        wrong([np.zeros((1, 32, 32), np.float32)])


def test_the_size_of_a_batch_changes_no_attacked_image(data: Any, net: nn.Module) -> None:  # noqa: ANN401
    images = MaiteDataset(data)
    augmentation = MaiteAttack("pgd(steps=3)", net, data, eps=4 / 255)
    rows = [images[i] for i in range(6)]
    columns: Any = tuple(zip(*rows, strict=True))
    z, targets, about = augmentation(columns)
    assert targets is columns[1]
    assert about[0] == {**columns[2][0], "attack": augmentation.metadata["id"]}
    images_, targets_, about_ = columns
    alone, _, _ = augmentation((images_[2:3], targets_[2:3], about_[2:3]))
    np.testing.assert_array_equal(alone[0], z[2])
    change = np.abs(np.stack(z) - np.stack(columns[0]))
    assert 0 < change.max() <= 4 / 255 + 1e-6


def test_a_dataset_comes_back_as_it_was(data: Any, net: nn.Module) -> None:  # noqa: ANN401
    splits: dict[str, Any] = {split: MaiteDataset(data, split) for split in SPLITS}
    back = from_dataset(splits, name="mine")
    for split in SPLITS:
        before, after = data.batch(split), back.batch(split)
        assert torch.equal(before.x, after.x)
        assert torch.equal(before.y, after.y)
        assert list(before.ids) == list(after.ids)
        assert after.patients is not None
        assert list(before.patients) == list(after.patients)
    assert back.card.classes == data.card.classes
    was, now = (rm.evaluate(net, d, "fgsm", eps="2/255") for d in (data, back))
    assert was.interval == now.interval
    with pytest.raises(BenchError, match="expected a MAITE dataset for train, got none"):
        back.arrays("train")


def test_a_model_of_maite_is_attacked_by_queries(data: Any, net: nn.Module) -> None:  # noqa: ANN401
    module = MaiteModule(MaiteModel(net, data))
    words: dict[str, Any] = {"eps": "8/255", "operating_point": "argmax"}
    found, own = (rm.evaluate(m, data, "square(queries=30)", **words) for m in (module, net))
    assert found.clean == own.clean
    assert found.accuracy <= found.clean
    assert found.records[0].record.model_card.queries_only
    with pytest.raises(BenchError, match="quer"):
        rm.evaluate(module, data, "pgd(steps=3)", eps="8/255")


class Rows:
    """A MAITE Dataset made of lists."""

    def __init__(self, images: list[Any], targets: list[Any]) -> None:
        self.rows = list(zip(images, targets, strict=True))
        self.metadata = {"id": "rows"}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> tuple[Any, Any, dict[str, Any]]:
        return (*self.rows[index], {"id": index})


IMAGE = np.linspace(0, 1, 3 * 8 * 8).reshape(3, 8, 8)


def test_colours_and_findings_are_taken() -> None:
    made = from_dataset({"test": Rows([IMAGE, IMAGE], [[1, 1, 0], [0, 0, 0]])})
    assert (made.card.task, made.card.channels, made.card.size) == ("multi_label", 3, (8, 8))
    batch = made.batch("test")
    assert torch.allclose(batch.x[0], torch.from_numpy(IMAGE).float())
    assert batch.y.tolist() == [[1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "expected a MAITE dataset for a split, got none"),
        ({"fit": Rows([IMAGE], [[1, 0]])}, "expected splits train, val and test, got 'fit'"),
        ({"test": Rows([], [])}, "expected images, got an empty dataset"),
        ({"test": Rows([IMAGE, IMAGE[:1]], [[1, 0]] * 2)}, r"images of one shape \(c, h, w\)"),
        ({"test": Rows([IMAGE[0]], [[1, 0]])}, r"images of one shape \(c, h, w\)"),
        ({"test": Rows([IMAGE], [[0.5, 0.5]])}, "got fractions such as 0.5"),
        ({"test": Rows([IMAGE], [1])}, r"targets of one shape \(k,\)"),
    ],
)
def test_a_dataset_of_another_form_is_one_line(splits: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_dataset(splits)


def test_what_maite_has_no_protocol_for_is_said(data: Any) -> None:  # noqa: ANN401
    with pytest.raises(SpecError, match="which MAITE has a protocol for, got segmentation"):
        MaiteDataset("phantom_brain")
    with pytest.raises(IndexError, match="expected an index in 0..15, got 16"):
        MaiteDataset(data)[16]
    with pytest.raises(DataError, match="expected predictions before compute"):
        MaiteMetrics(data).compute()


class Brighter:
    """An augmentation that adds a grey, or draws it from the generators that all share."""

    metadata = {"id": "brighter"}  # noqa: RUF012 - as MAITE's protocols have it

    def __init__(self, by: float | None = 0.1, change: Any = None) -> None:  # noqa: ANN401
        self.by, self.change = by, change

    def __call__(self, batch: Any, /) -> Any:  # noqa: ANN401
        images, targets, about = batch
        if self.change is not None:
            return self.change(images, targets, about)
        by = [np.random.rand() * 0.2 if self.by is None else self.by for _ in images]  # noqa: NPY002
        return [image + np.float32(b) for image, b in zip(images, by, strict=True)], targets, about


def test_an_augmentation_succeeds_at_radii_from_its_own_change_on() -> None:
    """Of a model that thresholds the mean: known which images cross, and at which radius."""
    x = torch.tensor([0.35, 0.45, 0.2, 0.7]).view(4, 1, 1, 1).expand(4, 1, 4, 4).clone()
    x[..., ::2] += 0.02  # no image is one value, and the means stay as they are
    x[..., 1::2] -= 0.02

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = 40 * (x.flatten(1).mean(1, keepdim=True) - 0.5)
            return torch.cat([-z, z], 1)

    plain = dataset_of(x, torch.tensor([0, 0, 0, 1]), 2)
    with from_augmentation(Brighter(0.1), name="brighter"):
        found = rm.evaluate(
            Mean(), plain, ["brighter"], eps=[0.05, 0.1 + 1e-6], operating_point="argmax"
        )
    record = found.records[0]
    assert found.at(0.05).value == 1  # its change is larger than the radius
    assert found.at(0.1 + 1e-6).value == 0.75  # of the images, only that of 0.45 crosses 0.5
    distances = record.samples.set_index("sample")["distance"].groupby(level=0).first()
    assert distances["s001"] == pytest.approx(0.1, abs=1e-6)
    assert np.isinf(distances.drop("s001")).all()
    assert record.record.case.threat == "query"
    assert record.record.attack_card.schedule == "distance"
    with pytest.raises(SpecError, match="expected an Augmentation, which is callable"):
        from_augmentation(nn.Flatten(), name="brighter")


def test_random_augmentations_draw_by_image(data: Any, net: nn.Module, tmp_path: Path) -> None:  # noqa: ANN401
    words: dict[str, Any] = {"eps": "60/255", "operating_point": "argmax"}
    state = np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    with from_augmentation(Brighter(None), name="brighter"):
        all_, few = (rm.evaluate(net, data, "brighter", n=n, **words) for n in (None, 5))
    assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[index] # noqa: NPY002
    columns = ["sample", "eps", "linf", "distance"]
    both = all_.samples[columns].merge(few.samples[columns], on=["sample", "eps"])
    assert len(both) == 10
    pd.testing.assert_series_equal(both["distance_x"], both["distance_y"], check_names=False)
    (tmp_path / "mine.py").write_text(
        "class Flip:\n    metadata = {'id': 'flip'}\n    def __call__(self, batch):\n"
        "        return [i[:, ::-1] for i in batch[0]], batch[1], batch[2]\nflip = Flip()\n"
    )
    found = rm.evaluate(net, data, f"{tmp_path / 'mine.py'}:flip", **words)
    assert found.records[0].record.case.attack_sha256
    assert found.records[0].record.attack_card.title == "flip"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, a: (x, [1 - t for t in y], a), "an augmentation that keeps the targets"),
        (
            lambda x, y, a: ([i[:, :-1] for i in x], y, a),
            "expected finite floats in .0,1. of shape",
        ),
        (lambda x, y, a: ([np.uint8(255 * i) for i in x], y, a), "got uint8 of shape"),
        (
            lambda x, y, a: (x * 2, y * 2, a * 2),
            "expected 1 image of the augmentation for 1, got 2",
        ),
    ],
)
def test_what_an_augmentation_may_not_do(
    change: Any,  # noqa: ANN401
    message: str,
    data: Any,  # noqa: ANN401
    net: nn.Module,
) -> None:
    with (
        from_augmentation(Brighter(change=change), name="brighter"),
        pytest.raises(BenchError, match=message),
    ):
        rm.evaluate(net, data, "brighter", eps="8/255", operating_point="argmax")


def test_images_of_an_augmentation_outside_the_range_are_flagged(
    data: Any,  # noqa: ANN401
    net: nn.Module,
) -> None:
    with from_augmentation(Brighter(5.0), name="brighter"):
        found = rm.evaluate(net, data, "brighter", eps=0.9, operating_point="argmax")
    assert found.accuracy == found.clean  # a change of 5 is in no ball of 0.9


class Counts:
    """A metric that counts, and knows whether it was reset."""

    metadata = {"id": "counts"}  # noqa: RUF012

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def reset(self) -> None:
        self.rows = []

    def update(self, predictions: Any, targets: Any, about: Any, /) -> None:  # noqa: ANN401
        self.rows += list(zip(predictions, targets, about, strict=True))

    def compute(self) -> dict[str, Any]:
        right = [p.argmax() == t.argmax() for p, t, _ in self.rows]
        return {"right": torch.tensor(float(np.mean(right))), "n": len(self.rows)}


def test_metrics_of_maite_stand_beside_ours(data: Any, net: nn.Module) -> None:  # noqa: ANN401
    ours = MaiteMetrics(data)
    found = rm.evaluate(
        net,
        data,
        ["fgsm", "noise"],
        eps=["2/255", "8/255"],
        operating_point="argmax",
        metrics=[Counts(), ours],
    )
    table = found.table()
    for attack in ("worst_case", "fgsm", "noise"):
        assert list(table[attack]["counts.right"]) == pytest.approx(list(table[attack]["value"]))
        assert list(table[attack]["counts.n"]) == [16, 16, 16]
        # ours in their form: the same number, with the ends of the same interval
        for key, field in (("accuracy", "value"), ("accuracy_low", "low")):
            got = list(table[attack][f"{ours.metadata['id']}.{key}"])
            assert got == pytest.approx(list(table[attack][field]), abs=1e-6)
    assert table["fgsm"]["counts.right"].iloc[-1] < table["fgsm"]["counts.right"].iloc[0]
    with pytest.raises(SpecError, match="expected a MAITE Metric with reset, update and compute"):
        rm.evaluate(net, data, "fgsm", eps="2/255", metrics=[object()])

    class Odd(Counts):
        def compute(self) -> dict[str, Any]:
            return {"matrix": np.zeros((2, 2))}

    odd = rm.evaluate(net, data, "noise", eps="2/255", n=4, metrics=[Odd()])
    with pytest.raises(SpecError, match="metric counts: expected a number for each key"):
        odd.table()


@pytest.mark.slow
def test_the_page_runs_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("maite.md")[:1]
    exec(compile(block.text, "maite.md", "exec"), {})  # noqa: S102 - our own page
    clean, attacked, low, high = map(float, capsys.readouterr().out.split()[-4:])
    assert low <= attacked <= high
    assert attacked < clean
