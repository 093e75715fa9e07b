"""Weights are checked before they are used; the shipped zoo is what its cards say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robustbench_med import registry, spec
from robustbench_med.cards import ModelCard
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import BenchError, ChecksumError, UnknownNameError, VictimError
from robustbench_med.models import weights
from robustbench_med.models.build import build
from robustbench_med.models.load import ZOO, describe, load_victim
from robustbench_med.models.sliding import Sliding
from robustbench_med.spec import parse
from robustbench_med.training.train import measure, scores_on_test
from tests.bench.toys import card_of, save_timm
from tests.toys import Small, grey_images

CARDS = {name: card for name, card in registry.load("models").items() if card.weights}
GREY = card_of(torch.zeros(1, 1, 32, 32), 2)
# dataset -> the least its victims reach, where a linear model is near chance (0.57)
HARD = {"isic_uda1_128": 0.6}


def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small(1, 2)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "w.safetensors"
    return path, weights.write(module(), path)


def test_weights_come_back_as_they_were_written(written: tuple[Path, str]) -> None:
    path, sha256 = written
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded_module = Small(1, 2)
    assert weights.read(loaded_module, path, sha256=sha256) == sha256
    for key, value in module().state_dict().items():
        rounded = value.half().float() if value.ndim > 1 else value
        loaded = loaded_module.state_dict()[key]
        assert loaded.dtype == value.dtype
        assert torch.equal(loaded, rounded), key
    assert weights.read(loaded_module, path) == sha256  # whatever it is


def test_matrices_are_stored_in_half_precision_and_vectors_are_not(
    written: tuple[Path, str],
) -> None:
    stored = load_file(written[0])
    assert {value.dtype for value in stored.values() if value.ndim > 1} == {torch.float16}
    assert {value.dtype for value in stored.values() if value.ndim == 1} == {torch.float32}
    assert any(key.endswith("running_var") for key in stored)
    for key, value in stored.items():
        if value.ndim < 2:
            assert torch.equal(value, module().state_dict()[key]), key


def test_a_file_in_single_precision_is_read_as_it_is(tmp_path: Path) -> None:
    save_file(module().state_dict(), tmp_path / "w.safetensors")
    loaded_module = Small(1, 2)
    weights.read(loaded_module, tmp_path / "w.safetensors")
    for key, value in module().state_dict().items():
        assert torch.equal(loaded_module.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([65504.0, 1.0], torch.float16),
        ([65536.0, 1.0], torch.float32),
        ([1e-4, 1e-9], torch.float16),  # the small one rounds to 0 beside the large one
        ([1e-6, 1.1e-6], torch.float32),
        ([1e-30, 0.0], torch.float32),
        ([torch.nan, 1.0], torch.float32),
        ([torch.inf, 1.0], torch.float32),
        ([0.0, 0.0], torch.float16),
    ],
)
def test_a_matrix_that_half_precision_cannot_hold_keeps_its_type(
    values: list[float], type_: torch.dtype
) -> None:
    value = torch.tensor([values])
    stored = weights.as_stored(value)
    assert stored.dtype == type_
    torch.testing.assert_close(stored.float(), value, rtol=2**-11, atol=2**-25, equal_nan=True)
    assert weights.as_stored(torch.zeros(0, 3)).shape == (0, 3)
    assert weights.as_stored(torch.ones(2, 2, dtype=torch.int64)).dtype == torch.int64


def test_every_flipped_byte_is_noticed_before_anything_is_loaded(written: tuple[Path, str]) -> None:
    path, sha256 = written
    content = path.read_bytes()
    loaded_module = Small(1, 2)
    before = {key: value.clone() for key, value in loaded_module.state_dict().items()}
    for at in (0, 9, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ChecksumError, match=f"expected sha256 {sha256[:12]}..., got"):
            weights.read(loaded_module, path, sha256=sha256)
    assert all(torch.equal(loaded_module.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty one"),
        (b"PK\x03\x04 a pickle", r"got a pickle of torch.save, .* save_file\(torch.load\('w.pt'\)"),
        (b"\x80\x02 an old pickle", "got a pickle of torch.save, which may run code"),
        (b"\x89HDF\r\n", "got HDF5 .Keras.: build the network in PyTorch"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "got a pointer of Git LFS: .git lfs pull",
        ),
        (b"<!DOCTYPE html>", "got a web page: download the file itself"),
        (b"\x1f\x8b\x08", "got a gzip archive: unpack it"),
        (b"\x08" + b"\0" * 20, "got: "),
    ],
)
def test_what_is_no_safetensors_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    match = rf"w\.pt: expected a safetensors file, {message}"
    with pytest.raises(VictimError, match=match) as caught:
        weights.read(module(), path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.safetensors", tmp_path):
        with pytest.raises(VictimError, match="expected a weights file at .*, got none"):
            weights.read(module(), path)


def test_a_tensor_too_few_too_many_or_of_another_shape(written: tuple[Path, str]) -> None:
    path, _ = written
    tensors = load_file(path)
    few = {key: value for key, value in tensors.items() if key != "head.1.bias"}
    for changed, message in (
        (few, "got 'head.1.bias' missing from the file"),
        (tensors | {"extra": torch.zeros(1)}, "got 'extra' not of this architecture"),
        (
            tensors | {"head.1.bias": torch.zeros(3)},
            r"expected 'head.1.bias' \(2,\), got \(3,\): check the number of classes",
        ),
    ):
        save_file(changed, path)
        with pytest.raises(VictimError, match=message):
            weights.read(module(), path)


@pytest.mark.parametrize("prefix", ["module.", "model.", "net.", "_orig_mod.", "model.net."])
def test_a_common_prefix_is_removed_and_logged(
    written: tuple[Path, str],
    prefix: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "_logged", set())
    path, _ = written
    tensors = load_file(path)
    save_file({f"{prefix}{key}": value for key, value in tensors.items()}, path)
    loaded_module = Small(1, 2)
    assert weights.read(loaded_module, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(
        torch.equal(loaded_module.state_dict()[key], value) for key, value in tensors.items()
    )
    assert f"the prefix '{prefix}' of all names is left out" in caplog.text
    save_file({f"{prefix}{k}": v for k, v in tensors.items()} | {"loss.w": torch.zeros(1)}, path)
    with pytest.raises(
        VictimError, match=f"got 1 more, such as 'loss.w': save those below '{prefix}"
    ):
        weights.read(loaded_module, path)


def test_a_shape_that_differs_says_why(tmp_path: Path) -> None:
    def network(channels: int = 1, outputs: int = 2, side: int = 4, width: int = 3) -> nn.Module:
        conv = nn.Conv2d(channels, width, 3, padding=1)
        return nn.Sequential(conv, nn.Flatten(), nn.Linear(width * side**2, outputs))

    path = tmp_path / "w.safetensors"
    for network_, message in (
        (network(outputs=5), "the file's last layer has 5 outputs, the data needs 2"),
        (network(channels=3), "the file's first layer reads 3 channels, the data has 1"),
        (network(side=8), "the file is of a network of another input size, width or depth"),
        (network(width=6), "the file is of a network of another input size, width or depth"),
    ):
        weights.write(network_, path)
        with pytest.raises(VictimError, match=message) as caught:
            weights.read(network(), path)
        assert "\n" not in str(caught.value)
    weights.write(nn.Linear(2, 2), path)
    with pytest.raises(
        VictimError, match="missing from the file and 3 more and 'bias' not of this"
    ):
        weights.read(network(), path)


def test_a_fingerprint_follows_every_value_and_name() -> None:
    plain = weights.fingerprint(module())
    assert plain == weights.fingerprint(module())
    changed = module()
    with torch.no_grad():
        next(changed.buffers())[0] += 1e-6  # a running statistic is part of the answers too
    assert weights.fingerprint(changed) != plain


# --- the zoo -------------------------------------------------------------------------------------


def test_the_zoo_has_every_family_and_every_real_set() -> None:
    synthetic = {card.name for card in registry.load("datasets").values() if card.synthetic}
    families = {card.family for card in CARDS.values() if card.dataset in synthetic}
    assert {"vgg", "resnet", "densenet", "inception", "mobilenet", "vit"} <= families
    assert {"pneumoniamnist", "mednist_64", "busi_128", "lc25000_lung_64"} <= {
        card.dataset for card in CARDS.values()
    }
    segmenters: dict[str, set[str]] = {}
    for card in CARDS.values():
        masks = registry.load("datasets")[card.dataset].task == "segmentation"
        if masks and not card.undefended:
            segmenters.setdefault(card.dataset, set()).add(card.name)
    assert {name: len(names) for name, names in segmenters.items()} == {
        "phantom_brain": 3,
        "phantom_chest_organs": 3,
        "phantom_vessels": 2,
        "phantom_volume": 2,
        "cxr_lungs_128": 2,
        "dsb2018_nuclei_128": 2,
        "hippocampus_3d": 2,
    }
    assert sum((ZOO / card.weights).stat().st_size for card in CARDS.values()) <= 72e6
    assert {path.stem for path in ZOO.glob("*.safetensors")} == set(CARDS)


@pytest.mark.parametrize("name", CARDS)
def test_a_shipped_card_and_its_weights(name: str) -> None:
    card: ModelCard = CARDS[name]
    path = ZOO / card.weights
    assert path.is_file()
    assert path.stat().st_size <= 3e6
    assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card.recipe is not None
    assert card.measured is not None
    least = 0.65 if card.undefended else HARD.get(card.dataset, 0.75)
    assert card.measured.headline[1] >= least
    assert card.measured.gradient_ms > 0
    assert card.source
    data = registry.load("datasets")[card.dataset]
    loaded = load_victim(name, data)
    assert loaded.card == card
    assert describe(name, data) == (card, loaded.sha256)
    x = torch.zeros(2, data.channels, *data.size)
    loaded.victim.check(x, data.outputs, masks=data.task == "segmentation")
    parameters = sum(p.numel() for p in loaded.victim.module.parameters())
    assert parameters == card.measured.parameters


@pytest.mark.parametrize("name", CARDS)
def test_no_recipe_swaps_left_and_right_where_they_are_classes(name: str) -> None:
    card: ModelCard = CARDS[name]
    classes = registry.load("datasets")[card.dataset].classes
    if any(side in name_ for name_ in classes for side in ("left", "right")):
        assert card.recipe is not None
        assert not {"flip", "flips"} & set(card.recipe.augment)


def test_a_retrained_victim_is_its_forebear_but_for_the_weights() -> None:
    retrained = [card for card in CARDS.values() if card.undefended]
    assert retrained
    for card in retrained:
        before = CARDS[card.undefended]
        for what in ("family", "dataset", "builder", "mean", "std", "window", "overlap"):
            assert getattr(card, what) == getattr(before, what)
        assert card.recipe is not None
        defense = spec.parse(card.recipe.defense).name
        assert card.name == f"{card.undefended}_{defense}"
        assert card.sha256 != before.sha256


def test_the_zoo_has_a_victim_of_one_logit_and_one_under_a_window() -> None:
    data = registry.load("datasets")["phantom_vessels"]
    victim = load_victim("vessels_fcn", data).victim
    assert victim(torch.rand(2, 3, 64, 64)).logits.shape == (2, 1, 64, 64)
    sliding = load_victim("hippocampus_unet", registry.load("datasets")["hippocampus_3d"]).victim
    assert isinstance(sliding.module, Sliding)
    window = CARDS["hippocampus_unet"].window
    assert window is not None
    assert sliding.module.window == window


def check_scores(name: str, data: Path | None) -> None:
    """Check that a victim's scores on the test split are those of its card."""
    card: ModelCard = CARDS[name]
    dataset = load_dataset(card.dataset, data=data)
    scores = scores_on_test(load_victim(name, dataset.card).victim, dataset)
    assert card.measured is not None
    score, value = card.measured.headline
    assert scores[score.lower().replace(" ", "_")] == pytest.approx(value, abs=0.003)
    assert scores.get("accuracy") == pytest.approx(card.measured.accuracy, abs=0.003)


def test_a_phantom_victim_measures_what_its_card_says() -> None:
    card: ModelCard = CARDS["chest_resnet"]
    dataset = load_dataset(card.dataset)
    measured = measure(load_victim("chest_resnet", dataset.card).victim, dataset)
    assert card.measured is not None
    name, value = card.measured.headline
    assert measured.headline[0] == name
    assert measured.headline[1] == pytest.approx(value, abs=0.003)
    assert measured.accuracy == pytest.approx(card.measured.accuracy, abs=0.003)
    assert measured.parameters == card.measured.parameters
    assert measured.gradient_ms > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n, c in CARDS.items() if registry.load("datasets")[c.dataset].synthetic]
)
def test_every_phantom_victim_scores_what_its_card_says(name: str) -> None:
    check_scores(name, None)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(
    "name", [n for n, c in CARDS.items() if not registry.load("datasets")[c.dataset].synthetic]
)
def test_every_real_victim_scores_what_its_card_says(name: str, real_data: Path) -> None:
    check_scores(name, real_data)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"channels": 3}, "expected channels 1, got 3 of other"),
        ({"size": (32, 32)}, r"expected size \(64, 64\), got \(32, 32\)"),
        ({"task": "multi_label"}, "expected task single_label, got multi_label"),
        ({"classes": ("a", "b", "c")}, "expected K = 2 classes, got K = 3 of other"),
    ],
)
def test_a_shipped_victim_on_other_data(changed: dict[str, object], message: str) -> None:
    data = registry.load("datasets")["phantom_chest"].model_copy(
        update={"name": "other", **changed}
    )
    with pytest.raises(VictimError, match=message) as caught:
        load_victim("chest_resnet", data)
    assert "choose a victim trained on other" in str(caught.value)


def test_damaged_weights_of_a_card(tmp_path: Path) -> None:
    card = CARDS["chest_resnet"]
    content = bytearray((ZOO / card.weights).read_bytes())
    content[-1] ^= 1
    (tmp_path / card.weights).write_bytes(content)
    data = registry.load("datasets")["phantom_chest"]
    with pytest.raises(ChecksumError, match=r"chest_resnet\.safetensors: expected sha256"):
        load_victim("chest_resnet", data, zoo=tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'chest_resnet'"):
        load_victim("chest_resnett", data)


# --- timm ----------------------------------------------------------------------------------------


def test_any_timm_model_with_a_file(tmp_path: Path) -> None:
    spec = save_timm(tmp_path / "w.safetensors")
    loaded = load_victim(spec, GREY)
    assert loaded.card.name == spec
    assert (
        loaded.card.sha256 == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    )
    assert loaded.victim(grey_images(3, side=32)).logits.shape == (3, 2)
    assert describe(spec, GREY) == (loaded.card, loaded.sha256)
    # normalised as the model was trained: three statistics folded into one for grey images
    assert loaded.victim.contract.mean == (0.5,)
    other_spec = f"{spec[:-1]}, mean=[0.25], std=[0.125])"
    other_model = load_victim(other_spec, GREY)
    assert (other_model.victim.contract.mean, other_model.victim.contract.std) == (
        (0.25,),
        (0.125,),
    )
    assert other_model.sha256 != loaded.sha256  # the contract is part of the answers
    colour = save_timm(tmp_path / "c.safetensors", channels=3)
    rgb = card_of(torch.zeros(1, 3, 32, 32), 2)
    assert load_victim(colour, rgb).victim.contract.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        (
            "timm:test_resnet",
            VictimError,
            r"expected weights='FILE.safetensors' or pretrained=True",
        ),
        ("timm:test_resnet(pretrained=False)", VictimError, "or pretrained=True"),
        ("timm:test_resnett(weights='w')", UnknownNameError, "did you mean 'test_resnet"),
        ("timm:test_resnet(weights='gone')", VictimError, "expected a weights file at gone"),
        ("timm:test_resnet(weights='W', nonsense=1)", VictimError, "nonsense"),
        ("timm:test_resnet(weights='W', num_classes=5)", VictimError, "number of classes"),
        ("timm:test_vit(weights='W')", VictimError, "expected the weights of this architecture"),
        ("timm:test_resnet(weights='W', mean=0.5)", BenchError, "mean"),
        ("timm:test_resnet(weights=5)", BenchError, "weights"),
    ],
)
def test_timm_victims_that_are_wrong(
    tmp_path: Path, spec: str, kind: type[Exception], message: str
) -> None:
    save_timm(tmp_path / "W")
    with pytest.raises(kind, match=message) as caught:
        load_victim(spec.replace("'W'", f"'{tmp_path / 'W'}'"), GREY)
    assert "\n" not in str(caught.value)


def test_a_timm_model_for_another_number_of_classes(tmp_path: Path) -> None:
    spec = save_timm(tmp_path / "w.safetensors", k=3)
    with pytest.raises(VictimError, match=r"\(2,.*\(3,.*check the number of classes"):
        load_victim(spec, GREY)


def test_builders() -> None:
    vgg = build(parse("vgg(cfg=[8, 'M', 16, 'M'])"), channels=1, outputs=3, size=(64, 64))
    assert vgg.eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 3)
    vit = build(parse("timm:test_vit"), channels=1, outputs=2, size=(32, 32))
    assert vit.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 2)
    with pytest.raises(UnknownNameError, match="expected a known builder, got 'resnet'"):
        build(parse("resnet"), channels=1, outputs=2, size=(32, 32))
