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
from tests.models.truth import MASKS, X, masks

UNET = {
    "_target_": "monai.networks.nets.UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": "@classes",
    "channels": [4, "$@width * 2"],
    "strides": [2],
}


def bundle(
    folder: Path,
    *,
    network: dict[str, Any] | None = None,
    yaml: bool = False,
    act: str = "PRELU",
    **config: Any,  # noqa: ANN401 - any part of a configuration
) -> UNet:
    """Write a bundle with a small U-Net, and return the network."""
    torch.manual_seed(0)
    module = UNet(
        spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), act=act
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


@pytest.mark.parametrize("stated", [{}, {"mode": "constant"}, {"mode": "gaussian"}])
def test_windows_and_statistics_of_the_whole_image(tmp_path: Path, stated: dict[str, Any]) -> None:
    normal = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [8, 8], "overlap": 0.5, **stated}
    network = bundle(tmp_path / "b", preprocessing=compose(normal), inferer=inferer)
    model = rm.load_model(f"bundle:{tmp_path / 'b'}", dataset=masks())
    whole = (X[:2] - X[:2].mean((1, 2, 3), keepdim=True)) / X[:2].std(
        (1, 2, 3), keepdim=True, unbiased=False
    )
    from monai.inferers.inferer import SlidingWindowInferer

    with torch.no_grad():
        expected = SlidingWindowInferer([8, 8], overlap=0.5, **stated)(whole, network)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(model(X[:2]).logits, expected, rtol=1e-3, atol=1e-4)
    assert any("windows of 8 x 8" in note for note in model.card.notes)
    inferer["roi_size"] = [96, 96]
    bundle(tmp_path / "b", preprocessing=compose(normal), inferer=inferer)
    model = rm.load_model(f"bundle:{tmp_path / 'b'}", dataset=masks())
    with torch.no_grad():
        torch.testing.assert_close(model(X[:2]).logits, network(whole), rtol=1e-3, atol=1e-4)


STEP = "monai.transforms."
INFERER = {"_target_": "SlidingWindowInferer", "roi_size": [8, 8], "overlap": 0.25}
NORMAL = {"_target_": f"{STEP}NormalizeIntensityd", "keys": "image"}
SCALED = {"_target_": f"{STEP}ScaleIntensityd", "keys": "image"}
RANGE = {"_target_": f"{STEP}ScaleIntensityRanged", "a_min": 0, "a_max": 255, "b_min": 0}
PLAIN = {**UNET, "channels": [4, 8]}  # their activations have no weights
SLOPED = ["LEAKYRELU", {"negative_slope": "$@width / 8"}]
CHANGES: list[tuple[str, list[dict[str, Any]]]] = [
    (
        "arguments of the network",
        [{"network": {**PLAIN, "act": act}} for act in ("RELU", "TANH", SLOPED)]
        + [{"network": {**PLAIN, "act": SLOPED}, "width": 2}],
    ),
    (
        "statistics",
        [
            {"preprocessing": compose(step)}
            for step in (NORMAL, {**NORMAL, "nonzero": True}, SCALED, {**SCALED, "minv": -1})
        ],
    ),
    ("a range", [{"preprocessing": compose({**RANGE, "b_max": b})} for b in (1, 2)]),
    ("overlap", [{"inferer": INFERER}, {"inferer": {**INFERER, "overlap": 0.75}}]),
]


@pytest.mark.parametrize(("name", "configs"), CHANGES, ids=[c[0] for c in CHANGES])
def test_what_changes_answers_changes_the_hash(
    tmp_path: Path, name: str, configs: list[dict[str, Any]]
) -> None:
    """A record that is finished is reused where the hash is the same."""
    x = X[:2].clone()
    x[:, :, :6] = 0
    hashes, answers = set(), []
    for config in configs:
        bundle(tmp_path / "b", act="RELU" if "network" in config else "PRELU", **config)
        first, again = (load_victim(f"bundle:{tmp_path / 'b'}", masks().card) for _ in range(2))
        assert first.sha256 == again.sha256
        hashes.add(first.sha256)
        with torch.no_grad():
            answers.append(first.victim.logits(x))
    assert all(not torch.allclose(a, answers[0], atol=1e-4) for a in answers[1:]), name
    assert len(hashes) == len(configs)


def test_a_range_of_0_to_255_is_of_stored_values(tmp_path: Path) -> None:
    """Grey levels are [0,1] here; HU that only a text states are not."""
    network = bundle(tmp_path / "b", preprocessing=compose({**RANGE, "b_max": 1}))
    for native_range, low, high in (("grey level 0..255", 0, 255), ("HU -1000..1000", -1000, 1000)):
        card = masks().card.model_copy(update={"native_range": native_range})
        loaded = load_victim(f"bundle:{tmp_path / 'b'}", card)
        with torch.no_grad():
            expected = network((X[:2] * (high - low) + low) / 255)
        torch.testing.assert_close(
            loaded.victim.logits(X[:2]), expected, rtol=1e-3, atol=1e-3, msg=native_range
        )
    card = masks().card.model_copy(update={"native_range": "float 0..1"})
    loaded = load_victim(f"bundle:{tmp_path / 'b'}", card)
    assert any("unknown range are taken for grey levels" in note for note in loaded.card.notes)


@pytest.mark.parametrize("resized", [False, True])
def test_normalisation_of_stored_grey_levels(tmp_path: Path, resized: bool) -> None:
    """MONAI takes the subtrahend from the file's values, 0..255."""
    step = {**NORMAL, "subtrahend": 127.5, "divisor": 64}
    resize = [{"_target_": "Resized", "spatial_size": [8, 8]}] if resized else []
    network = bundle(tmp_path / "b", preprocessing=compose(*resize, step))
    stored = (255 * X[:2]).round()
    loaded = load_victim(f"bundle:{tmp_path / 'b'}", masks().card)
    if resized:
        assert "native(), normalise(127.5, 64)" in loaded.card.preprocess
        return
    seen = torch.as_tensor(
        np.asarray(NormalizeIntensity(np.array(127.5), np.array(64.0))(stored.numpy()))
    )
    with torch.no_grad():
        expected = network(seen)
        torch.testing.assert_close(
            loaded.victim.logits(stored / 255), expected, rtol=1e-3, atol=1e-4
        )


def test_normalisation_of_scaled_values(tmp_path: Path) -> None:
    step = {**NORMAL, "subtrahend": 0.5, "divisor": 0.25}
    network = bundle(tmp_path / "b", preprocessing=compose({**RANGE, "b_max": 1}, step))
    loaded = load_victim(f"bundle:{tmp_path / 'b'}", masks().card)
    with torch.no_grad():
        expected = network((X[:2] - 0.5) / 0.25)
        torch.testing.assert_close(loaded.victim.logits(X[:2]), expected, rtol=1e-3, atol=1e-4)


def test_normalisation_of_unknown_values(tmp_path: Path) -> None:
    data = masks().card.model_copy(update={"native_range": "float 0..1"})
    step = {**NORMAL, "subtrahend": 127.5, "divisor": 64}
    bundle(tmp_path / "b", preprocessing=compose(step))
    with pytest.raises(BenchError, match=r"stored values are known.*got float 0..1: state nat"):
        load_victim(f"bundle:{tmp_path / 'b'}", data)


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
    (
        "half a normalisation",
        {"preprocessing": compose({**NORMAL, "subtrahend": 3})},
        "both subtrahend and divisor, or neither, got subtrahend 3, divisor None",
    ),
    (
        "a normalisation of some pixels",
        {"preprocessing": compose({**NORMAL, "subtrahend": 3, "divisor": 2, "nonzero": True})},
        "expected NormalizeIntensity of all pixels",
    ),
    (
        "a range of scaled values",
        {"preprocessing": compose({**RANGE, "b_max": 1}, {**RANGE, "b_max": 1})},
        "expected no ScaleIntensityRange of scaled values",
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
