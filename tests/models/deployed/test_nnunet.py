"""nnU-Net folders against MONAI's sliding window and numpy, and what is refused.

docs/deployed_models.md states how far the whole is from nnU-Net's own predictor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, gaussian_filter
from torch import Tensor

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import BenchError
from robustbench_med.models.deployed.nnunet_inference import window_starts
from robustbench_med.models.load import Loaded, load_victim
from tests.bench.toys import card_of
from tests.models.deployed.nnunet_folder import CT, network, write

PATCH = [8, 8, 8]
SIZE = (12, 16, 12)
X = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))
X[0, :, :3], X[0, :, :, 5:7, 5:7] = 0, 0  # an edge that is cut off, and a hole in the middle


def card(x: Tensor = X, k: int = 2, **fields: Any) -> DatasetCard:  # noqa: ANN401
    spacing = (1.0,) * (x.ndim - 2)
    return card_of(x, k, **{"task": "segmentation", "spacing": spacing, **fields})


def load(folder: Path, data: DatasetCard, text: str = "axes=[0, 1, 2]") -> Loaded:
    return load_victim(f"nnunet:{folder}({text}{', ' if text else ''}unpickle=True)", data)


def logits(loaded: Loaded, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return loaded.victim.logits(x)


def slid(
    net: torch.nn.Module,
    x: Tensor,
    patch: list[int],
    flips: tuple[tuple[int, ...], ...] = ((),),
) -> Tensor:
    """MONAI's windows with nnU-Net's weights, for sizes where both begin at the same places."""
    weights = np.zeros(patch)
    weights[tuple(side // 2 for side in patch)] = 1
    weights = gaussian_filter(weights, [side / 8 for side in patch], 0, mode="constant")
    half = (10 * weights / weights.max()).astype(np.float16)
    half = np.where(half == 0, half[half > 0].min(), half)

    def full(windows: Tensor) -> Tensor:  # the first of the heads of deep supervision
        return torch.stack([net(windows.flip(axes))[0].flip(axes) for axes in flips]).mean(0)

    with torch.no_grad():
        answer = sliding_window_inference(
            x, patch, 4, full, overlap=0.5, roi_weight_map=torch.from_numpy(half).float()
        )
    assert isinstance(answer, Tensor)
    return answer


def z_score(x: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    mask = np.ones_like(x, bool) if mask is None else mask
    x = x.copy()
    x[mask] = (x[mask] - x[mask].mean()) / max(x[mask].std(), 1e-8)
    return x


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_folds_crop_normalisation_and_windows(tmp_path: Path, old: bool, masked: bool) -> None:
    nets = [network(3, seed=seed) for seed in (0, 1)]
    loaded = load(write(tmp_path / "n", [*nets], PATCH, masked=masked, old=old), card())
    expected = torch.zeros(2, 2, *SIZE)
    for row, first in ((0, 3), (1, 0)):  # the first image has an edge of 0
        stored = (X[row, 0, first:] * 255).numpy()
        mask = binary_fill_holes(stored != 0) if masked else None
        normal = torch.from_numpy(z_score(stored, mask))[None, None]
        if first:  # an axis of 9 pixels: windows of nnU-Net begin at 0 and 1, as MONAI's do
            expected[row, 0, :first], expected[row, 1, :first] = 10, -10
        both = torch.stack([slid(net, normal, PATCH)[0] for net in nets])
        expected[row, :, first:] = both.mean(0)
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-3, atol=1e-3)
    assert loaded.card.returns == "logits"
    assert "the logits of its folds are averaged: fold_0, fold_1" in loaded.card.notes[0]
    x = X.clone().requires_grad_()
    loaded.victim(x).logits[:, 1].sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad[1] != 0).float().mean() > 0.9


def test_ct_and_mirrored_windows(tmp_path: Path) -> None:
    net = network(3)
    folder = write(tmp_path / "n", [net], PATCH, schemes=("CT",), mirror=(0, 2))
    data = card(native={"low": -1000, "high": 1000, "unit": "HU"})
    x = X[1:]
    normal = ((x * 2000 - 1000).clamp(CT["percentile_00_5"], CT["percentile_99_5"]) - 40) / 80
    mirrored = slid(net, normal, PATCH, ((), (2,), (4,), (2, 4)))
    torch.testing.assert_close(logits(load(folder, data), x), mirrored, rtol=1e-3, atol=1e-3)
    plain = load(folder, data, "axes=[0, 1, 2], mirror=False")
    torch.testing.assert_close(logits(plain, x), slid(net, normal, PATCH), rtol=1e-3, atol=1e-3)
    assert "each mirrored in 4 ways" in load(folder, data).card.notes[1]
    assert plain.sha256 != load(folder, data).sha256


def test_slices_and_axes(tmp_path: Path) -> None:
    """A network of slices on a volume of NIfTI, whose axes nnU-Net reads in another order."""
    net = network(2)
    folder = write(tmp_path / "n", [net], [8, 8], schemes=("No",), image_reader_writer="NibabelIO")
    found = logits(load(folder, card(), "axes='LPS'"), X[1:])
    read = X[1:].flip(2, 3).permute(0, 1, 4, 3, 2) * 255  # z, y, x of a file stored as LPS
    expected = torch.stack([slid(net, read[:, :, z], [8, 8]) for z in range(12)], 2)
    expected = expected.permute(0, 1, 4, 3, 2).flip(2, 3)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)


def test_pictures_smaller_than_a_window(tmp_path: Path) -> None:
    net = network(2, channels=3)
    folder = write(tmp_path / "n", [net], [16, 16], schemes=("RGBTo01",) * 3)
    x = torch.rand(1, 3, 13, 16, generator=torch.Generator().manual_seed(1)) + 0.01
    loaded = load(folder, card(x.clamp(max=1), spacing=(0.2, 0.2)), "")  # its reader takes no mm
    with torch.no_grad():
        expected = net(torch.nn.functional.pad(x.clamp(max=1), (0, 0, 1, 2)))[0][:, :, 1:14]
    torch.testing.assert_close(logits(loaded, x.clamp(max=1)), expected, rtol=1e-3, atol=1e-3)


def test_regions_are_classes_in_their_order(tmp_path: Path) -> None:
    net = network(3)
    x = X[1:]
    scaled = (x - x.min()) / (x.max() - x.min())
    with torch.no_grad():  # a half of the pixels is in each region
        medians = slid(net, scaled, PATCH)[0].flatten(1).median(1).values
        net.decoder.seg_layers[-1].bias -= medians
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    folder = write(
        tmp_path / "n", [net], PATCH, schemes=("RescaleTo01",), labels=labels, order=[1, 2]
    )
    loaded = load(folder, card(k=3))
    whole, core = slid(net, scaled, PATCH)[0]
    expected = torch.zeros(SIZE, dtype=torch.long)
    expected[whole > 0] = 1  # as nnU-Net writes them, one over the other
    expected[core > 0] = 2
    assert len(expected.unique()) == 3
    clear = torch.minimum(whole.abs(), core.abs()) > 1e-3
    assert torch.equal(logits(loaded, x).argmax(1)[0][clear], expected[clear])


@pytest.mark.parametrize(("whole", "side"), [(8, 8), (110, 64), (47, 16), (9, 8)])
def test_windows_cover_an_axis(whole: int, side: int) -> None:
    starts = window_starts(whole, side, 0.5)
    assert starts[0] == 0
    assert starts[-1] == whole - side
    assert all(0 < b - a <= side // 2 for a, b in zip(starts, starts[1:], strict=False))


def refused(
    folder: Path, match: str, data: DatasetCard | None = None, text: str | None = None
) -> None:
    with pytest.raises(BenchError, match=match):
        load(folder, data or card(), "axes=[0, 1, 2]" if text is None else text)


def test_what_does_not_fit_the_data(tmp_path: Path) -> None:
    folder = write(tmp_path / "n", [network(3)], PATCH, spacing=[2.0, 1.0, 1.0])
    refused(folder, "expected a spacing of 2 x 1 x 1 mm, to which nnU-Net resamples, got 1 x 1 x 1")
    load(folder, card(spacing=(2.0, 1.0, 1.0)))
    refused(folder, "got 1 x 1 x 2 mm", card(spacing=(2.0, 1.0, 1.0)), "axes=[2, 1, 0]")
    refused(folder, "expected images of a known spacing", card(spacing=None))
    plain = load(folder, card(spacing=None), "axes=[0, 1, 2], preprocess='none'")
    torch.testing.assert_close(
        logits(plain)[1:], slid(network(3), X[1:], PATCH), rtol=1e-3, atol=1e-3
    )
    data = card(spacing=(2.0, 1.0, 1.0))
    refused(folder, "expected axes=..., since nnU-Net reads the axes", data, "")
    refused(folder, "expected axes of three letters", data, "axes='RAP'")
    refused(folder, "expected axes: axes='LPS' where", data, "axes=[0, 1]")
    refused(folder, "expected masks of 2 classes, got 3", card(k=3, spacing=(2.0, 1.0, 1.0)))
    refused(
        folder,
        "expected 1 channels .channel 0., got 2",
        card_of(X.expand(-1, 2, -1, -1, -1), 2, task="segmentation", spacing=(2.0, 1.0, 1.0)),
    )
    refused(folder, "stored values are known", data.model_copy(update={"native_range": "float"}))
    refused(folder, "leave it out of the card", data.model_copy(update={"preprocess": "native()"}))
    refused(folder, "expected volumes, got images of size", card(X[:, :, 0]), "axes=[0, 1]")
    rgb = write(tmp_path / "rgb", [network(3)], PATCH, schemes=("RGBTo01",))
    refused(
        rgb,
        "expected grey levels 0..255",
        card(native={"low": 0, "high": 4095, "unit": "grey level"}),
    )
    named = write(
        tmp_path / "named",
        [network(3, 2)],
        PATCH,
        schemes=("No", "No"),
        dataset={"channel_names": {"0": "T1", "1": "FLAIR"}},
    )
    two = card(X.expand(-1, 2, -1, -1, -1), channel_names=("flair", "t1"))
    refused(named, "expected the channels T1, FLAIR in this order, got flair, t1", two)


def test_what_is_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "n", [network(3)], PATCH)
    with pytest.raises(BenchError, match="expected unpickle=True, since checkpoint_final.pth is"):
        load_victim(f"nnunet:{folder}(axes=[0, 1, 2])", card())
    refused(folder, "expected no window, which its plans state", text="window=[8, 8, 8]")
    refused(folder, r"expected fold_3/checkpoint_final.pth, got fold_0", text="folds=[3]")
    refused(folder, "expected mirror=True or", text="axes=[0, 1, 2], mirror=2")
    refused(folder, "expected step in", text="axes=[0, 1, 2], step=0")
    refused(folder, "expected checkpoint=", text="checkpoint='../x'")
    refused(tmp_path / "none", "expected a result folder of nnU-Net v2")
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "plans.pkl").touch()
    refused(tmp_path / "v1", "a folder of nnU-Net v1, which is not read")

    def changed(match: str, **stated: Any) -> None:  # noqa: ANN401
        refused(write(tmp_path / "c", [network(3)], PATCH, **stated), match)

    changed("the second stage of a cascade", configuration={"previous_stage": "3d_lowres"})
    changed("expected regions_class_order in dataset.json", labels={"b": 0, "w": [1, 2], "c": 2})
    changed("expected a normalisation in ZScore", schemes=("Odd",))
    changed(
        "whose '3d_fullres' can be read: KeyError",
        foreground_intensity_properties_per_channel={"0": {"mean": 1.0}},
        schemes=("CT",),
    )
    arch = {"network_class_name": "os.system", "arch_kwargs": {}, "_kw_requires_import": []}
    changed("got 'os.system', which is not imported", configuration={"architecture": arch})
    kwargs = {"conv_op": "os.system"}
    arch = {"network_class_name": "PlainConvUNet", "arch_kwargs": kwargs}
    changed(
        "expected conv_op in Conv2d",
        configuration={"architecture": arch | {"_kw_requires_import": ["conv_op"]}},
    )
    changed(
        "PlainConvUNet: ",
        configuration={
            "architecture": {**arch, "arch_kwargs": {"n_stages": 2}, "_kw_requires_import": []}
        },
    )


def test_checkpoints_of_another_network_or_with_code(tmp_path: Path) -> None:
    folder = write(tmp_path / "n", [network(3, k=3)], PATCH)
    refused(folder, "fold_0/checkpoint_final.pth: expected ")
    path = folder / "fold_0" / "checkpoint_final.pth"
    torch.save({"network_weights": Path("x")}, path)
    refused(folder, "expected a state dict of tensors alone, which needs no code")
    torch.save({"weights": torch.zeros(1)}, path)
    refused(folder, "expected a checkpoint of nnU-Net v2, got none")
    torch.save({"network_weights": {}, "init_args": {}}, path)
    with pytest.raises(BenchError):
        load(folder, card())
    (folder / "plans.json").write_text(json.dumps([1]))
    refused(folder, "plans.json: expected an object|names its configuration")
