"""Our classifiers have the layers of their papers, read every pixel and learn."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_med.errors import VictimError
from robustbench_med.models.build import build
from robustbench_med.models.networks import inception_v3, inception_v4
from robustbench_med.models.networks.covid_net import STAGES, CovidNet, pepx
from robustbench_med.models.networks.layers import scaled
from robustbench_med.spec import parse

NARROW = ("covid_net(width=0.0625)", "inception_v3(width=0.125)", "inception_v4(width=0.125)")
INCEPTIONS = ("inception_v3", "inception_v4")


def built(text: str, size: tuple[int, ...], *, channels: int = 1, outputs: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(parse(text), channels=channels, outputs=outputs, size=size)


def full_size(name: str, *, channels: int = 3, outputs: int = 1000) -> nn.Module:
    with torch.device("meta"):
        text = f"{name}(width=1, stem='published')"
        return build(parse(text), channels=channels, outputs=outputs, size=(299, 299))


def settled(module: nn.Module, x: Tensor) -> nn.Module:
    """Return the module in eval mode, with the statistics of these images in its norms."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        module.train()(x)
    return module.eval()


def parameters_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def reached(module: nn.Module, channels: int, side: int = 25) -> tuple[int, int]:
    """Return the height and width of the pixels that the middle of a module's output reads."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_()  # no activation is cut off, so that every pixel in reach counts
    x = torch.rand(1, channels, side, side).add(0.1).requires_grad_()
    output = module.eval()(x)
    assert output.shape[2:] == x.shape[2:]
    (g,) = torch.autograd.grad(output[0, :, side // 2, side // 2].square().sum(), x)
    pixels = (g[0] != 0).any(0)
    return int(pixels.any(1).sum()), int(pixels.any(0).sum())


# --- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (75, 90)])
@pytest.mark.parametrize("text", NARROW)
def test_every_pixel_and_channel_counts(text: str, size: tuple[int, int]) -> None:
    x = torch.rand(4, 2, *size, generator=torch.Generator().manual_seed(0))
    module = settled(built(text, size, channels=2), x)
    logits = module(x.requires_grad_(True))
    assert logits.shape == (4, 3)
    (g,) = torch.autograd.grad(logits.square().sum(), x)
    assert torch.isfinite(g).all()
    # an image that the network does not read everywhere could be attacked only in part
    assert (g != 0).flatten(2).float().mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("text", NARROW)
def test_larger_images(text: str) -> None:
    assert built(text, (128, 128))(torch.rand(2, 1, 128, 128)).shape == (2, 3)


@pytest.mark.parametrize("text", NARROW)
def test_a_training_step_lowers_the_loss(text: str) -> None:
    module = built(text, (64, 64)).train()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(6, 1, 64, 64, generator=generator), torch.arange(6) % 3

    def loss() -> Tensor:
        return functional.cross_entropy(module(x), y)

    before = loss()
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(before, parameters)
    # to first order the step lowers the loss by 0.01
    rate = 0.01 / sum(float(g.square().sum()) for g in gradients)
    with torch.no_grad():
        for parameter, g in zip(parameters, gradients, strict=True):
            parameter.sub_(rate * g)
    assert before - 0.02 < loss() < before - 0.002


def test_the_width_scales_every_channel() -> None:
    for text in ("covid_net", *INCEPTIONS):
        narrow, wide = (built(f"{text}(width={width})", (32, 32)) for width in (0.0625, 0.125))
        # a convolution between two scaled layers has a quarter of the weights at half the width
        assert parameters_of(wide) == pytest.approx(4 * parameters_of(narrow), rel=0.15)
    assert [scaled(0.1)(channels) for channels in (64, 30, 2)] == [6, 3, 1]


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("covid_net", (16, 16, 16), "covid_net: expected images of two axes, got 3"),
        ("inception_v3", (16, 16, 16), "inception_v3: expected images of two axes, got 3"),
        ("inception_v4(width=0)", (64, 64), "inception_v4: expected width > 0, got 0"),
        ("inception_v3(stem='big')", (64, 64), "expected stem 'small' or 'published', got 'big'"),
        ("inception_v4(stem=3)", (64, 64), "expected stem 'small' or 'published', got 3"),
        ("covid_net(depth=3)", (64, 64), "covid_net: .*depth"),
    ],
)
def test_specs_that_are_wrong(text: str, size: tuple[int, ...], message: str) -> None:
    with pytest.raises(VictimError, match=message):
        built(text, size)


# --- the inceptions ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INCEPTIONS)
def test_the_full_size_has_the_weights_of_timm(name: str) -> None:
    ours = full_size(name)
    with torch.device("meta"):
        theirs = timm.create_model(name)

    def shapes(module: nn.Module) -> Counter[tuple[Any, ...]]:
        return Counter(tuple(p.shape) for p in module.parameters())

    assert shapes(ours) == shapes(theirs)
    published = {"inception_v3": 23_834_568, "inception_v4": 42_679_816}
    assert parameters_of(ours) == published[name]


def test_inception_v3_has_the_count_that_bortsova_states_of_keras() -> None:
    net = full_size("inception_v3", outputs=2)
    norms = [m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    # of a norm, Keras counts offset, mean and variance, and this network scale and offset
    assert parameters_of(net) + sum(norms) == 21_806_882


@pytest.mark.parametrize(
    ("name", "convolutions", "maps"), [("inception_v3", 94, 2048), ("inception_v4", 149, 1536)]
)
def test_the_maps_shrink_as_published(name: str, convolutions: int, maps: int) -> None:
    net = full_size(name)
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == convolutions
    x, sides = torch.empty(1, 3, 299, 299, device="meta"), list[int]()
    features = net.features
    assert isinstance(features, nn.Sequential)
    for layer in features:
        x = layer(x)
        sides.append(x.shape[-1])
    blocks = {"inception_v3": (3, 4, 2), "inception_v4": (4, 7, 3)}[name]
    # the stem and a reduction have the size of the modules that follow
    assert Counter(sides) == dict(zip((35, 17, 8), (n + 1 for n in blocks), strict=True))
    assert x.shape[1] == maps


@pytest.mark.parametrize(("side", "maps"), [(128, [31, 15, 7]), (64, [15, 7, 3])])
@pytest.mark.parametrize("name", INCEPTIONS)
def test_the_small_stem_has_half_the_stride(name: str, side: int, maps: list[int]) -> None:
    with torch.device("meta"):
        net = build(parse(name), channels=3, outputs=2, size=(side, side))
    x, sides = torch.empty(1, 3, side, side, device="meta"), list[int]()
    features = net.features
    assert isinstance(features, nn.Sequential)
    for layer in features:
        x = layer(x)
        sides.append(x.shape[-1])
    assert sorted(set(sides), reverse=True) == maps


def test_modules_read_the_pixels_of_their_factorised_kernels() -> None:
    w = scaled(1 / 32)
    v3, v4 = inception_v3, inception_v4
    # two 3x3 read 5x5; two 1x7 and two 7x1 read 13x13; a 1x3 beside a 3x1 adds one pixel each way
    assert reached(v3.module_a(8, w, 32), 8) == (5, 5)
    assert reached(v3.module_b(8, w, 128), 8) == (13, 13)
    assert reached(v3.module_c(8, w), 8) == (5, 5)
    assert reached(v4.module_a(8, w), 8) == (5, 5)
    assert reached(v4.module_b(8, w), 8) == (13, 13)
    assert reached(v4.module_c(8, w), 8) == (5, 5)


# --- COVID-Net -----------------------------------------------------------------------------------


def test_covid_net_has_the_modules_of_its_stages() -> None:
    with torch.device("meta"):
        net = CovidNet(channels=3, width=1)
    stages: list[Any] = list(net.stages)
    assert [len(stage.modules_in_order) for stage in stages] == [3, 4, 6, 3]
    assert net(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 3)
    x, shapes = net.enter(torch.empty(1, 3, 224, 224, device="meta")), list[tuple[int, ...]]()
    for i, stage in enumerate(net.stages):
        x = stage(functional.max_pool2d(x, 2) if i else x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    assert [width for _, width in STAGES] == [shape[0] for shape in shapes]


def test_a_pepx_module_projects_expands_and_looks_around_once() -> None:
    module = pepx(16, 24)
    kernels = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in kernels] == [8, 12, 12, 8, 24]
    assert [m.kernel_size for m in kernels] == [(1, 1), (1, 1), (3, 3), (1, 1), (1, 1)]
    assert [m.groups for m in kernels] == [1, 1, 12, 1, 1]
    assert reached(module, 16) == (3, 3)


def test_long_range_connections_reach_past_every_module() -> None:
    stage: Any = CovidNet(channels=1, width=0.0625).stages[2].eval()
    x = torch.rand(1, 32, 6, 6)
    bridge = stage.bridge(x)
    # with silent modules only the 1x1 convolution of the stage's input is passed on
    for module in stage.modules_in_order:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    torch.testing.assert_close(stage(x), bridge)
    # one module that speaks alone is heard once at the end
    first = stage.modules_in_order[0]
    nn.init.ones_(first[-1][1].bias)
    torch.testing.assert_close(stage(x), bridge + 1)
