"""MONAI bundles: the network and the steps of their configuration, and no code of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets.unet import UNet
from monai.transforms.intensity.array import (
    NormalizeIntensity,
    ScaleIntensity,
    ScaleIntensityRange,
)
from safetensors.torch import save_file

import robustbench_med as rm
from robustbench_med.errors import BenchError
from robustbench_med.models.deployed.bundle_steps import Standardised, Statistics
from robustbench_med.models.load import load_victim
from tests.bench.toys import card_of, dataset_of
from tests.models.truth import MASKS, SIDE, X, labels, masks

UNET = {
    "_target_": "monai.networks.nets.UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": "@classes",
    "channels": [4, "$@width * 2"],
    "strides": [2],
}


def bundle(folder: Path, *, network: Any = None, yaml: bool = False, **config: Any) -> Any:  # noqa: ANN401
    """Write a bundle with a small U-Net, and return the network."""
    torch.manual_seed(0)
    module = UNet(
        spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,)
    ).eval()
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    save_file(
        {key: value.contiguous() for key, value in module.state_dict().items()},
        folder / "models" / "model.safetensors",
    )
    planted = f"$__import__('pathlib').Path({str(folder / 'executed')!r}).touch()"
    values = {
        "imports": [planted],
        "classes": 2,
        "width": 4,
        "device": planted,
        "network_def": UNET if network is None else network,
        "network": "$@network_def.to(@device)",
        "initialize": [planted],
        **config,
    }
    path = folder / "configs" / f"inference.{'yaml' if yaml else 'json'}"
    if yaml:
        from yaml import safe_dump  # type: ignore[import-untyped]

        path.write_text(safe_dump(values))
    else:
        path.write_text(json.dumps(values))
    return module


def compose(*transforms: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(transforms)}


@pytest.mark.parametrize("yaml", [False, True])
def test_network_and_weights(tmp_path: Path, yaml: bool) -> None:
    network = bundle(tmp_path / "b", yaml=yaml)
    model = rm.load_model(f"bundle:{tmp_path / 'b'}", dataset=masks())
    with torch.no_grad():
        torch.testing.assert_close(model(X[:2]).logits, network(X[:2]), rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "b" / "executed").exists()


def test_a_torchscript_file_of_a_bundle(tmp_path: Path) -> None:
    import warnings

    network = bundle(tmp_path / "b")
    (tmp_path / "b" / "models" / "model.safetensors").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, X[:1]), tmp_path / "b" / "models" / "model.ts")
    model = rm.load_model(f"bundle:{tmp_path / 'b'}", dataset=masks())
    with torch.no_grad():
        torch.testing.assert_close(model(X[:2]).logits, network(X[:2]), rtol=1e-4, atol=1e-5)


def test_steps_before_the_network(tmp_path: Path) -> None:
    """MONAI's own transforms are the reference."""
    steps = compose(
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": -57,
            "a_max": 164,
            "b_min": -1,
            "b_max": "$1.0",
            "clip": True,
        },
        {"_target_": "EnsureTyped", "keys": "image"},
    )
    network = bundle(tmp_path / "b", preprocessing=steps)
    native = {"low": -1000, "high": 1000, "unit": "HU"}
    data = dataset_of(X[:8], MASKS.to(torch.int16), 2, task="segmentation", native=native)
    model = rm.load_model(f"bundle:{tmp_path / 'b'}", dataset=data)
    stored = X[:3] * 2000 - 1000
    scaled = ScaleIntensityRange(-57, 164, -1, 1, clip=True)(stored.numpy())
    with torch.no_grad():
        expected = network(torch.as_tensor(np.asarray(scaled)))
    torch.testing.assert_close(model(X[:3]).logits, expected, rtol=1e-3, atol=1e-4)
    assert any("orientation RAS" in note for note in model.card.notes)


@pytest.mark.parametrize("nonzero", [False, True])
@pytest.mark.parametrize("by_channel", [False, True])
def test_statistics_are_those_of_monai(nonzero: bool, by_channel: bool) -> None:
    x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    x[:, :, :3] = 0
    x[2, 1] = 0.7
    own = Standardised(torch.nn.Identity(), Statistics("deviations", nonzero, by_channel))(x)
    reference = NormalizeIntensity(nonzero=nonzero, channel_wise=by_channel)
    expected = torch.stack([torch.as_tensor(np.asarray(reference(image))) for image in x.numpy()])
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    own = Standardised(torch.nn.Identity(), Statistics("range", False, by_channel, -1, 2))(x)
    scale = ScaleIntensity(minv=-1, maxv=2, channel_wise=by_channel)
    expected = torch.stack([torch.as_tensor(np.asarray(scale(image))) for image in x[:2].numpy()])
    torch.testing.assert_close(own[:2], expected, rtol=1e-4, atol=1e-4)


def test_windows_and_statistics_of_the_whole_image(tmp_path: Path) -> None:
    normal = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [8, 8], "overlap": 0.5}
    network = bundle(tmp_path / "b", preprocessing=compose(normal), inferer=inferer)
    model = rm.load_model(f"bundle:{tmp_path / 'b'}", dataset=masks())
    whole = (X[:2] - X[:2].mean((1, 2, 3), keepdim=True)) / X[:2].std(
        (1, 2, 3), keepdim=True, unbiased=False
    )
    from monai.inferers.utils import sliding_window_inference

    with torch.no_grad():
        expected = sliding_window_inference(whole, [8, 8], 4, network, overlap=0.5, mode="gaussian")
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(model(X[:2]).logits, expected, rtol=1e-3, atol=1e-4)
    assert any("windows of 8 x 8" in note for note in model.card.notes)
    inferer["roi_size"] = [96, 96]
    bundle(tmp_path / "b", preprocessing=compose(normal), inferer=inferer)
    model = rm.load_model(f"bundle:{tmp_path / 'b'}", dataset=masks())
    with torch.no_grad():
        torch.testing.assert_close(model(X[:2]).logits, network(whole), rtol=1e-3, atol=1e-4)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "code",
        {"network": {**UNET, "channels": "$[__import__('os').system('touch executed'), 8]"}},
        "which is not executed",
    ),
    ("another function", {"network": {"_target_": "os.system", "command": "ls"}}, "not imported"),
    (
        "a name in disguise",
        {"network": {"_target_": "evil.nets.UNet"}},
        "got 'evil.nets.UNet', which is not imported",
    ),
    ("a circle", {"network": {**UNET, "out_channels": "@a"}, "a": "@b", "b": "@a"}, "a circle"),
    ("nowhere", {"network": {**UNET, "out_channels": "@gone"}}, "expected 'gone' in the"),
    ("no network", {"network": {"channels": [4]}}, "expected network_def with a _target_"),
    ("arguments", {"network": {**UNET, "stride": 2}}, "UNet: "),
    (
        "an unknown step",
        {"preprocessing": compose({"_target_": "HistogramNormalized", "keys": "image"})},
        "expected known steps before the network, got HistogramNormalize",
    ),
    (
        "regions that overlap",
        {"postprocessing": compose({"_target_": "Activationsd", "sigmoid": True})},
        "expected masks of exclusive classes",
    ),
    (
        "a spacing",
        {"preprocessing": compose({"_target_": "Spacingd", "pixdim": [1.5, 2.0]})},
        "expected a spacing of 1.5 x 2 mm",
    ),
    ("a bad window", {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [4]}}, "2 sides"),
]


@pytest.mark.parametrize(("name", "config", "message"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    config: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle(tmp_path / "b", **config)
    data = card_of(X, 3, task="segmentation", spacing=(1.0, 1.0))
    with pytest.raises(BenchError, match=message) as error:
        load_victim("bundle:b", data)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "b" / "executed").exists()


def test_own_steps_replace_those_of_the_bundle(tmp_path: Path) -> None:
    odd = compose({"_target_": "HistogramNormalized", "keys": "image"})
    network = bundle(tmp_path / "b", preprocessing=odd)
    model = rm.load_model(f"bundle:{tmp_path / 'b'}(preprocess='none')", dataset=masks())
    with torch.no_grad():
        torch.testing.assert_close(model(X[:2]).logits, network(X[:2]), rtol=1e-4, atol=1e-5)
    assert any("replaced by preprocess=" in note for note in model.card.notes)


def test_weights_that_are_missing_or_pickles(tmp_path: Path) -> None:
    bundle(tmp_path / "b")
    (tmp_path / "b" / "models" / "model.safetensors").unlink()
    with pytest.raises(BenchError, match=r"expected models/model.safetensors, got none"):
        load_victim(f"bundle:{tmp_path / 'b'}", masks().card)
    (tmp_path / "b" / "models" / "model.pt").write_bytes(b"PK")
    with pytest.raises(BenchError, match=r"got model.pt: a pickle of torch.save may run code"):
        load_victim(f"bundle:{tmp_path / 'b'}", masks().card)
    (tmp_path / "b" / "configs" / "inference.json").write_text("[1")
    with pytest.raises(BenchError, match="expected JSON"):
        load_victim(f"bundle:{tmp_path / 'b'}", masks().card)
    (tmp_path / "b" / "configs" / "inference.json").unlink()
    with pytest.raises(BenchError, match=r"expected a MONAI bundle with configs/inference.json"):
        load_victim(f"bundle:{tmp_path / 'b'}", masks().card)
    bomb = "a: &a [1]\nb: &b [*a, *a]\n"
    (tmp_path / "b" / "configs" / "inference.yaml").write_text(bomb)
    with pytest.raises(BenchError, match="expected YAML without anchors"):
        load_victim(f"bundle:{tmp_path / 'b'}", masks().card)


def test_nnunet_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        BenchError, match="a result folder of nnU-Net, whose checkpoint is a pickle"
    ):
        load_victim(f"nnunet:{tmp_path}", labels().card)
    assert SIDE == 16
