"""Detectors: against references, on every task, without leaks, at the rate they promise."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from attacks.pgd import pgd
from defenses.detectors.examples import (
    bank_and_rows,
    draw_training_images,
    examples,
    noisy_images,
)
from defenses.detectors.feature_mixture import feature_mixture, log_likelihood, mixtures
from defenses.detectors.features import activations, layers_of, read_all, reader
from defenses.detectors.fits import fit_imitation, fit_logistic, svm
from defenses.detectors.kernel_density import log_density
from defenses.detectors.lid import dimension
from defenses.detectors.mahalanobis import distance, gaussians
from defenses.detectors.quantised_features import cuts_of, quantised, sloped
from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.datasets.load import load_dataset
from robustbench_med.defense import Defended, Fitting
from robustbench_med.errors import DataError, SpecError, VictimError
from robustbench_med.metrics.detection import detection, split_twins
from robustbench_med.models.load import load_victim
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.objectives.evade_detector import EvadeDetector
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.stored_images import StoredImages
from robustbench_med.types import Batch, Images, PerSample
from robustbench_med.victim import Victim, frozen
from tests.defenses.toys import gaussian_images, toy_batch, toy_fitting, toy_victim
from tests.toys import Small, draws, linear_victim, small_victim, victim_of

CARDS = {n: card for n, card in registry.load("defenses").items() if card.kind == "detector"}
LIGHT: dict[str, dict[str, Any]] = {"deep_features": {"trees": 10}, "lid": {"k": 8}}
TASKS: dict[str, dict[str, Any]] = {
    "two classes": {"k": 2},
    "three classes in colour": {"k": 3, "channels": 3},
    "one logit": {"k": 1},
    "findings": {"k": 3, "task": "multi_label"},
    "volume": {"k": 2, "axes": 3},
}


def defended(name: str, victim: Victim, *, task: Any = "single_label", **sizes: Any) -> Defended:  # noqa: ANN401
    fitting = toy_fitting(victim, task=task, **sizes)
    make: Callable[..., Defended] = registry.function("defenses", CARDS[name])
    return make(victim, fitting=fitting, **LIGHT.get(name, {}))


def suspicion(victim: Victim, x: Images) -> PerSample:
    found = victim.outputs(x).suspicion
    assert found is not None
    return found


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", CARDS)
def test_detector_serves_every_task(name: str, task: str) -> None:
    row = dict(TASKS[task])
    kind = row.pop("task", "single_label")
    victim = toy_victim(row.pop("k"), **row)
    found = defended(name, victim, task=kind)
    x = toy_batch(victim, 6, seed=5).x
    x[0], x[1], x[2, ..., 0] = 0, 1, 0
    judged = suspicion(found.judge, x)
    assert judged.shape == (6,)
    assert torch.isfinite(judged).all()
    assert torch.equal(found.judge.logits(x), victim.logits(x))
    torch.testing.assert_close(suspicion(found.judge, x[3:4]), judged[3:4], rtol=2e-3, atol=2e-3)
    guide = found.guide or found.judge
    with frozen(victim.module):
        leaf = x.clone().requires_grad_(True)
        climbed = guide(leaf).suspicion
        assert climbed is not None
        (g,) = torch.autograd.grad(climbed.sum(), leaf)
    assert torch.isfinite(g).all()
    assert (g[3:] != 0).flatten(1).any(1).all()
    if name != "deep_features":  # whose guide only imitates it; a small spread magnifies rounding
        torch.testing.assert_close(climbed.detach(), judged, rtol=2e-3, atol=2e-3)
    assert all(not part._forward_hooks for part in victim.module.modules())


@pytest.mark.parametrize("name", CARDS)
def test_threshold_reproduces_its_rate_on_fresh_clean_images(name: str) -> None:
    victim, n = toy_victim(2), 1500
    found = defended(name, victim, val=n)
    fresh = suspicion(found.judge, gaussian_images(n, seed=7)) > 0
    val = suspicion(found.judge, gaussian_images(n, seed=2)) > 0
    assert 0 <= 0.05 * n - val.sum() <= (n if name == "deep_features" else 1)  # a forest ties
    # the threshold errs as much as the fresh share: both are of n images
    low, high = stats.binom.interval(0.9999, n, float(val.float().mean()), loc=0)
    slack = np.sqrt(2)
    assert abs(int(fresh.sum()) - int(val.sum())) <= slack * (high - low) / 2


@pytest.mark.parametrize("name", CARDS)
def test_validation_moves_nothing_but_the_threshold(name: str) -> None:
    victim = toy_victim(2)
    fitting = toy_fitting(victim)
    make = registry.function("defenses", CARDS[name])
    other = replace(fitting, val=toy_batch(victim, 50, seed=11))
    x = gaussian_images(20, seed=12)
    scores = []
    for each in (fitting, other):
        found = suspicion(make(victim, fitting=each, **LIGHT.get(name, {})).judge, x).double()
        scores.append(found)
    a, b = scores
    assert not torch.allclose(a, b)  # another threshold and unit
    slope = (b[0] - b[1:]).abs().sum() / (a[0] - a[1:]).abs().sum()
    torch.testing.assert_close((b - b[0]) / slope, a - a[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CARDS)
def test_at_most_two_passes_more(name: str) -> None:
    class Counted(Small):
        seen = 0

        def forward(self, x: Tensor) -> Tensor:
            Counted.seen += len(x)
            return super().forward(x)

    plain = toy_victim(2)
    module = Counted(1, 2)
    module.load_state_dict(plain.module.state_dict())
    victim = replace(plain, module=module.eval())
    found = defended(name, victim)
    x = gaussian_images(10, seed=3)
    for one in (found.judge, found.guide or found.judge):
        Counted.seen = 0
        suspicion(one, x)
        assert 10 <= Counted.seen <= 30


# --- leaks ---------------------------------------------------------------------------------------


def test_bank_and_compared_images_share_no_patient() -> None:
    victim = toy_victim(2)
    fitting = toy_fitting(victim, patients=40)
    batch, y = draw_training_images(fitting, 512, detector="lid")
    bank, rows, owner = bank_and_rows(batch, y, fitting)
    assert bank.patients is not None
    assert rows.patients is not None
    assert not set(bank.patients) & set(rows.patients)
    assert len(bank) + len(rows) == len(batch) == 120
    assert torch.equal(owner, bank.y)


def test_a_twin_planted_under_its_patients_name_does_not_reach_the_bank() -> None:
    victim = toy_victim(2)
    fitting = toy_fitting(victim, patients=40)
    batch, y = draw_training_images(fitting, 512, detector="lid")
    bank, rows, _ = bank_and_rows(batch, y, fitting)
    t = fitting.train
    assert rows.patients is not None
    twins = np.array([f"twin_{i}" for i in range(len(rows))])
    assert t.patients is not None
    planted = replace(
        t,
        x=torch.cat([t.x, rows.x]),
        y=torch.cat([t.y, rows.y]),
        ids=np.concatenate([t.ids, twins]),
        patients=np.concatenate([t.patients, rows.patients]),
    )
    poisoned = replace(fitting, train=planted)
    again, labels = draw_training_images(poisoned, 512, detector="lid")
    assert len(again) == 120 + len(rows)
    found, _, _ = bank_and_rows(again, labels, poisoned)
    assert set(found.ids) == set(bank.ids)


def test_an_own_twin_in_the_bank_does_not_change_the_dimension() -> None:
    generator = torch.Generator().manual_seed(0)
    found, bank = torch.randn(5, 7, generator=generator), torch.randn(60, 7, generator=generator)
    clean = dimension(found, bank, k=10)
    torch.testing.assert_close(dimension(found, torch.cat([bank, found]), k=10)[:1], clean[:1])
    near = dimension(found, torch.cat([bank, found + 0.01]), k=10)
    assert (near < 0.9 * clean).all()  # a near one does: the test can fail


def test_training_images_are_chosen_by_name() -> None:
    victim = toy_victim(2)
    fitting = toy_fitting(victim)
    batch, y = draw_training_images(fitting, 40, detector="lid")
    assert y.bincount().tolist() == [20, 20]
    assert torch.equal(batch.y, y)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    t = fitting.train
    moved = replace(fitting, train=replace(t, x=t.x[order], y=t.y[order], ids=t.ids[order.numpy()]))
    again, _ = draw_training_images(moved, 40, detector="lid")
    assert list(again.ids) == list(batch.ids)
    assert torch.equal(again.x, batch.x)


def test_noise_is_as_large_as_the_attack() -> None:
    victim = toy_victim(2)
    fitting = toy_fitting(victim)
    batch = replace(fitting.train, x=0.4 + 0.2 * fitting.train.x)
    attacked = batch.x + 0.01 * (torch.arange(120) % 3).view(-1, 1, 1, 1)
    noisy = noisy_images(batch, attacked, fitting)
    size = (noisy - batch.x).flatten(1).norm(dim=1)
    torch.testing.assert_close(size, (attacked - batch.x).flatten(1).norm(dim=1))
    assert torch.equal(noisy, noisy_images(batch, attacked, fitting))


def test_stored_images_are_fitted_on_a_few_at_a_time_with_the_same_features() -> None:
    """The reference attacks all images as one tensor, and reads them whole."""
    victim = replace(toy_victim(2), chunk=16)
    fitting = toy_fitting(victim)
    whole = fitting.train
    sizes: list[int] = []

    class Watched(StoredImages):
        def __getitem__(self, rows: Any) -> Images:  # noqa: ANN401
            x = super().__getitem__(rows)
            sizes.append(len(x))
            return x

    rows = np.arange(len(whole), dtype=np.int64)
    stored: Any = Watched(whole.x[:, 0].numpy(), rows)
    watched = replace(fitting, train=replace(whole, x=stored))
    batch, _ = draw_training_images(watched, 512, detector="lid")
    reference, _ = draw_training_images(fitting, 512, detector="lid")
    read = reader(victim)
    found = examples(victim, read, batch, watched)
    with frozen(victim.module):
        attacked = fitting.attacked(reference).detach()
    noisy = noisy_images(reference, attacked, fitting)
    for kind, x in zip(found, (reference.x, noisy, attacked), strict=True):
        for layer, expected in zip(kind, read_all(victim, read, x), strict=True):
            assert torch.equal(layer, expected)
    assert sum(sizes) == len(whole)
    assert max(sizes) == 16


# --- references ----------------------------------------------------------------------------------


def normal(n: int, d: int, *, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_kernel_density_is_scikit_learns() -> None:
    from sklearn.neighbors import KernelDensity

    bank, found = normal(50, 6, seed=0), normal(9, 6, seed=1)
    y, predicted = torch.arange(50) % 2, torch.arange(9) % 2
    ours = log_density(found, predicted, bank, y, 0.7)
    for k in (0, 1):
        fitted = KernelDensity(bandwidth=0.7).fit(bank[y == k].numpy())
        theirs = fitted.score_samples(found[predicted == k].numpy())
        np.testing.assert_allclose(ours[predicted == k], theirs, rtol=1e-4)


def test_mahalanobis_is_scikit_learns_to_the_nearest_class() -> None:
    from sklearn.covariance import LedoitWolf

    y = torch.arange(90) % 3
    bank = normal(90, 5, seed=0) @ normal(5, 5, seed=2) + 3 * y[:, None]
    found = normal(8, 5, seed=1)
    ours = distance(found, gaussians(bank, y))
    means = torch.stack([bank[y == k].mean(0) for k in range(3)])
    fitted = LedoitWolf(assume_centered=True).fit((bank - means[y]).double().numpy())
    each = [fitted.mahalanobis((found - mean).double().numpy()) for mean in means]
    np.testing.assert_allclose(ours, np.min(each, axis=0), rtol=1e-3)


def test_dimension_is_that_of_a_loop() -> None:
    found, bank, k = normal(6, 4, seed=0).numpy(), normal(40, 4, seed=1).numpy(), 12
    expected = []
    for one in found:
        r = np.sort(np.linalg.norm(bank - one, axis=1))[:k]
        expected.append(-1 / np.mean([np.log(each / r[-1]) for each in r]))
    ours = dimension(torch.from_numpy(found), torch.from_numpy(bank), k=k)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_dimension_of_uniform_balls_is_theirs() -> None:
    for d in (2, 6):
        bank = normal(4000, d, seed=d)
        bank = bank / bank.norm(dim=1, keepdim=True)
        share = torch.rand(4000, 1, generator=torch.Generator().manual_seed(9)) ** (1 / d)
        found = dimension(torch.zeros(1, d), bank * share, k=400)
        assert float(found) == pytest.approx(d, rel=0.15)


def test_dimension_is_finite_where_the_bank_is_one_point() -> None:
    same = torch.ones(20, 3)
    assert torch.isfinite(dimension(torch.ones(2, 3), same, k=5)).all()
    assert torch.isfinite(dimension(torch.zeros(2, 3), same, k=5)).all()


def test_machine_decides_as_scikit_learns() -> None:
    from sklearn.svm import SVC

    rows, truth = normal(80, 5, seed=0), np.arange(80) % 2
    rows[truth == 1] += 0.7
    machine = SVC(kernel="rbf").fit(rows.double().numpy(), truth)
    found = normal(9, 5, seed=1)
    theirs = machine.decision_function(found.double().numpy())
    np.testing.assert_allclose(svm(machine, rows)(found), theirs, rtol=1e-4, atol=1e-5)


def test_logistic_regression_decides_as_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    clean, noisy, bad = normal(40, 3, seed=0), normal(40, 3, seed=1), 5 + 3 * normal(40, 3, seed=2)
    ours = fit_logistic([clean, noisy], bad)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    rows = torch.cat([clean, noisy, bad]).double().numpy()
    pipeline.fit(rows, np.repeat([0, 0, 1], 40))
    np.testing.assert_allclose(
        ours(bad), pipeline.decision_function(bad.double().numpy()), rtol=1e-3, atol=1e-4
    )


def test_mixtures_are_scikit_learns() -> None:
    from sklearn.mixture import GaussianMixture

    y = torch.arange(80) % 2
    found = normal(80, 4, seed=0) * (1 + y[:, None])
    layer = mixtures(found, y, components=2, seed=0)
    floor = 1e-3 * float(found.var(0).mean()) + 1e-12
    for k in (0, 1):
        fitted = GaussianMixture(2, covariance_type="diag", reg_covar=floor, random_state=0)
        rows = found[y == k].double().numpy()
        theirs = fitted.fit(rows).score_samples(rows)
        ours = log_likelihood(found[y == k], y[y == k], layer)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_codes_of_the_guide_are_the_judges_and_have_a_slope() -> None:
    clean, found = normal(60, 5, seed=0), normal(8, 5, seed=1).requires_grad_(True)
    cuts = cuts_of(clean, levels=4)
    codes = quantised(clean, cuts)
    assert set(codes.flatten().tolist()) <= {0.0, *(float(torch.tensor(i / 3)) for i in (1, 2, 3))}
    torch.testing.assert_close(codes.mean(0), torch.full((5,), 0.5), atol=0.02, rtol=0)
    soft = sloped(found, cuts)
    torch.testing.assert_close(soft, quantised(found, cuts))
    (g,) = torch.autograd.grad(soft.sum(), found)
    assert (g > 0).all()


def test_a_surrogate_learns_the_answers_it_is_shown() -> None:
    rows = normal(400, 3, seed=0)
    answers = rows[:, 0] * rows[:, 1] + rows[:, 2]
    state = torch.random.get_rng_state()
    found = fit_imitation(rows, answers, seed=0)
    assert torch.equal(state, torch.random.get_rng_state())
    assert float((found(rows) - answers).square().mean()) < 0.05 * float(answers.var())
    torch.testing.assert_close(found(rows), fit_imitation(rows, answers, seed=0)(rows))


# --- layers --------------------------------------------------------------------------------------

ZOO = ["chest_resnet", "chest_densenet", "chest_vgg", "chest_mobilenet", "chest_vit"]


@pytest.mark.parametrize("name", [*ZOO, "dermoscopy_inception"])
def test_penultimate_features_are_what_the_classifier_reads(name: str) -> None:
    data = registry.find("datasets", registry.find("models", name).dataset)
    victim = load_victim(name, data).victim
    x = torch.rand(3, data.channels, *data.size, generator=torch.Generator().manual_seed(0))
    layers = layers_of(victim.module)
    with frozen(victim.module):
        leaf = x.requires_grad_(True)
        found = activations(victim, leaf, layers)
        assert len(found) == len(layers.stages) + 1 >= 4
        assert all(one.ndim == 2 and len(one) == 3 for one in found)
        head = victim.module.get_submodule(layers.head)
        torch.testing.assert_close(head(found[-1]), victim(x).logits)
        (g,) = torch.autograd.grad(torch.cat(found, 1).sum(), leaf)
    assert (g != 0).flatten(1).any(1).all()


def test_stages_are_means_over_places() -> None:
    victim = small_victim(2)
    x = gaussian_images(3, seed=0)
    layers = layers_of(victim.module)
    assert layers.stages == ("features.0", "features.3")
    assert layers.head == "head.1"
    first = activations(victim, x, layers)[0]
    module = victim.module
    assert isinstance(module, Small)
    expected = module.features[0](victim.normalised(x)).mean((2, 3))
    torch.testing.assert_close(first, expected)


def test_a_transform_stays_in_front() -> None:
    victim = replace(small_victim(2), before=lambda x: x * 0)
    layers = layers_of(victim.module)
    a, b = (activations(victim, gaussian_images(2, seed=s), layers)[-1] for s in (0, 1))
    assert torch.equal(a, b)


def test_threads_read_their_own_pass() -> None:
    victim = small_victim(2)
    layers = layers_of(victim.module)
    images = [gaussian_images(4, seed=s) for s in range(4)]
    expected = [activations(victim, x, layers) for x in images]
    wrong: list[int] = []

    def watch(i: int) -> None:
        for _ in range(30):
            found = activations(victim, images[i], layers)
            if not all(torch.equal(a, b) for a, b in zip(found, expected[i], strict=True)):
                wrong.append(i)

    threads = [threading.Thread(target=watch, args=(i,)) for i in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong


def test_hooks_are_removed_after_a_failed_pass() -> None:
    victim = small_victim(2)
    with pytest.raises(RuntimeError):
        activations(victim, torch.zeros(1, 3, 8, 8), layers_of(victim.module))
    for part in victim.module.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


# --- what a person may get wrong -----------------------------------------------------------------


def test_bad_parameters_are_refused() -> None:
    victim = toy_victim(2)
    fitting = toy_fitting(victim)
    rows: list[tuple[str, dict[str, Any], str]] = [
        ("kernel_density", {"bandwidth": -1.0}, "expected bandwidth >= 0, got -1"),
        ("kernel_density", {"fit": 0}, "expected fit > 0, got 0"),
        ("quantised_features", {"levels": 1}, "expected levels >= 2, got 1"),
        ("feature_squeezing", {"bits": 0}, "expected bits > 0, got 0"),
        ("feature_squeezing", {"window": 5}, "expected window 2 or 3, got 5"),
    ]
    for name, wrong, said in rows:
        with pytest.raises(SpecError, match=said):
            registry.function("defenses", CARDS[name])(victim, fitting=fitting, **wrong)


def test_too_few_training_images_are_refused() -> None:
    victim = toy_victim(2)
    fitting = toy_fitting(victim)
    t = fitting.train
    rows = torch.cat([(t.y == 0).nonzero()[:, 0], (t.y == 1).nonzero()[:3, 0]])
    few = replace(t, x=t.x[rows], y=t.y[rows], ids=t.ids[rows.numpy()])
    make = registry.function("defenses", CARDS["mahalanobis"])
    with pytest.raises(DataError, match="mahalanobis: expected at least 4 .* 'class_1', got 3"):
        make(victim, fitting=replace(fitting, train=few))
    make = registry.function("defenses", CARDS["lid"])
    with pytest.raises(DataError, match="lid: expected more than k = 60 .* in the bank, got 60"):
        make(victim, fitting=fitting, k=60)


def test_networks_without_a_linear_classifier_are_refused() -> None:
    with pytest.raises(VictimError, match="expected a network that ends in a linear classifier"):
        layers_of(linear_victim(2).module)

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x.flatten(1), self.head.weight)

    victim = victim_of(Around())
    with pytest.raises(VictimError, match="expected a forward pass through 'head', got one that"):
        activations(victim, gaussian_images(1, seed=0), layers_of(victim.module))


def test_feature_mixture_is_calm_on_clean_features() -> None:
    victim = toy_victim(2)
    guide = feature_mixture(victim, fitting=toy_fitting(victim)).judge
    clean, odd = gaussian_images(40, seed=3), torch.rand(40, 1, 8, 8)
    assert float((suspicion(guide, clean) > 0).float().mean()) < 0.25
    assert suspicion(guide, odd).mean() > suspicion(guide, clean).mean() + 1


# --- a shipped victim ----------------------------------------------------------------------------

SEPARATES = {"lid": 0.75}  # area under the curve of PGD at 4/255; the others 0.85
RADIUS = 4 / 255


class Chest(NamedTuple):
    """A shipped victim and images to fit and to fool detectors with.

    Attributes:
        victim: the victim.
        fitting: fits detectors; training images that several are fitted on are attacked once.
        problem: images to misclassify, without a detector.
        blind: the images of `problem` after an attack that knows no detector.
        clean: images of other patients.
    """

    victim: Victim
    fitting: Fitting
    problem: Problem
    blind: Images
    clean: Images


@pytest.fixture(scope="module")
def chest() -> Chest:
    data = load_dataset("phantom_chest")
    victim = load_victim("chest_resnet", data.card).victim
    crafted: dict[tuple[str, ...], Images] = {}

    def attacked(batch: Batch) -> Images:
        ids = tuple(map(str, batch.ids))
        if ids not in crafted:
            posed = Problem(batch.x, batch.y, Ball("linf", RADIUS), Untargeted(), victim)
            crafted[ids] = pgd(posed, rng=Draws.of(0, ids), steps=10)
        return crafted[ids].clone()

    fitting = Fitting(data.batch("train"), data.batch("val"), data.card, 0, attacked)
    test = data.batch("test", n=160, seed=0)
    rows, clean = split_twins(test.ids, test.patients)
    x, y = test.x[rows], test.y[rows]
    right = (victim.logits(x).argmax(1) == y).nonzero()[:40, 0]
    problem = Problem(x[right], y[right], Ball("linf", RADIUS), Untargeted(), victim)
    with frozen(victim.module):
        # small steps end just beyond the boundary, where a detector of confidence sees them
        blind = pgd(problem, rng=draws(len(problem)), total_step=2.5)
    return Chest(victim, fitting, problem, blind, test.x[clean])


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_who_knows_the_detector_gets_past_it(name: str, chest: Chest) -> None:
    victim, fitting, problem, blind, clean = chest
    make: Callable[..., Defended] = registry.function("defenses", CARDS[name])
    found = make(victim, fitting=fitting)
    with frozen(victim.module):
        scores = [suspicion(found.judge, x).double().numpy() for x in (clean, blind)]
        assert detection(*scores)["auroc"].value > SEPARATES.get(name, 0.85)
        adaptive = replace(
            problem, judge=found.judge, guide=found.guide, objective=EvadeDetector(Untargeted())
        )
        z = pgd(adaptive, rng=draws(len(problem)), loss="selective")
        assert (problem.ball.size(z, problem.x) <= RADIUS * (1 + 1e-5)).all()
        oblivious = float(adaptive.probe(blind).is_final.float().mean())
        known = float(adaptive.probe(z).is_final.float().mean())
    assert known > oblivious + 0.2


@pytest.mark.slow
def test_features_that_follow_clean_ones_get_past_a_detector_never_seen(chest: Chest) -> None:
    victim, fitting, problem, _, _ = chest
    judge = registry.function("defenses", CARDS["kernel_density"])(victim, fitting=fitting).judge
    guide = feature_mixture(victim, fitting=fitting).judge
    posed = replace(problem, judge=judge, guide=guide, objective=EvadeDetector(Untargeted()))
    rng = draws(len(problem))
    with frozen(victim.module):
        blind = posed.probe(pgd(problem, rng=rng)).is_final.float().mean()
        hidden = posed.probe(pgd(posed, rng=rng, loss="joint")).is_final.float().mean()
    assert hidden > blind + 0.2
