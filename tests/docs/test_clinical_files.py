"""The commands of the page on clinical files work as written, on real DICOM and NIfTI files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from robustbench_med import cli
from tests.docs.pages import CHECKOUT, blocks

PAGE = "clinical_files.md"


@pytest.fixture
def clinical() -> Path:
    """Return the folder of real clinical files, or skip."""
    named = os.environ.get("ROBUSTBENCH_MED_DATA")
    folder = (Path(named) if named else CHECKOUT.parent / "shared" / "data") / "clinical"
    if not folder.is_dir():
        pytest.skip(f"no clinical files: {folder} does not exist")
    return folder


def _run(words: list[str]) -> str:
    assert words[:3] == ["python", "-m", "robustbench_med"]
    result = CliRunner().invoke(cli.app, words[3:])
    assert result.exit_code == 0, f"{words}\n{result.output}\n{result.exception!r}"
    return result.output


def _save_unet(path: Path) -> None:
    import segmentation_models_pytorch as smp

    network = smp.Unet(encoder_name="resnet18", encoder_weights=None, in_channels=1, classes=2)
    save_file(network.state_dict(), path)


def _save_volume_net(path: Path) -> None:
    from monai.networks.nets.unet import UNet

    save_file(UNet(3, 1, 3, channels=[4, 8], strides=[2]).state_dict(), path)


def test_the_page_has_two_blocks_of_at_most_three_commands() -> None:
    found = blocks(PAGE)
    assert [len(block.commands) for block in found] == [2, 2]
    assert not any(block.language for block in found)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(
    ("block", "source", "folder", "save", "weights"),
    [
        (0, "dicom_ct_liver_seg", "ct", _save_unet, "unet.safetensors"),
        (1, "nifti_msd_hippocampus", "hippocampus", _save_volume_net, "net.safetensors"),
    ],
)
def test_clinical_files_are_attacked_as_the_page_says(
    clinical: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    source: str,
    folder: str,
    save: object,
    weights: str,
) -> None:
    shutil.copytree(clinical / source, tmp_path / folder)
    assert callable(save)
    save(tmp_path / weights)
    monkeypatch.chdir(tmp_path)
    for words in blocks(PAGE)[block].commands:
        _run(words)
    (path,) = (tmp_path / "results").rglob("record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "ok"
    texts = [p.read_text(errors="ignore") for p in (tmp_path / "results").rglob("*.*")]
    assert len(texts) > 4
    assert not any(word in text for text in texts for word in ("JANCT000", "1.3.6.1.4.1."))
