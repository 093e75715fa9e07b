"""Every segmentation network returns one set of logits per pixel, at the size of the image."""

from __future__ import annotations

import socket
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

from robustbench_med.errors import BenchError, UnknownNameError, VictimError
from robustbench_med.models.build import build
from robustbench_med.models.guide import bfloat16
from robustbench_med.models.networks.fcn import FCN
from robustbench_med.models.networks.segnet import SegNet
from robustbench_med.models.networks.vnet import VNet
from robustbench_med.spec import parse
from robustbench_med.victim import InputContract, Victim

ENCODER = "encoder_name='tu-resnet10t', channels=[8, 8, 16, 16], stem_width=8"
SMALL_2D = (
    f"smp:Unet({ENCODER}, encoder_depth=4, decoder_channels=[16, 8, 8, 8])",
    f"smp:UnetPlusPlus({ENCODER}, encoder_depth=3, decoder_channels=[16, 8, 8])",
    f"smp:FPN({ENCODER}, encoder_depth=4, upsampling=2, decoder_pyramid_channels=16)",
    f"smp:DeepLabV3Plus({ENCODER}, encoder_depth=4, decoder_channels=16)",
    "monai:UNet(channels=[8, 16, 16], strides=[2, 2])",
    "monai:BasicUNet(features=[8, 8, 8, 16, 16, 8])",
    "monai:AttentionUnet(channels=[8, 16, 16], strides=[2, 2])",
    "fcn(widths=[8, 8, 16])",
    "fcn(widths=[8, 8, 16], stride=1)",
    "fcn(widths=[8, 8, 16], stride=4, convs=1)",
    "segnet(widths=[8, 16])",
    "vnet(width=4, convs=[1, 2])",
    "fc_densenet(growth=4, layers=[2, 2, 2], first=8)",
)
SMALL_3D = (
    "monai:UNet(channels=[8, 16, 16], strides=[2, 2])",
    "monai:BasicUNet(features=[4, 4, 8, 8, 8, 4], norm='batch')",
    "monai:VNet",
    "fcn(widths=[4, 8])",
    "segnet(widths=[4, 8])",
    "vnet(width=4, convs=[1, 1, 1])",
    "vnet(width=2, convs=[1, 1], kernel=5)",
    "fc_densenet(growth=2, layers=[1, 2], first=4)",
)


def built(text: str, size: tuple[int, ...], *, channels: int = 1, outputs: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(parse(text), channels=channels, outputs=outputs, size=size)


def answers_at_every_pixel(
    module: nn.Module, size: tuple[int, ...], *, channels: int = 1, outputs: int = 3
) -> None:
    for mode in (False, True):
        x = torch.rand(1 if not mode else 2, channels, *size).requires_grad_(True)
        logits = module.train(mode)(x)
        assert logits.shape == (len(x), outputs, *size)
        (g,) = torch.autograd.grad(logits.square().sum(), x)
        assert torch.isfinite(g).all()
        # an image that the network does not read everywhere could be attacked only in part
        assert (g != 0).flatten(2).any(2).all()


@pytest.mark.parametrize("text", SMALL_2D)
def test_networks_in_2d(text: str) -> None:
    answers_at_every_pixel(built(text, (64, 64), channels=3), (64, 64), channels=3)


@pytest.mark.parametrize("text", [t for t in SMALL_3D if t != "monai:VNet"])
def test_networks_in_3d(text: str) -> None:
    answers_at_every_pixel(built(text, (16, 24, 16)), (16, 24, 16))


@pytest.mark.parametrize(
    ("text", "size"),
    [(text, (32, 32)) for text in SMALL_2D if "BasicUNet" in text or ":" not in text]
    + [(text, (16, 16, 16)) for text in SMALL_3D if "VNet" not in text],
)
def test_the_half_precision_guide_is_the_same_network(text: str, size: tuple[int, ...]) -> None:
    victim = Victim(built(text, size).eval(), InputContract(channels=1, size=size))
    x = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    expected, logits = victim(x).logits, bfloat16(victim)(x).logits
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("side", [128, 256])
@pytest.mark.parametrize("text", SMALL_2D)
def test_networks_at_larger_sizes(text: str, side: int) -> None:
    answers_at_every_pixel(built(text, (side, side)), (side, side))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(32, 32, 32), (48, 64, 48)])
@pytest.mark.parametrize("text", SMALL_3D)
def test_networks_on_larger_volumes(text: str, size: tuple[int, ...]) -> None:
    outputs = 3
    with torch.no_grad():
        logits = built(text, size, outputs=outputs).eval()(torch.rand(1, 1, *size))
    assert logits.shape == (1, outputs, *size)


@pytest.mark.parametrize("text", ["segnet(widths=[4, 8])", "vnet(width=4, convs=[1, 1])"])
def test_a_batch_of_one_trains(text: str) -> None:
    module = built(text, (16, 16)).train()
    assert module(torch.rand(1, 1, 16, 16)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("size", [(17, 22), (9, 12, 10)])
def test_pooling_takes_odd_sides(size: tuple[int, ...]) -> None:
    narrow_densenet = "fc_densenet(growth=2, layers=[1, 1, 1], first=4)"
    for text in ("segnet(widths=[4, 8])", "fcn(widths=[4, 8, 8])", narrow_densenet):
        assert built(text, size)(torch.rand(2, 1, *size)).shape == (2, 3, *size)


def test_a_spec_may_ask_for_one_logit() -> None:
    for text in (
        f"smp:Unet({ENCODER}, encoder_depth=3, decoder_channels=[8, 8, 8], classes=1)",
        "monai:UNet(channels=[8, 16], strides=[2], out_channels=1)",
        "fcn(widths=[8, 8], outputs=1)",
    ):
        assert built(text, (64, 64), outputs=2)(torch.rand(2, 1, 64, 64)).shape[1] == 1


def test_segnet_puts_a_maximum_back_where_it_was() -> None:
    net = SegNet(axes=2, channels=1, outputs=1, widths=(1,), convs=1)
    for side in (net.down, net.up):
        side[0] = nn.Identity()  # only pooling, unpooling and the head are left
    net.head.load_state_dict({"weight": torch.ones(1, 1, 1, 1), "bias": torch.zeros(1)})
    x = torch.rand(1, 1, 8, 8)
    logits = net(x)
    blocks = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    restored = logits != 0
    assert restored.sum() == 16
    assert torch.equal(logits[restored], x[restored])
    assert torch.equal(logits.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)), blocks)


def test_fcn_sums_the_scores_of_its_levels() -> None:
    net = FCN(axes=2, channels=1, outputs=2, widths=(4, 4, 4), convs=1, stride=1).eval()
    x = torch.rand(1, 1, 16, 16)
    whole = net(x)
    alone = []
    for level in range(3):
        state = {k: v.clone() for k, v in net.state_dict().items()}
        for other_level in {"0", "1", "2"} - {str(level)}:
            for parameter in net.scores[other_level].parameters():
                nn.init.zeros_(parameter)
        alone.append(net(x))
        net.load_state_dict(state)
    torch.testing.assert_close(sum(alone), whole)
    with pytest.raises(ValueError, match="expected stride <= 4, got 8"):
        FCN(axes=2, channels=1, outputs=2, widths=(4, 4, 4), stride=8)


def test_vnet_stages_are_residual() -> None:
    net = VNet(axes=3, channels=1, outputs=2, width=2, convs=(1,))
    for part in net.left.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.zeros_(part.weight)  # what is left is the input of the stage
    x = torch.rand(2, 1, 4, 4, 4)
    prelu = nn.PReLU(2)  # as fresh as the stage's own
    torch.testing.assert_close(net(x), net.head(prelu(net.enter(x))))


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("unet", UnknownNameError, "expected a known builder, got 'unet': .*smp:NAME"),
        ("smp:Unett", UnknownNameError, "expected a known smp network.*'Unet'"),
        ("monai:unet", UnknownNameError, "known monai network.*did you mean 'UNet'"),
        ("monai:DenseNet121", UnknownNameError, "known monai network"),
        ("smp:Unet(encoder_name='resnet19')", UnknownNameError, "known smp encoder.*'resnet18'"),
        ("smp:Unet(encoder_name='tu-resnett10t')", UnknownNameError, "'tu-resnet10t'"),
        ("smp:Unet(encoder_name='tu-hf-hub:timm/resnet18')", UnknownNameError, "smp encoder"),
        ("smp:Unet(encoder_name=3)", UnknownNameError, "smp encoder"),
        ("smp:Unet(encoder_weights='imagenet')", VictimError, "expected no encoder_weights"),
        ("smp:Unet(encoder_name='tu-resnet18', pretrained=True)", VictimError, "no pretrained"),
        ("smp:Unet(aux_params={'classes': 2})", VictimError, "expected no aux_params"),
        ("monai:FlexibleUNet(pretrained=True)", VictimError, "expected no pretrained"),
        ("smp:Unet(decoder_channels=[8])", VictimError, "smp:Unet: .*decoder"),
        ("smp:Unet(nonsense=1)", VictimError, "smp:Unet: .*nonsense"),
        ("monai:UNet(channels=[8, 16], strides=[2, 2, 2, 2], nonsense=1)", VictimError, "nonsense"),
        ("monai:UNet", VictimError, "monai:UNet: .*channels"),
        ("fcn(stride=64)", VictimError, "fcn: expected stride <= 8, got 64"),
        ("vnet(kernel=4)", VictimError, "vnet: expected kernel odd, got 4"),
        ("segnet(width=8)", VictimError, "segnet: .*width"),
        ("segnet(widths=8)", VictimError, "segnet: "),
        ("fc_densenet(layers=[4])", VictimError, r"layers of two blocks or more, got \[4\]"),
        ("fc_densenet(layers=[2, 0])", VictimError, r"layers of two blocks or more, got \[2, 0\]"),
    ],
)
def test_specs_that_are_wrong(text: str, kind: type[BenchError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        built(text, (64, 64))
    assert "\n" not in str(caught.value)


def test_smp_has_no_volumes() -> None:
    with pytest.raises(VictimError, match=r"smp:Unet: expected images of two axes, got size \(8"):
        built("smp:Unet", (8, 8, 8))


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for text in (
        "smp:Unet",  # of itself it would fetch ImageNet weights
        "smp:Unet(encoder_name='tu-resnet18')",
        "monai:FlexibleUNet(backbone='efficientnet-b0')",
    ):
        assert isinstance(built(text, (64, 64)), nn.Module)
    with pytest.warns(DeprecationWarning, match="`timm-` encoders"):  # smp's word, to who asks
        older = built("smp:Unet(encoder_name='timm-efficientnet-b0')", (64, 64))
    assert isinstance(older, nn.Module)
