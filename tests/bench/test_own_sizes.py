"""Images that keep their own sizes: each scores as among images of its size alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import robustbench_med as rm
from robustbench_med.bench import adversarial_images, store
from robustbench_med.bench.record import Stored
from robustbench_med.bench.verify.verify import verify
from robustbench_med.cli import app
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import BenchError, DataError, SpecError, VictimError
from robustbench_med.export.export import export
from robustbench_med.sized_images import SizedImages
from robustbench_med.stored_images import StoredImages, by_size, in_order, shards

SIZES = ((12, 10), (8, 14), (8, 8))
COUNT = 15  # images; their sizes alternate
KINDS = ("labels", "findings", "masks")
HEAD = """
title = "Films"
modality = "X-ray"
task = "{task}"
classes = {classes}
channels = 1
size = {size}
[source]
path = "data"
format = "{form}"
ids = "file"
[source.draw]
train = 0.0
val = 0.0
test = 1.0
"""
LABELS = {
    "labels": (
        "single_label",
        ["dark", "bright"],
        'labels = "folders"\nvalues = ["dark", "bright"]',
    ),
    "findings": (
        "multi_label",
        ["left", "right"],
        'labels = "csv"\ncsv = "table.csv"\n'
        'columns = { file = "file", findings = ["left", "right"] }',
    ),
    "masks": (
        "segmentation",
        ["background", "lesion"],
        'labels = "masks"\nmasks = "masks"\nimages = "images"',
    ),
}


class Brightness(nn.Module):
    """Two logits of the mean brightness; of findings, of each half; of masks, of each pixel."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.tensor([[[[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]]]) / 16
        padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
        bright = 20 * (nn.functional.conv2d(padded, kernel) - 0.5)
        if self.kind == "masks":
            return torch.cat([-bright, bright], 1)
        half = x.shape[-1] // 2
        left, right = (part.mean((1, 2, 3)) for part in (bright[..., :half], bright[..., half:]))
        if self.kind == "findings":
            return torch.stack([left, right], 1)
        return torch.stack([-left - right, left + right], 1)


class OneSize(nn.Module):
    """Reads images of 8 x 8 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[-0.2], [0.2]]).expand(2, 64))
            self.layer.bias.copy_(torch.tensor([6.4, -6.4]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits


def picture(number: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(number)
    level = 120 if number % 2 == 0 else 135
    values: NDArray[np.uint8] = (level + rng.integers(-40, 41, SIZES[number % 3])).astype(np.uint8)
    return values


def folder(root: Path, kind: str, sizes: tuple[tuple[int, int], ...], size: str = "native") -> Path:
    """Write the pictures of some sizes and their card file, and return its path."""
    table = ["file,left,right"]
    for number in range(COUNT):
        values = picture(number)
        if values.shape not in sizes:
            continue
        name = f"film{number:02d}.png"
        part = {"labels": ("dark", "bright")[number % 2], "masks": "images"}.get(kind, "")
        path = root / "data" / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
        table.append(f"{name},{number % 2},{number // 2 % 2}")
        if kind == "masks":
            mask = (values > 128).astype(np.uint8)
            mask[0, 0] = 1  # a region in each
            (root / "data" / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / "data" / "masks" / name)
    if kind == "findings":
        (root / "data" / "table.csv").write_text("\n".join(table) + "\n")
    task, classes, rest = LABELS[kind]
    stated = f'"{size}"' if size == "native" else size
    text = HEAD.format(task=task, classes=json.dumps(classes), size=stated, form="pictures")
    head, draw = text.split("[source.draw]")
    (root / "films.toml").write_text(f"{head}{rest}\n[source.draw]{draw}")
    return root / "films.toml"


def run(card: Path, kind: str, attack: str, **options: Any) -> Stored:  # noqa: ANN401 - any field
    fields = {"eps": "4/255,12/255", "operating_point": "argmax", "returns": "logits"} | options
    return rm.evaluate(Brightness(kind), card, attack, **fields).records[0]


def by_sample(stored: Stored) -> pd.DataFrame:
    return stored.samples.set_index(["sample", "eps"]).sort_index()


def assert_equal_tables(one: pd.DataFrame, other: pd.DataFrame) -> None:
    assert list(one.columns) == list(other.columns)
    assert list(one.index) == list(other.index)
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            assert np.array_equal(
                np.asarray(a), np.asarray(b), equal_nan=name not in ("patient",)
            ), name


@pytest.mark.parametrize(
    ("kind", "attack"),
    [
        ("labels", "pgd(steps=5)"),  # descends, with a check of inferred rows
        ("labels", "square(queries=20)"),
        ("labels", "deepfool"),
        ("findings", "pgd(steps=5)"),
        ("masks", "pgd(steps=5)"),
    ],
)
def test_mixed_sizes_score_as_each_size_alone(tmp_path: Path, kind: str, attack: str) -> None:
    mixed = run(folder(tmp_path / "mixed", kind, SIZES), kind, attack)
    alone = [
        by_sample(run(folder(tmp_path / f"one{i}", kind, (size,)), kind, attack))
        for i, size in enumerate(SIZES)
    ]
    one = pd.concat(alone).sort_index()
    assert_equal_tables(by_sample(mixed), one)
    assert 0 < one["success"].sum() < len(one)
    order = mixed.samples["sample"][:COUNT].tolist()
    assert order == sorted(order, key=lambda name: (Path(name).parent, name))
    record = mixed.record
    assert record.audit is not None
    assert record.audit.over_budget == 0
    assert record.dataset_card.sizes == ((12, 10), (8, 14), (8, 8))
    assert any(
        "keep their own size, 3 different sizes from 8x8 to 12x10" in n for n in record.notes
    )


class Rounding(Brightness):
    """Its gradients are 0: where they look suspicious, an attack by labels is run too."""

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401 - as the module it is
        return super().forward((x * 20).round() / 20)


def test_labels_are_asked_of_images_of_several_sizes(tmp_path: Path) -> None:
    card = folder(tmp_path, "labels", SIZES)
    found = rm.evaluate(
        Rounding("labels"), str(card), "pgd(steps=5)", eps=[0.01, 0.03], operating_point="argmax"
    )
    names = [check.name for check in found.records[0].record.checks]
    assert "labels_beat_attack" in names


def test_a_fixed_size_still_resizes_and_says_so(tmp_path: Path) -> None:
    record = run(folder(tmp_path, "labels", SIZES, "[8, 8]"), "labels", "fgsm").record
    assert record.dataset_card.sizes == ()
    assert "sizes" not in record.dataset_card.model_dump()
    assert any("were resized from 8x14 to 12x10 to 8x8" in note for note in record.notes)


def test_volumes_keep_their_sizes(tmp_path: Path) -> None:
    class Voxels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bright = 20 * (x - 0.5)
            return torch.cat([-bright, bright], 1)

    sizes = [(6, 7, 8), (8, 7, 7)]
    for number, size in enumerate(sizes):
        values = np.random.default_rng(number).integers(100, 156, size).astype(np.uint8)
        for name, volume in (("images", values), ("masks", (values > 127).astype(np.uint8))):
            path = tmp_path / "data" / name / f"{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 2, 3, 1])), path)
    done = CliRunner().invoke(
        app,
        ["inspect", str(tmp_path / "data"), "--size", "native", "--out", str(tmp_path / "m.toml")],
    )
    assert done.exit_code == 0, done.output
    assert 'size = "native"' in (tmp_path / "m.toml").read_text()
    stored = rm.evaluate(
        Voxels(),
        tmp_path / "m.toml",
        "fgsm",
        eps=8 / 255,
        operating_point="argmax",
        returns="logits",
    ).records[0]
    assert stored.record.dataset_card.spacing == (1, 2, 3)
    hd95 = stored.record.rungs[0].metrics
    assert hd95["dice"].value == 1
    assert stored.record.rungs[1].metrics["dice"].value < 1


@pytest.mark.parametrize("kind", ["labels", "masks"])
def test_saved_images_have_their_sizes_and_are_verified_and_exported(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path, kind, SIZES)
    code = Path(__file__).read_text()
    start = code.index("class Brightness"), code.index("class OneSize")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import Tensor, nn\n"
        + code[start[0] : start[1]]
        + f"\ndef make():\n    return Brightness({kind!r})\n"
    )
    words = "run quick --dataset films.toml --model net.py:make --attack pgd(steps=5) --eps 12/255"
    words += " --operating-point argmax --save-images --results results --shard 2"
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    (stored,), _ = store.read_all(tmp_path / "results" / "custom")
    saved = adversarial_images.read(Path(stored.folder), stored.record.images)
    assert stored.record.examples
    assert saved.sizes is not None
    assert set(map(tuple, saved.sizes.tolist())) == set(SIZES)
    for images in (True, False):
        assert verify(stored, images=images, code=True).word == "match"
    manifest = export(stored, "png", tmp_path / "out", code=True)
    assert manifest.written == len(saved.images)
    assert manifest.succeed > 0
    shapes = set()
    for image in manifest.images:
        with Image.open(tmp_path / "out" / image.files[0]) as written:
            shapes.add(written.size[::-1])
    assert shapes == set(SIZES)


def test_a_model_of_one_size_is_refused_or_gets_a_resized_image(tmp_path: Path) -> None:
    card = folder(tmp_path, "labels", SIZES)
    options: dict[str, Any] = {"operating_point": "argmax", "returns": "logits", "eps": 12 / 255}
    with pytest.raises(
        VictimError, match=r"\(1, 12, 10\) images, .* needs its own size, as in --prep"
    ):
        rm.evaluate(OneSize(), card, "fgsm", **options)
    resized = rm.evaluate(OneSize(), card, "pgd(steps=3)", preprocess="resize(8, 8)", **options)
    assert resized.records[0].record.dataset_card.sizes == SIZES[:2] + SIZES[2:]
    shorter = rm.evaluate(
        OneSize(), card, "pgd(steps=3)", preprocess="resize(10), crop(8)", **options
    )
    assert shorter.records[0].record.audit is not None
    assert shorter.records[0].record.audit.over_budget == 0


def test_masks_come_back_at_the_size_of_each_image(tmp_path: Path) -> None:
    card = folder(tmp_path, "masks", SIZES)
    stored = run(card, "masks", "fgsm", preprocess="resize(16, 16)")
    assert 0.5 < stored.record.rungs[0].metrics["dice"].value < 1


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("labels", {"attack": "uap"}, "uap makes one perturbation for all images"),
        ("labels", {"defense": "mahalanobis"}, "is fitted on images of one size"),
        ("masks", {"objective": "targeted(mask='disc', label=1)"}, "a target is drawn in masks"),
    ],
)
def test_what_needs_one_size_is_refused(
    tmp_path: Path, kind: str, words: dict[str, str], message: str
) -> None:
    card = folder(tmp_path, kind, SIZES)
    text = card.read_text().replace("train = 0.0", "train = 0.3").replace("val = 0.0", "val = 0.3")
    text = text.replace("test = 1.0", "test = 0.4")
    card.write_text(text)
    attack = words.pop("attack", "fgsm")
    with pytest.raises(SpecError, match=message):
        run(card, kind, attack, **words)


def test_a_shipped_victim_and_training_need_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    card = folder(tmp_path, "labels", SIZES)
    fields: dict[str, Any] = {"eps": 4 / 255, "operating_point": "argmax"}
    with pytest.raises(VictimError, match=r"size \(64, 64\), got several sizes .*resize\(64, 64\)"):
        rm.evaluate("chest_resnet", card, "fgsm", **fields)
    steps = "resize(64, 64)"
    stored = rm.evaluate("chest_resnet", card, "fgsm", preprocess=steps, **fields).records[0]
    assert stored.record.n == COUNT
    words = ["train", "--dataset", "films.toml", "--model", "timm:resnet18", "--out", "out"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, SpecError)
    assert "expected images of one size to train on" in str(done.exception)


def test_one_tensor_of_several_sizes_is_refused(tmp_path: Path) -> None:
    card = folder(tmp_path, "labels", SIZES)
    with pytest.raises(SpecError, match="evaluate takes them"):
        rm.attack(Brightness("labels"), card, "fgsm", eps=0.1, operating_point="argmax")
    with pytest.raises(DataError, match="as a tensor holds them"):
        load_dataset(card).batch("test")


def test_a_changed_size_changes_the_data(tmp_path: Path) -> None:
    known = load_dataset(folder(tmp_path / "a", "labels", SIZES)).arrays("test")
    assert known.fingerprint() == known.fingerprint()
    assert isinstance(known.images, SizedImages)
    turned = folder(tmp_path / "b", "labels", SIZES)
    path = tmp_path / "b" / "data" / "dark" / "film00.png"
    Image.fromarray(picture(0).reshape(10, 12)).save(path)
    assert load_dataset(turned).arrays("test").fingerprint() != known.fingerprint()


def test_a_card_states_one_size_or_that_images_keep_theirs(tmp_path: Path) -> None:
    card = folder(tmp_path, "labels", SIZES, '"any"')
    with pytest.raises(BenchError, match=r'or size = "native", where each keeps its own, got'):
        load_dataset(card)


def test_rows_are_read_by_size() -> None:
    parts = tuple(np.full((2, *size), size[0], np.uint8) for size in SIZES)
    part = np.array([2, 0, 1, 0, 2, 1])
    images = SizedImages(parts, part, np.array([0, 0, 0, 1, 1, 1]))
    x: Any = StoredImages(images, np.arange(6))
    assert x.shape == (6, 1, 12, 10)
    assert [tuple(chunk.shape) for chunk in x.split(4)] == [
        (1, 1, *SIZES[which]) for which in part.tolist()
    ]
    with pytest.raises(ValueError, match="of one size, got several"):
        x[:]
    rows = [positions for positions, _ in by_size(torch.arange(6), x)]
    assert [each.tolist() for each in rows] == [[1, 3], [2, 5], [0, 4]]
    assert [len(piece) for piece in shards(torch.arange(6), x, 1)] == [1] * 6
    values = [torch.ones(2, *size) * i for i, (_, size) in enumerate(by_size(torch.arange(6), x))]
    whole = in_order(values, rows)
    assert whole.shape == (6, 12, 14)
    assert whole[:, 0, 0].tolist() == [2, 0, 1, 0, 2, 1]
    assert float(whole[0, 8:].abs().max()) == 0
    assert x.select(torch.tensor([1, 3])).shape == (2, 1, 12, 10)
