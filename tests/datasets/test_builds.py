"""Building the file of a named dataset from its official download."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from robustbench_med import cli, registry
from robustbench_med.cards import DatasetCard
from robustbench_med.datasets import builds
from robustbench_med.datasets.access import BUILT
from robustbench_med.datasets.builds import hippocampus
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import BenchError, ChecksumError, DataError

NAME = "hippocampus_3d"
REAL = Path(os.environ.get("ROBUSTBENCH_MED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def save(path: Path, volume: Any) -> None:  # noqa: ANN401
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a download of three small volumes, with a recipe and a card that name them."""
    rng = np.random.default_rng(0)
    names = {split: [f"{split}.nii.gz"] for split in ("train", "val", "test")}
    recipe = {"info": '{"name": "planted"}', "ids": names, "size": [6, 8, 6]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    monkeypatch.setattr(hippocampus, "_RECIPE", tmp_path / "recipe.json")
    folder = tmp_path / "Task04"
    for (name,) in names.values():
        save(folder / "imagesTr" / name, rng.integers(0, 900, (5, 7, 4)).astype(np.float32))
        save(folder / "labelsTr" / name, rng.integers(0, 3, (5, 7, 4)).astype(np.uint8))
    digest = hashlib.sha256(builds.packed(builds.BUILDS[NAME](folder))).hexdigest()
    card: DatasetCard = registry.find("datasets", NAME)
    changed = card.model_copy(update={"sha256": (digest,)})
    monkeypatch.setattr(registry, "find", lambda *_: changed)
    return folder


def test_a_build_is_written_where_its_checksum_is_the_card_s(planted: Path, tmp_path: Path) -> None:
    path = builds.build(NAME, planted, tmp_path / "out")
    assert path == tmp_path / "out" / "hippocampus_3d.npz"
    with np.load(path) as arrays:
        assert arrays.files[-1] == "info"
        image, mask = arrays["val_images"][0], arrays["val_masks"][0]
        assert list(arrays["val_ids"]) == ["val.nii.gz"]
    x = nibabel.load(planted / "imagesTr" / "val.nii.gz").get_fdata()  # type: ignore[attr-defined]
    top = np.percentile(x, 99.5)
    expected = np.zeros((6, 8, 6))
    expected[:5, :7, 1:5] = np.round(np.minimum(x / top, 1) * 255)  # 0, 0 and 1 voxels before
    np.testing.assert_array_equal(image, expected)
    assert mask.dtype == np.uint8
    assert mask[:, 7].sum() == mask[5].sum() == 0
    # another value anywhere is not this dataset, and is not written
    save(planted / "labelsTr" / "val.nii.gz", np.zeros((5, 7, 4), np.uint8))
    with pytest.raises(ChecksumError, match=r"expected sha256 \w{12}\.\.\., got \w{12}\.\.\.: the"):
        builds.build(NAME, planted, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_download_that_lacks_or_damages_a_volume_is_one_line(
    planted: Path, tmp_path: Path
) -> None:
    (planted / "labelsTr" / "test.nii.gz").write_bytes(b"no volume")
    with pytest.raises(
        DataError, match=r"labelsTr/test\.nii\.gz: expected a NIfTI volume"
    ) as caught:
        builds.build(NAME, planted, tmp_path)
    assert "\n" not in str(caught.value)
    (planted / "imagesTr" / "train.nii.gz").unlink()
    with pytest.raises(DataError, match=r"expected imagesTr/train\.nii\.gz in .*is it Task04"):
        builds.build(NAME, planted, tmp_path)
    save(planted / "imagesTr" / "train.nii.gz", np.ones((9, 7, 4), np.float32))
    with pytest.raises(DataError, match=r"expected a volume within \(6, 8, 6\), got \(9, 7, 4\)"):
        builds.build(NAME, planted, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("busi_128", "steps that nobody recorded: Al-Dhabyani et al."),
        ("phantom_chest", "that is drawn: it needs no file"),
        ("breastmnist_64", "whose official file is used as it is: https://"),
        ("hipocampus_3d", "did you mean 'hippocampus_3d'"),
    ],
)
def test_what_cannot_be_built_says_why(name: str, message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["dataset", "build", name, "--from", str(tmp_path)])
    assert isinstance(result.exception, BenchError)
    assert message in str(result.exception)


def test_a_missing_file_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path))
    monkeypatch.delenv("ROBUSTBENCH_MED_DATA", raising=False)
    assert tuple(builds.BUILDS) == BUILT
    with pytest.raises(DataError, match="`dataset build hippocampus_3d --from FOLDER` makes it"):
        load_dataset(NAME)
    with pytest.raises(DataError, match="its images come from Al-Dhabyani et al"):
        load_dataset("busi_128")


@pytest.mark.data
def test_the_recipe_gives_the_very_voxels_of_the_real_file() -> None:
    """Eight of its volumes are at hand as the official NIfTI files."""
    folder = REAL / "clinical" / "nifti_msd_hippocampus"
    if not (REAL / "hippocampus_3d.npz").is_file() or not folder.is_dir():
        pytest.skip(f"no real images in {REAL}")
    with np.load(REAL / "hippocampus_3d.npz") as file:
        arrays = {key: file[key] for key in file.files}
    # the file is these arrays to the byte
    digest = hashlib.sha256(builds.packed(arrays)).hexdigest()
    assert digest in registry.find("datasets", NAME).sha256
    recipe = json.loads(hippocampus._RECIPE.read_text())
    assert recipe["info"] == str(arrays["info"])
    assert all(recipe["ids"][s] == list(arrays[f"{s}_ids"]) for s in ("train", "val", "test"))
    size, compared = (48, 64, 48), 0
    for split, names in recipe["ids"].items():
        for row, name in enumerate(names):
            if (folder / "images" / name).is_file():
                x, y = (hippocampus._read(folder / kind / name) for kind in ("images", "labels"))
                image = hippocampus.padded(hippocampus.grey(x), size)
                np.testing.assert_array_equal(image, arrays[f"{split}_images"][row])
                mask = hippocampus.padded(y.astype(np.uint8), size)
                np.testing.assert_array_equal(mask, arrays[f"{split}_masks"][row])
                compared += 1
    assert compared == 8
