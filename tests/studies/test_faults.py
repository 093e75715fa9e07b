"""Faults of published protocols that no attack shows: how models and images were chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from defenses.detectors.lid import dimension
from robustbench_med import registry
from robustbench_med.cards import DatasetCard, Recipe
from robustbench_med.stats.intervals import wilson
from robustbench_med.studies.protocols import run_protocol
from robustbench_med.studies.readings import Answers, change_of, repeated
from robustbench_med.studies.study import studies
from robustbench_med.studies.target import Target
from robustbench_med.training.fit import fit
from robustbench_med.training.validation import scores
from robustbench_med.types import Batch
from robustbench_med.victim import InputContract, Victim
from tests.toys import Linear

SIDE = 4


def noise(n: int, *, seed: int) -> Batch:
    """Return images whose labels say nothing: no victim can be better than chance on new ones."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, SIDE, SIDE, generator=rng)
    return Batch(x, torch.arange(n) % 2, np.array([f"{seed}-{i}" for i in range(n)]))


def trained(seed: int, val: Batch) -> Victim:
    """Return a victim trained on noise, of the epoch that is best on `val`."""
    module = Linear(torch.zeros(2, SIDE**2), torch.zeros(2))
    victim = Victim(module, InputContract(channels=1, size=(SIDE, SIDE)))
    card: DatasetCard = registry.find("datasets", "phantom_chest")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        recipe = Recipe(epochs=12, batch=8, lr=1.0, patience=12)
        fit(victim, noise(40, seed=100 + seed), card, recipe, val=val)
    return victim


def test_an_epoch_chosen_on_the_test_images_is_too_good_on_them() -> None:
    card: DatasetCard = registry.find("datasets", "phantom_chest")
    accuracy: dict[str, list[float]] = {"same": [], "other": []}
    for seed in range(10):
        test = noise(18, seed=200 + seed)
        for kind, val in (("same", test), ("other", noise(18, seed=300 + seed))):
            accuracy[kind].append(scores(trained(seed, val), test, card)["accuracy"])
    same, other = (np.mean(accuracy[kind]) for kind in ("same", "other"))
    # the labels are noise, so that an honest accuracy is one half; ten trainings of each kind
    assert same > 0.57
    assert abs(other - 0.5) < 0.06


def test_the_published_accuracies_of_pal_et_al_are_of_few_images() -> None:
    study = studies()["pal_2021"]
    for row, n, low, high in (
        ("xray_vgg", 18, 5.8, 39.2),
        ("xray_inception", 18, 33.7, 75.4),
        ("ct_vgg", 25, 20.2, 55.5),
        ("ct_inception", 25, 23.4, 59.3),
    ):
        reference = study.reference(row)
        assert reference is not None
        assert reference.value is not None
        right = round(reference.value * n)
        assert right / n == pytest.approx(reference.value, abs=5e-5)
        interval = wilson(right, n)
        assert 100 * interval.low == pytest.approx(low, abs=0.06)
        assert 100 * interval.high == pytest.approx(high, abs=0.06)
    for row in ("xray_vgg", "xray_inception"):
        published = study.row(row).published
        assert published is not None
        assert published.n == 18


def test_0_009_grey_levels_are_lost_in_an_image_file_and_0_009_of_the_range_are_not() -> None:
    study = studies()["pal_2021"]
    published = study.row("xray_vgg").published
    assert published is not None
    scale = next(quirk for quirk in study.quirks if quirk.id == "scale")
    batch = noise(8, seed=0)
    levels = (255 * batch.x).round()
    module = Linear(torch.ones(2, SIDE**2).cumsum(0), torch.zeros(2))
    victim = Victim(module, InputContract(channels=1, size=(SIDE, SIDE)))
    at = Target(victim, levels / 255, batch.y, torch.Generator(), lambda _: batch)
    for protocol, is_stored in ((published.protocol, True), (scale.without["protocol"], False)):
        stored = (255 * run_protocol(protocol, at)).round()
        assert bool((stored != levels).any()) == is_stored


def test_a_neighbour_that_is_the_clean_twin_gives_an_attack_away() -> None:
    rng = torch.Generator().manual_seed(0)
    clean = torch.randn(100, 8, generator=rng)
    attacked = clean + 0.01 * torch.randn(100, 8, generator=rng)
    with_twin = dimension(attacked, clean, k=20)
    others = torch.randn(100, 8, generator=rng)
    without = dimension(attacked, others, k=20)
    # the clean images themselves are left out of their own neighbourhoods
    usual = dimension(clean, clean, k=20)
    told_apart = (with_twin[:, None] < usual).float().mean()
    assert float(told_apart) > 0.9
    assert abs(float((without[:, None] < usual).float().mean()) - 0.5) < 0.1


def test_ten_of_ten_images_leave_an_interval_as_wide_as_the_study_says() -> None:
    what = {quirk.id: quirk.what for quirk in studies()["shah_2018"].quirks}
    interval = wilson(10, 10)
    stated = f"from {100 * interval.low:.0f} to {100 * interval.high:.0f} %"
    assert stated in what["ten_images"]
    assert f"0.5 of 255 is {100 * 0.5 / 255:.2f} %" in what["unit_of_size"]


def test_a_percentage_of_the_clean_area_is_more_than_half_for_a_guess() -> None:
    truth = np.arange(200) % 2
    sure = (np.stack([1 - truth, truth], 1) * 0.8 + 0.1).astype(np.float64)
    rng = np.random.default_rng(0)
    sure[:20] = sure[:20, ::-1]  # an area below 1
    guess = rng.uniform(size=(200, 1))
    answers = Answers(truth, sure, np.concatenate([1 - guess, guess], 1))
    change = change_of(repeated("auc", answers, tuple(map(str, range(200)))))
    assert abs(change.after.value - 0.5) < 0.1
    assert change.after.value / change.before.value > 0.5
