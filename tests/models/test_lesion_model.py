"""The lesion model reads an image through the maps of its detector alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_med.errors import VictimError
from robustbench_med.models.build import build
from robustbench_med.models.networks.lesion_model import LesionModel
from robustbench_med.spec import parse


def model() -> LesionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LesionModel(channels=3, outputs=2, kinds=2, widths=(6, 8), hidden=4).eval()


class Painted(nn.Module):
    """A detector whose logits are the image itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def painted(x: Tensor) -> Tensor:
    """Return the features of maps whose log-odds are drawn by hand."""
    net = model()
    net.detector = Painted()  # type: ignore[assignment]
    return net.features(x)


def test_features_are_counted_area_and_strongest_response() -> None:
    x = torch.full((2, 3, 8, 8), -20.0)
    x[:, 0] = 20  # background
    x[0, :, 2:4, 2:5] = torch.tensor([-20.0, 20, -20]).view(3, 1, 1)
    x[1, :, 0, 0] = torch.tensor([0.0, -40, 0]).view(3)  # half a pixel of the second kind
    expected = torch.tensor([[6.0, 0, 1, 0], [0, 0.5, 0, 0.5]])
    expected[:, :2] = expected[:, :2].log1p()
    torch.testing.assert_close(painted(x), expected, atol=1e-5, rtol=0)


def test_features_do_not_depend_on_where_a_lesion_is() -> None:
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(painted(x), painted(x.roll((3, 2), (2, 3))))


def test_maps_are_probabilities_of_each_kind_at_every_pixel() -> None:
    maps = model().maps(torch.rand(2, 3, 17, 20))
    assert maps.shape == (2, 2, 17, 20)
    assert (maps > 0).all()
    assert (maps.sum(1) < 1).all()


def test_the_gradient_reaches_every_pixel_and_the_detector_alone_sees_the_image() -> None:
    net, x = model(), torch.rand(1, 3, 16, 16, requires_grad=True)
    logits = net(x)
    (g,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert (g != 0).any(1).float().mean() > 0.9
    for parameter in net.detector.scores.parameters():
        nn.init.zeros_(parameter)
    # a blind detector makes all images alike
    torch.testing.assert_close(net(x), net(torch.zeros_like(x)))


def test_a_fixed_detector_keeps_weights_and_statistics_while_the_classifier_learns() -> None:
    net = model()
    net.detector.requires_grad_(False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x, y = torch.rand(6, 3, 16, 16), torch.arange(6) % 2
    optimizer = torch.optim.AdamW(net.parameters(), 0.01, weight_decay=0.1)
    net.train()
    assert not net.detector.training
    assert net.classifier.training
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    after = net.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed
    assert all(key.startswith("classifier.") for key in changed)
    net.detector.requires_grad_(True)
    assert net.train().detector.training


def test_a_training_step_lowers_the_loss() -> None:
    net = model().train()
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8) % 2
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    before = nn.functional.cross_entropy(net(x), y)
    before.backward()
    optimizer.step()
    assert nn.functional.cross_entropy(net(x), y) < before


def test_it_is_built_by_its_name() -> None:
    net = build(parse("lesion_model(widths=[4, 8])"), channels=3, outputs=3, size=(64, 64))
    assert isinstance(net, LesionModel)
    assert net(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    assert net.maps(torch.rand(1, 3, 64, 64)).shape[1] == 3
    with pytest.raises(VictimError, match="lesion_model: expected kinds >= 1, got 0"):
        build(parse("lesion_model(kinds=0)"), channels=3, outputs=3, size=(64, 64))
    with pytest.raises(VictimError, match="expected images of two axes, got 3"):
        build(parse("lesion_model"), channels=1, outputs=3, size=(16, 16, 16))
