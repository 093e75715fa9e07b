"""A user's own segmentation model, built by smp, MONAI or us, with a weights file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from robustbench_med import registry
from robustbench_med.bench.transfer import trained_on
from robustbench_med.errors import BenchError, UnknownNameError, VictimError
from robustbench_med.models import weights
from robustbench_med.models.build import build
from robustbench_med.models.load import describe, load_victim
from robustbench_med.models.source import resolve_model
from robustbench_med.spec import Spec, parse
from tests.bench.toys import card_of

MASKS = card_of(torch.zeros(1, 3, 32, 32), 2, task="segmentation")
VOLUMES = card_of(torch.zeros(1, 1, 16, 16, 16), 3, task="segmentation")
SMP = (
    "smp:Unet(encoder_name='tu-resnet10t', encoder_depth=3, decoder_channels=[8, 8, 8],"
    " channels=[8, 8, 8, 8], stem_width=8)"
)
MONAI = "monai:UNet(channels=[4, 8], strides=[2])"
VNET = "vnet(width=4, convs=[1, 1])"


def saved(path: Path, text: str, data: object = MASKS, *, outputs: int | None = None) -> str:
    """Write fresh weights of a spec and return the spec of a victim with them."""
    from robustbench_med.cards import DatasetCard

    assert isinstance(data, DatasetCard)
    spec = parse(text)
    module = build(
        spec,
        channels=data.channels,
        outputs=outputs or len(data.classes),
        size=data.size,
    )
    weights.write(module, path)
    return str(Spec(spec.name, {**spec.parameters, "weights": str(path)}))


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (SMP, MASKS),
        (MONAI, MASKS),
        (MONAI, VOLUMES),
        ("fcn(widths=[4, 8])", MASKS),
        ("segnet(widths=[4, 8])", VOLUMES),
        (VNET, VOLUMES),
    ],
)
def test_any_network_with_a_file(tmp_path: Path, text: str, data: object) -> None:
    from robustbench_med.cards import DatasetCard

    assert isinstance(data, DatasetCard)
    spec = saved(tmp_path / "w", text, data)
    loaded = load_victim(spec, data)
    assert loaded.card.name == spec
    assert loaded.card.sha256 == hashlib.sha256((tmp_path / "w").read_bytes()).hexdigest()
    x = torch.rand(2, data.channels, *data.size)
    assert loaded.victim(x).logits.shape == (2, len(data.classes), *data.size)
    loaded.victim.check(x, data.outputs, masks=True)
    assert describe(spec, data) == (loaded.card, loaded.sha256)
    assert trained_on(resolve_model(spec), data) == data
    normalised = load_victim(f"{spec[:-1]}, mean=[0.5], std=[0.25])", data)
    assert normalised.sha256 != loaded.sha256
    # its file is what counts: other weights, other answers, another hash
    torch.manual_seed(1)
    other_model = load_victim(saved(tmp_path / "v", text, data), data)
    assert other_model.sha256 != loaded.sha256
    assert not torch.equal(other_model.victim.logits(x), loaded.victim.logits(x))


def test_one_logit_answers_for_two_classes_alone(tmp_path: Path) -> None:
    spec = saved(tmp_path / "w", f"{MONAI[:-1]}, out_channels=1)")
    card, _ = describe(spec, MASKS)
    assert "out_channels=1" in card.builder
    three = MASKS.model_copy(update={"classes": ("a", "b", "c")})
    with pytest.raises(VictimError, match="expected 3 logits at every pixel.* got outputs"):
        describe(spec, three)


@pytest.mark.parametrize(
    ("text", "changed", "message"),
    [
        # weights of two classes for data of three
        (SMP, {"classes": ("a", "b", "c")}, "check the number of classes and channels"),
        (MONAI, {"channels": 1}, "check the number of classes and channels"),
        # asked for as they are, they answer too few
        (f"{SMP[:-1]}, classes=2)", {"classes": ("a", "b", "c")}, "expected 3 logits at every"),
        ("segnet(widths=[4, 8], outputs=2)", {"classes": ("a", "b", "c")}, "expected 3 logits"),
        # one halving of 33 pixels
        (VNET, {"size": (33, 33)}, "expected a model that reads .* images, got: "),
        (MONAI, {"size": (16, 16, 16)}, r"expected 'model.*check the number"),
        # labels, not masks
        (MONAI, {"task": "single_label"}, r"expected 1 or 2 logits for this data, got outputs \(2"),
        ("fcn(widths=[4, 8])", {"task": "single_label"}, "or choose data with masks"),
    ],
)
def test_models_that_do_not_fit_the_data(
    tmp_path: Path, text: str, changed: dict[str, object], message: str
) -> None:
    spec = saved(tmp_path / "w", text)
    describe(spec, MASKS)  # fits what it was made for
    with pytest.raises(VictimError, match=message) as caught:
        describe(spec, MASKS.model_copy(update=changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        (SMP, VictimError, r"expected weights='FILE.safetensors', got smp:Unet"),
        ("smp:Unet(pretrained=True)", VictimError, "expected weights='FILE.safetensors', got"),
        ("monai:UNet(weights=3)", VictimError, "expected weights='FILE.safetensors', got 3"),
        ("segnet(weights='gone')", VictimError, "expected a weights file at gone, got none"),
        ("segnett(weights='gone')", UnknownNameError, "did you mean 'segnet'"),
        ("smp:UNet3(weights='gone')", UnknownNameError, "expected a known smp network"),
        ("smp:Unet(weights='gone', encoder_weights='imagenet')", VictimError, "no encoder_weights"),
        ("segnet", UnknownNameError, "expected a known model, got 'segnet'"),
    ],
)
def test_specs_that_are_wrong(spec: str, kind: type[BenchError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        load_victim(spec, MASKS)
    assert "\n" not in str(caught.value)


def test_a_shipped_classifier_does_not_read_masks() -> None:
    data = registry.load("datasets")["phantom_chest"].model_copy(
        update={"name": "other", "task": "segmentation"}
    )
    for ask in (load_victim, describe):
        with pytest.raises(VictimError, match="expected task single_label, got segmentation"):
            ask("chest_resnet", data)


def test_statistics_that_nobody_stated_are_said(tmp_path: Path) -> None:
    data = card_of(torch.zeros(1, 3, 32, 32), 2)
    text = saved(tmp_path / "w", "timm:test_resnet", data)
    (note,) = load_victim(text, data).card.notes
    assert "mean 0.5, 0.5, 0.5 and std 0.5, 0.5, 0.5 for timm:test_resnet" in note
    stated = load_victim(f"{text[:-1]}, mean=[0.5], std=[0.5])", data).card
    assert stated.notes == ()
    assert (stated.mean, stated.std) == ((0.5,), (0.5,))
