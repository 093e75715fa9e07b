"""Folders of transformers and networks of torchxrayvision: known answers, and one line each."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import robustbench_med as rm
from robustbench_med.errors import BenchError, SpecError, VictimError
from robustbench_med.models.deployed.huggingface import huggingface_settings
from robustbench_med.models.deployed.network import quiet
from robustbench_med.models.deployed.source import Deployed
from robustbench_med.models.load import load_victim
from tests.bench.toys import card_of, dataset_of
from tests.models.truth import FINDINGS, SIDE, X, labels, masks

PROCESSOR = {
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.25, 0.3],
}


def transformer(
    folder: Path,
    *,
    processor: dict[str, Any] | None = None,
    masks: bool = False,
    channels: int = 3,
    names: tuple[str, ...] = ("c0", "c1"),
    side: int = 32,
) -> Any:  # noqa: ANN401 - a model of transformers
    """Write a small network as `save_pretrained` does, and return it."""
    with quiet():
        transformers: Any = importlib.import_module("transformers")
        torch.manual_seed(0)
        kinds: dict[str, Any] = {"id2label": dict(enumerate(names)), "num_channels": channels}
        if masks:
            config = transformers.SegformerConfig(
                num_encoder_blocks=2,
                depths=[1, 1],
                hidden_sizes=[8, 8],
                num_attention_heads=[1, 1],
                sr_ratios=[1, 1],
                patch_sizes=[3, 3],
                strides=[2, 2],
                mlp_ratios=[1, 1],
                decoder_hidden_size=8,
                **kinds,
            )
            model: Any = transformers.SegformerForSemanticSegmentation(config)
        else:
            config = transformers.ViTConfig(
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=8,
                image_size=side,
                patch_size=8,
                **kinds,
            )
            model = transformers.ViTForImageClassification(config)
        model.eval().save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def as_processed(x: Tensor, side: int = 32) -> Tensor:
    """Return what the processor makes of grey images."""
    y = torch.nn.functional.interpolate(x, (side, side), mode="bilinear", antialias=True)
    mean, std = (
        torch.tensor(PROCESSOR[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std")
    )
    return (y.expand(-1, 3, -1, -1) - mean) / std


def test_a_classifier_with_its_processor(tmp_path: Path) -> None:
    network = transformer(tmp_path / "vit", processor=PROCESSOR)
    model = rm.load_model(f"hf:{tmp_path / 'vit'}", dataset=labels())
    assert model.card.preprocess == "resize(32, 32), stack(3)"
    assert model.card.mean == (0.5, 0.4, 0.3)
    with torch.no_grad():
        expected = network(pixel_values=as_processed(X)).logits
    x = X.clone().requires_grad_(True)
    logits = model(x).logits
    torch.testing.assert_close(logits.detach(), expected, rtol=1e-4, atol=1e-4)
    (g,) = torch.autograd.grad(logits.sum(), x)
    assert g.abs().max() > 0


def test_masks_are_brought_to_the_size_of_the_images(tmp_path: Path) -> None:
    network = transformer(tmp_path / "seg", masks=True, channels=1)
    model = rm.load_model(f"hf:{tmp_path / 'seg'}", dataset=masks())
    with torch.no_grad():
        small = network(pixel_values=X[:2]).logits
    expected = torch.nn.functional.interpolate(small, (SIDE, SIDE), mode="bilinear")
    torch.testing.assert_close(model(X[:2]).logits, expected, rtol=1e-4, atol=1e-4)


def test_classes_in_another_order(tmp_path: Path) -> None:
    network = transformer(tmp_path / "m", channels=1, names=("C1", "C0"), side=SIDE)
    model = rm.load_model(f"hf:{tmp_path / 'm'}", dataset=labels())
    with torch.no_grad():
        expected = network(pixel_values=X).logits[:, [1, 0]]
    torch.testing.assert_close(model(X).logits, expected, rtol=1e-4, atol=1e-4)
    assert any("in the order of the data's" in note for note in model.card.notes)
    transformer(tmp_path / "n", channels=1, names=("c1", "other"), side=SIDE)
    with pytest.raises(VictimError, match="expected the classes c0, c1 in this order, got c1, oth"):
        load_victim(f"hf:{tmp_path / 'n'}", labels().card)


@pytest.mark.parametrize(
    ("changes", "size", "steps"),
    [
        ({}, (32, 32), "stack(3)"),
        ({"size": {"shortest_edge": 20}}, (16, 16), "resize(20), stack(3)"),
        ({"size": 24}, (16, 16), "resize(24, 24), stack(3)"),
        (
            {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32},
            (16, 24),
            "resize(40), crop(32, 32), stack(3)",
        ),
        (
            {"size": {"shortest_edge": 35}, "crop_pct": 0.875},
            (16, 16),
            "resize(40), crop(35, 35), stack(3)",
        ),
        ({"do_resize": False}, (16, 16), "stack(3)"),
        ({"do_rescale": False}, (32, 32), "stack(3), scale(0, 255)"),
        (
            {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False},
            (32, 32),
            "stack(3), scale(-1, 1)",
        ),
    ],
)
def test_processors(
    tmp_path: Path, changes: dict[str, Any], size: tuple[int, ...], steps: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | changes))
    data = card_of(torch.zeros(1, 1, *size), 2)
    settings = huggingface_settings(Deployed("hf", str(tmp_path), {}), data)
    assert settings["preprocess"] == steps
    assert ("mean" in settings) == changes.get("do_normalize", True)


def test_what_the_user_states_counts(tmp_path: Path) -> None:
    transformer(tmp_path / "vit", processor=PROCESSOR)
    text = f"hf:{tmp_path / 'vit'}(preprocess='resize(32, 32), stack(3)', mean=[0.0], std=[1.0])"
    model = rm.load_model(text, dataset=labels())
    assert model.card.preprocess == "resize(32, 32), stack(3)"
    assert model.card.mean == (0.0,)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    folder, data = tmp_path / "vit", labels().card

    def refused(message: str) -> None:
        with pytest.raises(BenchError, match=message) as error:
            load_victim(f"hf:{folder}", data)
        assert "\n" not in str(error.value)

    refused("expected vit/config.json, got none")
    transformer(folder, channels=1, side=SIDE)
    config = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "config.json").write_text("{" * 10)
    refused("expected JSON")
    code = config | {"auto_map": {"AutoModelForImageClassification": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(code))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    refused("which is not executed")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nothing"}))
    refused("expected a network that AutoModelForImageClassification reads")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(weights[:-100])
    refused("expected a network that AutoModelForImageClassification reads")
    from safetensors.torch import load

    part = {key: value for key, value in load(weights).items() if "classifier" not in key}
    save_file(part, folder / "model.safetensors", metadata={"format": "pt"})
    refused("expected the weights of the whole network, got none for 'classifier.bias'")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    refused("got pytorch_model.bin, a pickle")
    assert not (tmp_path / "executed").exists()


# --- torchxrayvision ------------------------------------------------------------------------------

SMALL = "growth_rate=4, block_config=[1, 1], num_init_features=4"


def xray(path: Path, classes: int = 18) -> Any:  # noqa: ANN401 - a network of torchxrayvision
    with quiet():
        xrv: Any = importlib.import_module("torchxrayvision")
        torch.manual_seed(0)
        network = xrv.models.DenseNet(
            num_classes=classes, growth_rate=4, block_config=(1, 1), num_init_features=4
        ).eval()
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(tensors | {"op_threshs": torch.full((classes,), 0.5)}, path)
    return network


def test_torchxrayvision_reads_its_own_range(tmp_path: Path) -> None:
    network = xray(tmp_path / "w.safetensors")
    names = ("Effusion", "cardiomegaly", "Lung_Opacity")
    data = dataset_of(X, FINDINGS, 3, task="multi_label", classes=names)
    model = rm.load_model(
        f"xrv:DenseNet(weights='{tmp_path / 'w.safetensors'}', side=32, {SMALL})", dataset=data
    )
    assert model.card.preprocess == "resize(32), scale(-1024, 1024)"
    large = torch.nn.functional.interpolate(X, (32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        outputs = network((2 * large - 1) * 1024)
    places = [network.targets.index(n) for n in ("Effusion", "Cardiomegaly", "Lung Opacity")]
    torch.testing.assert_close(model(X).logits, outputs[:, places], rtol=1e-4, atol=1e-4)
    assert model.card.returns == "logits"
    assert "Effusion, Cardiomegaly, Lung Opacity" in model.card.notes[0]


def test_one_finding_answers_for_two_classes(tmp_path: Path) -> None:
    network = xray(tmp_path / "w.safetensors")
    start = f"xrv:DenseNet(weights='{tmp_path / 'w.safetensors'}', side=16, {SMALL}"
    model = rm.load_model(f"{start}, targets=['Pneumonia'])", dataset=labels())
    with torch.no_grad():
        expected = network((2 * X - 1) * 1024)[:, network.targets.index("Pneumonia")]
    torch.testing.assert_close(model(X).logits[:, -1], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(VictimError, match="expected 1 of its findings, got c1"):
        load_victim(f"{start})", labels().card)
    with pytest.raises(BenchError, match="expected a known network of torchxrayvision"):
        load_victim("xrv:Alex(weights='w')", labels().card)
    with pytest.raises(VictimError, match=r"expected weights='FILE.safetensors': m = torchxray"):
        load_victim("xrv:DenseNet", labels().card)
    with pytest.raises(SpecError, match="expected side=224"):
        load_victim("xrv:DenseNet(side='big')", labels().card)
