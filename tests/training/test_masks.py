"""Training on masks: the loss in closed form, augmentation of masks, and toys that learn."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustbench_med.cards import ModelCard, Recipe
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.models import weights
from robustbench_med.models.load import untrained
from robustbench_med.models.operating_point import youden
from robustbench_med.models.sliding import bare
from robustbench_med.training.augment import augment_masks
from robustbench_med.training.masks import loss, mean_dice
from robustbench_med.training.train import measure, train
from robustbench_med.victim import InputContract, Victim
from tests.bench.toys import card_of, dataset_of

# --- the loss ------------------------------------------------------------------------------------


def test_the_loss_in_closed_form() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.5, 0.25, 0.25]])
    logits = p.log().T[None].reshape(1, 3, 2, 2) + 5  # a constant changes nothing
    y = torch.tensor([[[0, 1], [2, -1]]])
    cross = -(math.log(0.7) + math.log(0.8) + math.log(0.4)) / 3
    soft = [(2 * 0.8 + 1) / (1 + 1.3 + 1), (2 * 0.4 + 1) / (1 + 0.6 + 1)]  # classes 1 and 2
    expected = cross + 1 - sum(soft) / 2
    torch.testing.assert_close(loss(logits, y), torch.tensor(expected))


def test_right_and_wrong_masks() -> None:
    y = torch.randint(0, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    sure = 40 * nn.functional.one_hot(y, 3).movedim(-1, 1).float()
    assert loss(sure, y) < 1e-4
    assert loss(sure.roll(1, 1), y) > 39
    empty = torch.zeros(1, 5, 5, dtype=torch.int64)  # an absent class, found absent
    nothing = torch.tensor([40.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 5, 5)
    assert loss(nothing, empty) < 1e-4
    assert torch.isfinite(loss(nothing.flip(1), empty))


def test_one_logit_is_the_pair_of_zero_and_itself() -> None:
    logit = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = (torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1)) > 0).long()
    pair = torch.cat([torch.zeros_like(logit), logit], 1)
    assert loss(logit, y) == loss(pair, y)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_ignored_pixels_do_not_train(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, k, 6, 6, generator=generator).requires_grad_(True)
    y = torch.randint(0, max(k, 2), (2, 6, 6), generator=generator)
    y[:, :2] = -1
    value = loss(logits, y)
    (g,) = torch.autograd.grad(value, logits)
    assert (g[:, :, :2] == 0).all()
    assert (g[:, :, 2:] != 0).all()
    changed = logits.detach().clone()
    changed[:, :, :2] = 100 * torch.randn(2, k, 2, 6, generator=generator)
    assert loss(changed, y) == value
    nowhere = torch.full_like(y, -1)
    (g,) = torch.autograd.grad(loss(logits, nowhere), logits)
    assert (g == 0).all()


# --- masks move with their images ----------------------------------------------------------------

EVERY = ("flip", "flips", "shift", "rotate", "zoom")


def moved(
    x: Tensor, y: Tensor, *moves: str, window: tuple[int, ...] | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    recipe = Recipe.model_validate({"epochs": 1, "augment": moves})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return augment_masks(x, y, recipe, window=window)


def blob(size: tuple[int, ...], n: int = 8) -> tuple[Tensor, Tensor]:
    """Return images that show their own mask: an off-centre box."""
    y = torch.zeros(n, *size, dtype=torch.int64)
    y[(slice(None), *(slice(s // 5, s // 2 + i) for i, s in enumerate(size)))] = 1
    return y[:, None].float(), y


@pytest.mark.parametrize("size", [(24, 24), (24, 32), (16, 16, 20)])
@pytest.mark.parametrize("move", EVERY)
def test_a_mask_moves_with_its_image(size: tuple[int, ...], move: str) -> None:
    x, y = blob(size)
    z, masks = moved(x, y, move)
    assert z.shape == x.shape
    assert masks.shape == y.shape
    assert set(masks.unique().tolist()) <= {-1, 0, 1}
    assert any(not torch.equal(a, b) for a, b in zip(masks, y, strict=True))
    counted = masks >= 0
    drawn = z[:, 0] > 0.5  # the edge of what was resampled linearly
    near = (z[:, 0] - 0.5).abs() < 0.45  # where the two resamplings may round apart
    assert (drawn == (masks == 1))[counted & ~near].all()
    assert (counted & ~near).float().mean() > 0.7
    assert (masks == 1).flatten(1).any(1).all()


def test_flips_turn_every_axis_and_flip_only_the_last() -> None:
    x, y = blob((6, 7, 8), n=40)
    for moves, most in ((("flip",), 2), (("flips",), 8)):
        z, masks = moved(x, y, *moves)
        torch.testing.assert_close(z[:, 0], masks.float(), atol=1e-4, rtol=0)
        assert len({tuple(mask.flatten().tolist()) for mask in masks}) == most
    _, flipped = moved(x, y, "flip")
    for mask in flipped:
        assert torch.equal(mask, y[0]) or torch.equal(mask, y[0].flip(-1))


def test_what_comes_in_from_outside_is_ignored() -> None:
    x = torch.ones(16, 1, 40, 40)
    y = torch.ones(16, 40, 40, dtype=torch.int64)
    z, masks = moved(x, y, "shift")
    torch.testing.assert_close(z, x)  # the border goes on
    assert set(masks.unique().tolist()) == {-1, 1}
    rows = (masks == -1).sum((1, 2)) / 40  # whole rows and columns, 2 pixels at most each way
    assert rows.max() <= 4
    y[:, 0] = -1  # ignored pixels stay ignored
    x, same = moved(x, y)
    assert torch.equal(same, y)


@pytest.mark.parametrize(("size", "window"), [((20, 24), (8, 10)), ((12, 14, 16), (4, 14, 8))])
def test_windows_are_cut_from_image_and_mask_alike(
    size: tuple[int, ...], window: tuple[int, ...]
) -> None:
    numbers = torch.arange(math.prod(size)).view(1, *size)
    y = numbers.expand(2, *size)
    x = y[:, None] / math.prod(size)
    windows = set()
    for seed in range(12):
        z, masks = moved(x, y, window=window, seed=seed)
        assert z.shape[2:] == masks.shape[1:] == window
        torch.testing.assert_close(z[:, 0] * math.prod(size), masks.float(), atol=0.05, rtol=0)
        windows.add(int(masks[0].flatten()[0]))
    assert len(windows) > 4  # at random places


# --- training ------------------------------------------------------------------------------------


def drawn(size: tuple[int, ...], n: int = 16) -> Dataset:
    """Return bright boxes on noise at random places, the last row ignored."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, *size, generator=generator) * 0.4
    y = torch.zeros(n, *size, dtype=torch.int16)
    for i in range(n):
        start = [int(torch.randint(0, s // 2, (), generator=generator)) for s in size]
        image, mask = x[i, 0], y[i]
        for axis, (at, side) in enumerate(zip(start, size, strict=True)):
            image, mask = image.narrow(axis, at, side // 3), mask.narrow(axis, at, side // 3)
        image += 0.5
        mask.fill_(1)
    y[:, -1] = -1
    return dataset_of(x, y, 2, task="segmentation", normal=None)


def card(builder: str, **changed: object) -> ModelCard:
    values = {
        "name": "toy",
        "title": "Toy",
        "family": "toy",
        "dataset": "toy",
        "builder": builder,
        "recipe": Recipe(epochs=16, batch=4, lr=0.02, augment=("flips", "shift", "contrast")),
    }
    return ModelCard.model_validate(values | changed)


@pytest.mark.parametrize(
    ("builder", "size", "window"),
    [
        ("fcn(widths=[8, 8], stride=1)", (16, 24), None),
        ("segnet(widths=[8, 8], convs=1, outputs=1)", (16, 24), None),
        ("vnet(width=4, convs=[1, 1])", (8, 12, 12), (8, 8, 8)),
    ],
)
def test_training_learns_what_can_be_learnt(
    tmp_path: Path, builder: str, size: tuple[int, ...], window: tuple[int, ...] | None
) -> None:
    data = drawn(size)
    trained = train(card(builder, window=window), data, tmp_path / "a")
    assert trained.measured is not None
    assert trained.measured.headline == ("Dice", trained.measured.dice)
    assert trained.measured.accuracy is None
    assert trained.measured.dice is not None
    assert trained.measured.dice > 0.9
    assert trained.measured.gradient_ms > 0
    again = train(card(builder, window=window), data, tmp_path / "b")
    assert again.sha256 == trained.sha256
    victim = untrained(trained, data.card)
    weights.read(bare(victim.module), tmp_path / "a" / trained.weights, sha256=trained.sha256)
    victim.module.eval()
    assert mean_dice(victim, data.batch("test"), data.card) == pytest.approx(
        trained.measured.dice, abs=1e-4
    )


class Fixed(nn.Module):
    """Calls a pixel 1 where the image is above a half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), x - 0.5], 1)


def test_dice_is_the_mean_over_images_and_regions() -> None:
    truth = torch.zeros(4, 2, 4, dtype=torch.int64)
    called = torch.zeros(4, 1, 2, 4)
    truth[0, 0], called[0, 0, 0, :2] = 1, 1  # half of it found: 2/3
    truth[1, 0], called[1, 0, 1] = 1, 1  # none of it: 0
    called[3, 0, 0, 0] = 1  # an empty mask, one pixel called: 0; and image 2, nothing called: 1
    data = dataset_of(called, truth, 2, task="segmentation", normal=None)
    victim = Victim(Fixed(), InputContract(channels=1, size=(2, 4)), chunk=3)
    assert mean_dice(victim, data.batch("test"), data.card) == pytest.approx((2 / 3 + 1) / 4)
    measured = measure(victim, data)
    assert measured.dice == pytest.approx((2 / 3 + 1) / 4, abs=1e-4)
    assert measured.balanced_accuracy is None


def test_masks_have_no_threshold() -> None:
    data = card_of(torch.zeros(1, 1, 8, 8), 2, task="segmentation")
    assert youden(torch.zeros(4, 2, 8, 8), torch.zeros(4, 8, 8, dtype=torch.int64), data) is None
    assert data.outputs == (1, 2)
    assert data.model_copy(update={"task": "multi_label"}).outputs == (2,)
    assert data.model_copy(update={"task": "single_label"}).outputs == (1, 2)
    assert data.model_copy(update={"classes": ("a", "b", "c")}).outputs == (3,)
