"""FC-DenseNet has the layers, channels and parameters of its paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from robustbench_med.models.networks.fc_densenet import FCDenseNet, _Block

CAMVID = 11  # classes of the data on which the paper counts parameters
PUBLISHED = {
    # layers, growth, layers per block, and the paper's millions of parameters (table 3) where they
    # are known for sure
    "FC-DenseNet56": (56, 12, (4, 4, 4, 4, 4, 4), None),
    "FC-DenseNet67": (67, 16, (5, 5, 5, 5, 5, 5), 3.5),
    "FC-DenseNet103": (103, 16, (4, 5, 7, 10, 12, 15), 9.4),
}


def published(name: str) -> FCDenseNet:
    _, growth, layers, _ = PUBLISHED[name]
    with torch.device("meta"):
        return FCDenseNet(
            axes=2, channels=3, outputs=CAMVID, growth=growth, layers=layers, first=48
        )


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_has_its_layers_and_parameters(name: str) -> None:
    net, (layers, _, _, millions) = published(name), PUBLISHED[name]
    convolutions = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert len(convolutions) == layers
    # the authors' Lasagne counts the mean and variance of a norm with its scale and offset
    statistics = sum(2 * m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    parameters = sum(p.numel() for p in net.parameters()) + statistics
    assert millions is None or round(parameters / 1e6, 1) == millions


def test_the_channels_of_the_largest_network_are_those_of_table_2() -> None:
    net, widths = published("FC-DenseNet103"), []
    for transition in net.transitions:
        assert isinstance(transition, nn.Sequential)
        convolution = transition[2]
        assert isinstance(convolution, nn.Conv2d)
        # without compression a transition passes on all channels
        assert convolution.in_channels == convolution.out_channels
        widths.append(convolution.out_channels)
    assert widths == [112, 192, 304, 464, 656]
    assert [back.in_channels for back in net.back] == [240, 192, 160, 112, 80]
    blocks: list[Any] = list(net.up)
    assert [block.layers[0][0].num_features for block in blocks] == [896, 656, 464, 304, 192]
    assert net.head.in_channels == 256


def test_a_block_returns_only_what_its_layers_add() -> None:
    block = _Block(2, 5, 3, 4, 0.0).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.abs_()  # no activation is cut off, so that every pixel in reach counts
    x = torch.rand(1, 5, 15, 15).add(0.1).requires_grad_()
    y = block(x)
    assert y.shape == (1, 12, 15, 15)
    # the first layer reads 3x3 pixels, the last one 9x9, each through all layers before it
    for first, side in ((0, 3), (9, 9)):
        (g,) = torch.autograd.grad(y[0, first : first + 3, 7, 7].sum(), x, retain_graph=True)
        reached = (g[0] != 0).any(0)
        assert reached.any(0).sum() == reached.any(1).sum() == side


def test_the_last_block_passes_on_its_input_with_its_output() -> None:
    net = FCDenseNet(axes=2, channels=1, outputs=2, growth=3, layers=(2, 2), first=4).eval()
    for block in (net.down[0], net.bottom, net.up[0]):
        for parameter in block.parameters():
            nn.init.zeros_(parameter)
    x = torch.rand(1, 1, 12, 12)
    # nothing is added, so that only the first convolution reaches the head, through the skip
    weight = net.head.weight[:, 6 : 6 + 4]
    expected = nn.functional.conv2d(net.enter(x), weight, net.head.bias)
    torch.testing.assert_close(net(x), expected)


def test_dropout_acts_in_training_alone() -> None:
    net = FCDenseNet(axes=2, channels=1, outputs=2, growth=4, layers=(1, 1), first=4)
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(net.eval()(x), net(x))
    assert not torch.equal(net.train()(x), net(x))
