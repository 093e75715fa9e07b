"""Peers' attacks under our problem: what comes back, what is counted, what is left untouched."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import random
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import _peer_packages, peers
from robustbench_med import registry
from robustbench_med.bench.attack_spec import resolve_attack
from robustbench_med.bench.suite import Grid
from robustbench_med.cards import AttackCard
from robustbench_med.errors import BenchError, NotInstalledError, SpecError, UnknownNameError
from robustbench_med.objective import Objective
from robustbench_med.objectives.classification import Targeted
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.multilabel import AnyFinding, OneFinding
from robustbench_med.problem import Problem
from robustbench_med.types import Output
from tests.toys import (
    Linear,
    distance,
    draws,
    generic_victim,
    grey_images,
    problem_of,
    small_victim,
    victim_of,
)

PGD = ["torchattacks:PGD", "art:ProjectedGradientDescentPyTorch"]
MINIMAL = {  # with enough steps to come near the boundary, and how near
    "torchattacks:DeepFool": ({}, 1.05),
    "torchattacks:CW": ({}, 2.0),
    "art:DeepFool": ({}, 1.05),
    "art:CarliniL2Method": ({"max_iter": 20, "binary_search_steps": 5}, 1.5),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what ART writes at its first import out of the home."""
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def pose(
    n: int = 6, *, k: int = 3, eps: float | Tensor = 0.1, objective: Objective | None = None
) -> Problem:
    victim = generic_victim(k)
    x = grey_images(n)
    return problem_of(victim, x, victim(x).logits.argmax(1), eps=eps, objective=objective)


def run(name: str, problem: Problem, seed: int = 0, **parameters: Any) -> Tensor:  # noqa: ANN401
    card: AttackCard = registry.find("attacks", name)
    given = {**card.parameters, **parameters}
    found: Tensor = registry.function("attacks", card)(
        problem, rng=draws(len(problem), seed), **given
    )
    return found


@pytest.mark.parametrize("name", PGD)
@pytest.mark.parametrize("k", [2, 3])
def test_pgd_fails_below_the_distance_and_wins_above(name: str, k: int) -> None:
    victim = generic_victim(k)
    x = grey_images(6)
    y = victim(x).logits.argmax(1)
    nearest = float(distance(victim, x, y, "linf").max())
    for eps, wins in ((nearest * 1.1, True), (nearest * 0.05, False)):
        problem = problem_of(victim, x, y, eps=eps)
        z = run(name, problem)
        assert (problem.ball.size(z, x) <= eps * (1 + 1e-5)).all()
        assert z.min() >= 0
        assert z.max() <= 1
        assert z.dtype == x.dtype
        assert not z.requires_grad
        done = problem.probe(z).is_final
        assert done.all() if wins else not done.all()


@pytest.mark.parametrize("name", MINIMAL)
def test_minimum_norm_attacks_come_near_the_boundary(name: str) -> None:
    victim = generic_victim(3)
    x = grey_images(3)
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=torch.inf, norm="l2")
    parameters, slack = MINIMAL[name]
    z = run(name, problem, **parameters)
    nearest = distance(victim, x, y, "l2")
    assert problem.probe(z).is_final.all()
    assert (problem.ball.size(z, x) >= nearest * 0.999).all()
    assert (problem.ball.size(z, x) <= nearest * slack).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_attack_with_a_norm_is_given_that_of_the_ball(norm: Any) -> None:  # noqa: ANN401
    victim = generic_victim(3)
    x = grey_images(4)
    eps = {"linf": 0.02, "l2": 0.1, "l1": 0.3}[norm]
    problem = problem_of(victim, x, victim(x).logits.argmax(1), eps=eps, norm=norm)
    z = run(PGD[1], problem, max_iter=10)
    torch.testing.assert_close(problem.ball.size(z, x), torch.full((4,), eps), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("name", "steps", "forward"),
    [("torchattacks:PGD", {"steps": 4}, 4), ("torchattacks:FGSM", {}, 1)],
)
def test_passes_are_counted(name: str, steps: dict[str, Any], forward: int) -> None:
    problem = pose(6)
    run(name, problem, **steps)
    # one image more is forwarded to learn how many classes there are
    assert problem.counter.forward == 6 * forward + 1
    assert problem.counter.backward == 6 * forward


def test_passes_of_art_are_counted_and_query_attacks_have_no_backward() -> None:
    problem = pose(6)
    run(PGD[1], problem, max_iter=4)
    assert problem.counter.forward >= 24
    assert problem.counter.backward == 24
    queried = pose(6)
    run("torchattacks:Square", queried, n_queries=10)
    assert queried.counter.forward > 10
    assert queried.counter.backward == 0


@pytest.mark.parametrize(("name", "parameters"), [(PGD[0], {}), (PGD[1], {"num_random_init": 1})])
def test_one_seed_gives_one_result_and_another_another(
    name: str, parameters: dict[str, Any]
) -> None:
    short = {"steps" if name == PGD[0] else "max_iter": 2, **parameters}
    first = run(name, pose(), **short)
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(run(name, pose(), **short), first)
    assert not torch.equal(run(name, pose(), seed=1, **short), first)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *((name, {}) for name in PGD),
        ("torchattacks:CW", {"c": 10.0}),
        ("art:SaliencyMapMethod", {}),
        ("torchattacks:FAB", {}),
    ],
)
def test_targeted_attack_reaches_its_class(name: str, parameters: dict[str, Any]) -> None:
    problem = pose(12, eps=0.1, objective=LossOverride(Targeted(1), use_all_steps=True))
    problem = problem.select(problem.objective.applies(problem.y).nonzero()[:, 0])
    assert len(problem) > 3
    assert not problem.probe(problem.x).harm.gt(0).any()
    card: AttackCard = registry.find("attacks", name)
    eps = torch.inf if card.schedule == "distance" else 0.1
    problem = replace(problem, ball=replace(problem.ball, norm=card.norms[0], eps=eps))
    z = run(name, problem, **parameters)
    assert (problem.judge(z).logits.argmax(1) == 1).all()


def test_an_attack_without_a_targeted_mode_says_so() -> None:
    problem = pose(3, objective=Targeted(1))
    for name in ("torchattacks:APGD", "art:SquareAttack"):
        with pytest.raises(SpecError, match=f"{name}: expected an attack with a targeted mode"):
            run(name, problem)


@pytest.mark.parametrize("objective", [AnyFinding(), OneFinding(1), LossOverride(AnyFinding())])
@pytest.mark.parametrize("name", PGD)
def test_several_findings_are_refused(name: str, objective: Objective) -> None:
    victim = generic_victim(3)
    x = grey_images(2)
    problem = problem_of(victim, x, torch.zeros(2, 3).long(), eps=0.1, objective=objective)
    with pytest.raises(SpecError, match=r"expected a single-label task for a peer's attack, got"):
        run(name, problem)


@pytest.mark.parametrize("name", PGD)
def test_one_logit_is_a_pair_to_a_peer(name: str) -> None:
    victim = generic_victim(1)
    x = grey_images(8)
    y = (victim(x).logits[:, 0] > 0).long()
    problem = problem_of(victim, x, y, eps=0.2)
    assert not problem.probe(x).is_final.any()
    assert problem.probe(run(name, problem)).is_final.all()


@pytest.mark.parametrize("name", PGD)
def test_a_radius_a_sample(name: str) -> None:
    eps = torch.tensor([0.02, 0.05, 0.02, 0.05, 0.05])
    problem = pose(5, eps=eps)
    z = run(name, problem)
    torch.testing.assert_close(problem.ball.size(z, problem.x), eps)
    same = torch.full((5,), 0.05)
    assert torch.equal(run(name, pose(5, eps=same)), run(name, pose(5, eps=0.05)))


def test_what_a_peer_needs_is_said() -> None:
    with pytest.raises(SpecError, match="torchattacks:PGD: expected a finite eps, got inf"):
        run(PGD[0], pose(2, eps=torch.inf))
    problem = pose(2)
    region = replace(problem, ball=replace(problem.ball, channels=(0,)))
    with pytest.raises(SpecError, match="expected a ball over the whole image, got channels"):
        run(PGD[0], region)


@pytest.mark.parametrize("name", PGD)
def test_an_empty_batch_and_chunks(name: str) -> None:
    nothing = pose(2).select(torch.zeros(0, dtype=torch.long))
    assert run(name, nothing).shape == nothing.x.shape
    problem = replace(pose(5), chunk=2)
    assert problem.probe(run(name, problem)).is_final.all()


@pytest.mark.parametrize("name", PGD)
def test_a_step_of_0_is_the_peers_share_of_the_radius(name: str) -> None:
    step, share = ("alpha", 0.25) if name == PGD[0] else ("eps_step", 1 / 3)
    fixed: dict[str, Any] = {"random_start": False} if name == PGD[0] else {}
    one = {"steps" if name == PGD[0] else "max_iter": 1, **fixed}
    problem = pose(4, eps=0.06)
    size = problem.ball.size(run(name, problem, **one), problem.x)
    torch.testing.assert_close(size, torch.full((4,), 0.06 * share), rtol=1e-4, atol=0)
    size = problem.ball.size(run(name, problem, **{**one, step: 0.01}), problem.x)
    torch.testing.assert_close(size, torch.full((4,), 0.01), rtol=1e-4, atol=0)


def test_nothing_is_clipped_and_nan_is_the_clean_image(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchattacks

    def reckless(self: object, images: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001
        found = images + 0.5
        found[1] = torch.nan
        return found

    monkeypatch.setattr(torchattacks.FGSM, "forward", reckless)
    problem = pose(3, eps=0.01)
    z = run("torchattacks:FGSM", problem)
    torch.testing.assert_close(z[0], problem.x[0] + 0.5)
    assert torch.equal(z[1], problem.x[1])
    monkeypatch.setattr(torchattacks.FGSM, "forward", lambda _, x, y: x[:, :, :4])  # noqa: ARG005
    with pytest.raises(SpecError, match=r"expected an attack returning \(3, 1, 8, 8\), got"):
        run("torchattacks:FGSM", problem)


def test_a_failure_of_the_peer_is_passed_on() -> None:
    with pytest.raises(IndexError):  # its targeted loss needs four classes
        run("torchattacks:APGDT", pose(2, k=3))


@pytest.mark.parametrize("name", [*PGD, "torchattacks:Square", "art:SquareAttack"])
def test_generators_modes_logging_and_the_image_are_as_before(name: str) -> None:
    victim = small_victim(3)
    x = grey_images(4)
    y = victim(x).logits.argmax(1)
    victim.module.train()  # the bench freezes; here it would be seen if a peer reached it
    victim.module.requires_grad_(False)  # as the bench does: ART would leave gradients in it
    dropout = next(m for m in victim.module.modules() if isinstance(m, nn.Dropout)).eval()
    problem = problem_of(victim, x, y, eps=0.05)
    clean = x.clone()
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:

        def state() -> tuple[Any, ...]:
            root = logging.getLogger()
            return (
                torch.get_rng_state().tolist(),
                tuple(map(str, np.random.get_state())),
                [(m.training, type(m).__name__) for m in victim.module.modules()],
                [p.requires_grad for p in victim.module.parameters()],
                [p.grad is None for p in victim.module.parameters()],
                (list(root.handlers), root.level, root.disabled),
                list(warnings.filters),
            )

        short = {"Square": "n_queries", "SquareAttack": "max_iter", "PGD": "steps"}
        key = short.get(name.partition(":")[2], "max_iter")
        before = state()
        run(name, problem, **{key: 2})
        assert state() == before
    finally:
        logging.getLogger().removeHandler(handler)
    assert not dropout.training
    assert torch.equal(x, clean)


def test_a_victim_that_fails_leaves_the_generators_as_before() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 1:
                raise RuntimeError("out of order")
            return x.flatten(1)[:, :2]

    x = grey_images(3)
    problem = problem_of(victim_of(Failing()), x, torch.zeros(3).long(), eps=0.1)
    before = torch.get_rng_state(), str(np.random.get_state())
    with pytest.raises(RuntimeError, match="out of order"):
        run(PGD[0], problem)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]


def test_the_generator_of_the_standard_library_is_seeded_and_restored() -> None:
    # directly: the type checker of the tests draws from it between our functions
    problem = pose(1)
    with peers._seeded(5, problem.x.device):
        first = random.getrandbits(64)
    before = random.getstate()
    with peers._seeded(5, problem.x.device):
        assert random.getrandbits(64) == first
        after = random.getstate()
    assert after != before
    with peers._seeded(6, problem.x.device):
        assert random.getrandbits(64) != first


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for name in PGD:
        run(name, pose(2, objective=Targeted(0)))
    assert capsys.readouterr() == ("", "")


def test_the_judge_is_attacked_and_not_the_guide() -> None:
    def guide(x: Tensor) -> Output:
        raise AssertionError("the guide was asked")

    problem = replace(pose(3), guide=guide)
    assert problem.probe(run(PGD[0], problem)).is_final.all()


# ---- cards


def test_the_card_is_what_the_plan_needs() -> None:
    grid = Grid(datasets=("d",), attacks=("a",), ladder=(0.1,))
    card, parameters, ladder, trains, _ = resolve_attack("torchattacks:PGD(steps=5)", grid)
    assert (ladder, trains) == ((0.1,), False)
    assert (card.name, card.title, card.version) == ("torchattacks:PGD", "PGD (torchattacks)", 1)
    assert card.source == "torchattacks 3.5.1"
    assert card.summary.endswith("alpha = 0 stands for 0.25 eps.")
    assert parameters == {"alpha": 0.0, "steps": 5, "random_start": True}
    assert (card.schedule, card.norms, card.threat) == ("ascend", ("linf",), "white_box")
    assert registry.passes(card, parameters) == 5
    assert AttackCard.model_validate_json(card.model_dump_json()) == card
    wrong = {
        "torchattacks:PGD(step=5)": "expected a known parameter",
        "torchattacks:PGD(steps=0)": "expected steps > 0, got 0",
        "torchattacks:PGDL2": "expected norm in l2, got 'linf'",
    }
    for text, message in wrong.items():
        with pytest.raises(SpecError, match=message):
            resolve_attack(text, grid)


@pytest.mark.parametrize(
    ("name", "norms", "rungs", "threat"),
    [
        ("torchattacks:CW", ("l2",), "distance", "white_box"),
        ("torchattacks:DeepFool", ("l2",), "distance", "white_box"),
        ("torchattacks:APGD", ("linf", "l2"), "ascend", "white_box"),
        ("torchattacks:PIFGSM", ("linf",), "ascend", "white_box"),
        ("torchattacks:JSMA", ("l0",), "distance", "white_box"),
        ("torchattacks:Pixle", ("l0",), "distance", "query"),
        ("torchattacks:GN", ("linf", "l2", "l1", "l0"), "distance", "control"),
        ("art:FastGradientMethod", ("linf", "l2", "l1"), "ascend", "white_box"),
        ("art:HopSkipJump", ("linf", "l2"), "distance", "query"),
        ("art:CarliniLInfMethod", ("linf",), "distance", "white_box"),
        ("art:ElasticNet", ("l1", "l2"), "distance", "white_box"),
    ],
)
def test_norms_rungs_and_threat(name: str, norms: Any, rungs: str, threat: str) -> None:  # noqa: ANN401
    card: AttackCard = registry.find("attacks", name)
    assert (card.norms, card.schedule, card.threat) == (norms, rungs, threat)


def cards() -> dict[str, AttackCard | BenchError]:
    found: dict[str, AttackCard | BenchError] = {}
    for module, package in _peer_packages._PACKAGES.items():
        with _peer_packages.quiet():
            names = [f"{module}:{one}" for one in package.attacks()]
        for name in names:
            try:
                found[name] = peers.card(name)
            except BenchError as error:
                found[name] = error
    return found


def test_every_public_attack_has_a_card_or_a_reason() -> None:
    found = cards()
    made = {name: card for name, card in found.items() if isinstance(card, AttackCard)}
    assert sum(name.startswith("torchattacks:") for name in made) == 37
    assert sum(name.startswith("art:") for name in made) >= 29
    for name, card in made.items():
        assert json.loads(card.model_dump_json())["parameters"] == card.parameters, name
        assert not {"eps", "norm", "targeted", "verbose", "batch_size"} & set(card.parameters)
        assert set(card.positive) <= set(card.parameters)
        assert registry.passes(card, card.parameters) >= 1, name
        assert card.norms
    assert made["torchattacks:Pixle"].parameters["x_dimensions"] == [2, 10]
    assert isinstance(made["torchattacks:CW"].parameters["c"], float)
    for name, error in found.items():
        if not isinstance(error, AttackCard):
            assert str(error).startswith(f"{name}: expected an attack on images and their labels")


SMOKE: dict[str, dict[str, Any]] = {
    "torchattacks:MIFGSM": {"steps": 2},
    "torchattacks:TPGD": {"steps": 2},
    "torchattacks:TIFGSM": {"steps": 2},
    "torchattacks:PIFGSMPP": {"num_iter_set": 2},
    "torchattacks:VMIFGSM": {"steps": 2, "N": 2},
    "torchattacks:SPSA": {"nb_sample": 4},
    "torchattacks:EADL1": {"max_iterations": 10, "binary_search_steps": 1},
    "torchattacks:PGDRSL2": {"steps": 2},
    "torchattacks:OnePixel": {"steps": 2, "popsize": 2},
    "torchattacks:Pixle": {"restarts": 2, "max_iterations": 2},
    "torchattacks:JSMA": {"gamma": 0.02},
    "art:AutoProjectedGradientDescent": {"max_iter": 3, "nb_random_init": 1},
    "art:BoundaryAttack": {"max_iter": 2},
    "art:HopSkipJump": {"max_iter": 1, "max_eval": 20, "init_eval": 10},
    "art:NewtonFool": {"max_iter": 2},
    "art:ElasticNet": {"max_iter": 2, "binary_search_steps": 1},
    "art:UniversalPerturbation": {"max_iter": 1},
    "art:ShadowAttack": {"nb_steps": 2},
    "art:ZooAttack": {"max_iter": 1, "nb_parallel": 4, "use_resize": False},
    "art:SpatialTransformation": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOKE)
def test_a_dozen_others_run(name: str) -> None:
    victim = small_victim(4, channels=3)
    x = grey_images(3, channels=3)
    y = victim(x).logits.argmax(1)
    card: AttackCard = registry.find("attacks", name)
    eps = 0.1 if card.schedule == "ascend" else torch.inf
    problem = problem_of(victim, x, y, eps=eps, norm=card.norms[0])
    z = run(name, problem, **SMOKE[name])
    assert z.shape == x.shape
    assert torch.isfinite(z).all()
    assert problem.counter.forward > 1


# ---- errors


@pytest.mark.parametrize("how", ["no module", "another package of that name"])
def test_a_peer_that_is_not_installed(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "no module":
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        monkeypatch.setattr(registry, "package", lambda _: "attacks")
    else:

        def missing(name: str) -> str:
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "version", missing)
    for name, package in {PGD[0]: "torchattacks", PGD[1]: "adversarial-robustness-toolbox"}.items():
        with pytest.raises(NotInstalledError) as caught:
            registry.find("attacks", name)
        assert str(caught.value) == (
            f"expected {package} to be installed for '{name}': pip install 'robustbench-med[peers]'"
        )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchattacks:pgd", "did you mean 'torchattacks:PGD'"),
        ("art:DeepFol", "did you mean 'art:DeepFool'"),
        ("torchattack:PGD", "expected a known package of attacks, got 'torchattack': did you mean"),
    ],
)
def test_unknown_names_list_the_known(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match="expected a known") as caught:
        registry.find("attacks", name)
    assert message in str(caught.value)
    assert "LGV" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchattacks:LGV", "one that needs trainloader"),
        ("art:DPatch", "one that attacks another kind of model"),
        ("art:AdversarialPatch", "one that makes a patch"),
    ],
)
def test_attacks_that_cannot_serve_say_why(name: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        registry.find("attacks", name)


# ---- imports


def fresh(code: str, home: Path) -> list[str]:
    """Return the lines that `code` prints in a new interpreter whose home is `home`."""
    kept = {k: v for k, v in os.environ.items() if k not in ("ROBUSTBENCH_MED_CACHE", "HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_no_peer_is_imported_for_another_name(tmp_path: Path) -> None:
    code = (
        "import sys; from robustbench_med import registry\n"
        "registry.function('attacks', registry.find('attacks', 'pgd'))\n"
        "print([m for m in ('art', 'torchattacks', 'attacks.peers') if m in sys.modules])"
    )
    assert fresh(code, tmp_path) == ["[]"]


@pytest.mark.slow
def test_art_writes_nothing_in_the_home_and_leaves_logging_alone(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    code = (
        "import logging, os.path; from robustbench_med import registry\n"
        f"logging.basicConfig(filename={str(log)!r}, filemode='w', level=logging.INFO)\n"
        "logging.getLogger('tests').setLevel(logging.ERROR)\n"
        "import random, torch, numpy as np\n"
        "before = list(logging.getLogger().handlers), os.path.expanduser\n"
        "drawn = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()\n"
        "registry.find('attacks', 'art:ProjectedGradientDescentPyTorch')\n"
        "assert before == (list(logging.getLogger().handlers), os.path.expanduser)\n"
        "assert logging.getLogger('tests').level == logging.ERROR\n"
        "logging.getLogger('mine').info('still here')\n"
        "import art.config; print(art.config.ART_DATA_PATH)\n"
        "from art.config import ART_NUMPY_DTYPE\n"
        "from tests.attacks.test_peers import pose, run\n"
        "run('torchattacks:OnePixel', pose(2), steps=1); run('art:SquareAttack', pose(2))\n"
        "now = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()\n"
        "assert now == drawn"
    )
    (data,) = fresh(code, tmp_path)
    assert Path(data) == tmp_path / "cache" / "robustbench_med" / ".art" / "data"
    assert not (tmp_path / ".art").exists()
    assert "still here" in log.read_text()  # its own dictConfig closes the files of others


def test_a_linear_victim_is_all_a_peer_sees() -> None:
    w = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    victim = victim_of(Linear(w, torch.zeros(2)))
    x = grey_images(2)
    model = peers._PeerModel(problem_of(victim, x, torch.zeros(2).long(), eps=0.1))
    assert [type(m).__name__ for m in model.modules()] == ["_PeerModel"]
    assert [p.shape for p in model.parameters()] == [()]
    z = x.double().requires_grad_(True)
    model(z).sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad[0].flatten(), w.sum(0).double())
