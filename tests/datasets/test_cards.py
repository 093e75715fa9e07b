"""The dataset cards: complete, and expanded by size."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustbench_med import registry
from robustbench_med.cli import app
from robustbench_med.dataset_cards import load_cards
from robustbench_med.datasets.access import BUILT, short_way, terms, way

CLASSES = {
    "pathmnist": 9,
    "chestmnist": 14,
    "dermamnist": 7,
    "octmnist": 4,
    "pneumoniamnist": 2,
    "retinamnist": 5,
    "breastmnist": 2,
    "bloodmnist": 8,
    "tissuemnist": 8,
    "organamnist": 11,
    "organcmnist": 11,
    "organsmnist": 11,
}
COLOUR = {"pathmnist", "dermamnist", "retinamnist", "bloodmnist"}
REAL = {name: card for name, card in load_cards().items() if not card.synthetic}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("side", [28, 64, 128, 224])
def test_medmnist_is_there_in_every_size(name: str, side: int) -> None:
    full = name if side == 28 else f"{name}_{side}"
    card = REAL[full]
    assert card.file == f"{full}.npz"
    assert card.url == f"https://zenodo.org/records/10519652/files/{full}.npz?download=1"
    assert card.size == (side, side)
    assert card.title.endswith(f"{side}x{side}")
    assert card.channels == (3 if name in COLOUR else 1)
    assert len(card.classes) == CLASSES[name]
    assert (card.task == "multi_label") == (name == "chestmnist")
    assert ("NC" in card.licence) == (name == "dermamnist")


def test_healthy_classes() -> None:
    normal = {name: card.normal for name, card in REAL.items() if card.normal is not None}
    plain = {
        name: index for name, index in normal.items() if not name.endswith(("_64", "_128", "_224"))
    }
    assert plain == {"octmnist": 3, "pneumoniamnist": 0, "retinamnist": 0, "breastmnist": 1}
    assert normal["busi_128"] == 2
    assert normal["isic_uda1_128"] == normal["lc25000_lung_64"] == 0
    assert "ham10000_128" not in normal
    for name, index in normal.items():
        assert 0 <= index < len(REAL[name].classes)


def test_the_registry_holds_every_card() -> None:
    for name, card in REAL.items():
        assert registry.find("datasets", name) == card


def test_checksums_are_well_formed_and_unique() -> None:
    md5 = [card.md5 for card in REAL.values() if card.url]
    assert all(re.fullmatch("[0-9a-f]{32}", digest) for digest in md5)
    by_file = {card.file: card.sha256 for card in REAL.values() if card.sha256}
    sha256 = [digest for digests in by_file.values() for digest in digests]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in sha256)
    assert len(set(md5)) == 48
    assert len(set(sha256)) == len(sha256) == 10
    for card in REAL.values():
        assert card.sha256 == by_file.get(card.file, ())


def test_each_file_has_one_card() -> None:
    files = [card.file for card in REAL.values() if card.file]
    assert len(set(files)) == len(files)


def test_real_images_have_a_checksum_licence_source_and_notes() -> None:
    for card in REAL.values():
        # scikit-learn ships the digits
        assert card.md5 or card.sha256 or card.name == "digits_28", card.name
        assert card.licence, card.name
        assert card.source, card.name
        assert card.summary, card.name
        assert card.notes, card.name
        assert len(set(card.classes)) == len(card.classes), card.name


@pytest.mark.data
def test_the_stated_sha256_are_those_of_the_folder(real: Path) -> None:
    listed = {}
    for line in (real / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        listed[name] = digest
    for card in REAL.values():
        for digest in card.sha256:
            assert listed[card.file] == digest


def test_sizes_add_to_what_a_table_shares(tmp_path: Path) -> None:
    path = tmp_path / "cards.toml"
    path.write_text(
        '[toy]\ntitle = "Toy"\nmodality = "none"\ntask = "single_label"\nclasses = ["a", "b"]\n'
        'channels = 1\nnotes = ["shared"]\n'
        '[toy.sizes]\n28 = { md5 = "x", notes = ["own"] }\n64 = {}\n'
    )
    cards = load_cards(path)
    assert list(cards) == ["toy", "toy_64"]
    assert cards["toy"].notes == ("shared", "own")
    assert cards["toy_64"].notes == ("shared",)
    assert cards["toy_64"].md5 == ""


def test_reading_cards_imports_no_heavy_library() -> None:
    code = (
        "import sys; from robustbench_med import registry; registry.load('datasets');"
        "print({'torch', 'numpy', 'timm', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_each_real_set_says_how_a_stranger_gets_it() -> None:
    page = (Path(__file__).parents[2] / "docs" / "real_data.md").read_text(encoding="utf-8")
    for name, card in REAL.items():
        if card.function or card.url:
            assert short_way(card) in ("drawn here", "downloaded when first used")
            continue
        assert card.official, name
        assert card.licence_basis, name
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"| {card.official} | {card.source} | {terms(card)} |" in row
        assert (
            (name in BUILT)
            == (f"dataset build {name}" in row)
            == (f"dataset build {name}" in way(card))
        )


def test_what_a_stranger_must_know_is_in_no_record() -> None:
    stated = REAL["busi_128"].model_dump()
    assert not {"official", "licence_basis"} & stated.keys()


def test_show_and_list_tell_how_to_get_a_set() -> None:
    shown = CliRunner().invoke(app, ["show", "busi_128"]).output
    assert "to have it: not this very file" in shown
    assert "licence is: CC BY 4.0, as MedMNIST says" in shown
    assert "used: defenses, medmnist" in shown
    shown = CliRunner().invoke(app, ["show", "hippocampus_3d"]).output
    assert "dataset build hippocampus_3d --from FOLDER` makes the very file" in shown
    listed = CliRunner().invoke(app, ["list", "datasets"], env={"COLUMNS": "250"}).output
    assert "a copy that nobody can rebuild" in listed
    assert "downloaded when first used" in listed
