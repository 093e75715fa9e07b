"""Shifts through the bench: plan, shards, scores, audit, saved images and verify."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from robustbench_med import registry
from robustbench_med.bench import adversarial_images, store
from robustbench_med.bench.attack_run import AttackRun, run_attack
from robustbench_med.bench.attack_spec import by_queries, resolve_attack
from robustbench_med.bench.check_context import CheckContext
from robustbench_med.bench.checks import run_checks
from robustbench_med.bench.ladder import Sharding
from robustbench_med.bench.plan import plan
from robustbench_med.bench.record import Stored
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.scoring import score_run
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.suite import Grid, Suite, find_suite, override
from robustbench_med.bench.verify.consistency import contradictions
from robustbench_med.bench.verify.verify import verify
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.errors import SpecError
from robustbench_med.objectives.decide import answer_of
from robustbench_med.victim import Victim
from tests.bench.test_shards import data, same, stored
from tests.bench.test_verify import made
from tests.bench.toys import MODEL, dataset_of, planned_of, prepared_of
from tests.toys import small_mask_victim, small_victim, victim_of

LADDER = (0.25, 0.5, 1.0)
SEARCH = {"draws": 3, "steps": 3}


def run(search: str, size: int | None = None) -> AttackRun:
    toys, victim = data(), replace(small_victim(3), chunk=1)
    planned = planned_of(
        toys,
        "bias_field",
        parameters={"search": search, **SEARCH},
        norm="severity",
        threat="shift",
        ladder=LADDER,
    )
    setup = stored(prepared_of(victim, toys))
    return run_attack(planned, setup, sharding=Sharding(size))


@pytest.mark.parametrize("search", ["random", "worst_of", "climbed", "local"])
def test_a_case_in_shards_gives_the_same(search: str) -> None:
    whole = run(search)
    for size in (1, 4):
        same(run(search, size), whole)


def test_a_random_draw_counts_at_its_own_severity_and_a_search_at_all_above() -> None:
    alone, worst = run("random").rungs, run("worst_of").rungs
    assert torch.allclose(alone["size"], torch.tensor(LADDER)[:, None].expand(3, 11))
    success = worst["success"]
    assert bool((success[1:] >= success[:-1]).all())
    assert bool((success >= alone["success"]).all())


def masks() -> tuple[AttackRun, AttackRun]:
    rng = torch.Generator().manual_seed(0)
    x, victim = torch.rand(4, 1, 8, 8, generator=rng), small_mask_victim(2)
    toys = dataset_of(x, victim.logits(x).argmax(1), 2, task="segmentation")
    fields = {"norm": "severity", "threat": "shift", "ladder": LADDER}
    runs = []
    for search in ("random", "worst_of"):
        parameters = {"search": search, **SEARCH}
        planned = planned_of(toys, "bias_field", parameters=parameters, **fields)
        batch = toys.batch("test")
        setup = AttackSetup(batch, victim, MODEL, toys, answer_of(victim.logits(batch.x)), False)
        runs.append(run_attack(planned, setup))
    return runs[0], runs[1]


def test_masks_keep_the_worst_of_a_search_and_the_draw_alone() -> None:
    alone, worst = masks()
    assert bool((worst.rungs["harm"][1:] >= worst.rungs["harm"][:-1]).all())
    assert bool((worst.rungs["harm"] >= alone.rungs["harm"]).all())
    assert torch.allclose(alone.rungs["size"], torch.tensor(LADDER)[:, None].expand(3, 4))


def test_a_sample_holds_the_parameters_that_make_its_image_again() -> None:
    toys, victim = data(), small_victim(3)
    planned = planned_of(
        toys, "bias_field", parameters=SEARCH, norm="severity", threat="shift", ladder=LADDER
    )
    setup = prepared_of(victim, toys)
    scores = score_run(planned, setup, run_attack(planned, setup))
    assert scores.audit.over_budget == 0
    assert scores.audit.max_size == pytest.approx(LADDER)
    last = scores.samples[scores.samples["eps"] == 1.0]
    theta = [values for values in last["theta"] if len(values)]
    assert len(theta) == 11
    assert max(abs(v) for values in theta for v in values) == pytest.approx(1.0)
    assert last["draw"].nunique() > 1


# --- plan ----------------------------------------------------------------------------------------


def suite_with(**grid: object) -> Suite:
    about = {"name": "toy", "title": "Toy", "summary": "", "source": ""}
    base = {"datasets": ["phantom_fundus"], "victims": ["fundus_resnet"], "n": 4}
    return Suite.model_validate(about | {"seed": 0, "grids": [base | grid]})


def test_shifts_are_measured_in_severity_without_being_told() -> None:
    planned, failures = plan(suite_with(attacks=["bias_field"]))
    assert not failures
    case = planned[0].case
    assert (case.norm, case.threat, case.ladder) == ("severity", "shift", (0.25, 0.5, 0.75, 1.0))


def test_an_option_of_the_command_line_replaces_the_radii_of_a_suite() -> None:
    suite = override(find_suite("quick"), {"attacks": ["bias_field"], "n": 4}, None)
    assert {(g.norm, g.ladder) for g in suite.grids} == {("severity", (0.25, 0.5, 0.75, 1.0))}
    suite = override(find_suite("quick"), {"attacks": ["bias_field"], "severity": ["0.3"]}, None)
    assert {g.ladder for g in suite.grids} == {(0.3,)}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"attacks": ["bias_field", "pgd"], "ladder": [0.1]}, "expected shifts alone"),
        ({"attacks": ["pgd"], "norm": "severity", "ladder": [0.1]}, "expected shifts alone"),
        ({"attacks": ["bias_field"], "ladder": [0.5, 1.5]}, "expected severities above 0 and up"),
        ({"attacks": ["bias_field"], "ladder": ["4gl"]}, "expected severities above 0 and up"),
        ({"attacks": ["bias_field(search='best')"]}, "expected search in random"),
        ({"attacks": ["bias_field"], "surrogates": ["*"]}, "expected an attack by gradients"),
        ({"attacks": ["bias_field"], "budget": "mean_norm"}, "expected neither --budget"),
        ({"attacks": ["bias_field"], "channels": ["R"]}, "expected neither --budget"),
        ({"attacks": ["bias_field(eps=2/255)"]}, "expected severity for a shift, .* got eps"),
        ({"attacks": ["pgd(severity=0.5)"], "ladder": [0.1]}, "expected eps for an attack, .* got"),
    ],
)
def test_what_makes_no_sense_for_a_shift_is_refused(grid: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan(suite_with(**grid))


def test_a_spec_states_the_severity_of_its_shift() -> None:
    planned, _ = plan(suite_with(attacks=["bias_field(severity=[0.1, 0.2])", "motion"]))
    assert [item.case.ladder for item in planned] == [(0.1, 0.2), (0.25, 0.5, 0.75, 1.0)]


@pytest.mark.parametrize(("smallest", "flagged"), [(0.01, True), (0.5, False)])
def test_a_shift_that_leaves_the_images_as_they_are_stored_is_flagged(
    smallest: float, flagged: bool
) -> None:
    toys, victim = data(), small_victim(3)
    ladder = (smallest, 1.0)
    fields = {"norm": "severity", "threat": "shift", "ladder": ladder}
    planned = planned_of(toys, "defocus", parameters=SEARCH | {"strength": 0.3}, **fields)
    setup = prepared_of(victim, toys)
    run = run_attack(planned, setup)
    scores = score_run(planned, setup, run)
    card = registry.find("attacks", "defocus")
    checks, flags = run_checks(CheckContext(planned, setup, run, scores.audit, card))
    raised = [flag for flag in flags if flag.name == "images_unchanged"]
    assert bool(raised) == flagged
    # a check that finds nothing leaves no row, so that records of before stay as they are
    assert any(check.name == "images_unchanged" for check in checks) == flagged
    if flagged:
        assert raised[0].value == 1
        assert raised[0].meaning.endswith("clean images; 100% at severity 0.01.")


def test_a_climb_becomes_a_local_search_on_a_model_without_gradient() -> None:
    grid = Grid(datasets=("toy",), attacks=("bias_field(search='climbed')", "motion"))
    attacks = [resolve_attack(text, grid) for text in grid.attacks]
    model = MODEL.model_copy(update={"queries_only": True})
    left = by_queries(model, attacks, grid, lambda eps: 0.0)
    assert [attack.parameters["search"] for attack in left] == ["local", "worst_of"]


# --- verify --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    attacks = ["bias_field(strength=2.0, draws=4)"]
    folder = tmp_path_factory.mktemp("shifted")
    return made(folder, attacks=attacks, norm="severity", ladder=LADDER)


@pytest.mark.parametrize("images", [False, True])
def test_a_record_is_verified_by_a_rerun_and_from_its_images(kept: Stored, images: bool) -> None:
    assert kept.samples["success"].any()
    assert verify(kept, images=images).word == "match"


def test_a_saved_image_of_other_parameters_is_noticed(kept: Stored, tmp_path: Path) -> None:
    folder = Path(kept.folder)
    saved = adversarial_images.read(folder, kept.record.images)
    assert saved.theta is not None
    forged = saved._replace(theta=saved.theta * 0.5)
    (tmp_path / adversarial_images.FILE).write_bytes(forged.file)
    record = kept.record.model_copy(update={"images": forged.entry})
    found = verify(Stored(record, kept.samples, str(tmp_path)), images=True)
    assert found.word == "mismatch"


def test_parameters_above_their_severity_contradict_a_record(kept: Stored) -> None:
    assert contradictions(kept) == []
    samples = kept.samples.copy()
    samples["theta"] = [[2 * value for value in theta] for theta in samples["theta"]]
    forged = contradictions(kept._replace(samples=samples))
    assert forged == ["theta of the samples is larger than the severity"]
    nameless = kept._replace(samples=kept.samples.drop(columns="theta"))
    assert contradictions(nameless) == ["no column theta in the samples of a shift"]


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["affine(search='random')", "elastic(draws=2)"])
def test_a_record_of_masks_that_moved_is_verified(attack: str, tmp_path: Path) -> None:
    grid = {"datasets": ["phantom_brain"], "victims": ["brain_unet"], "n": 2}
    planned, failures = plan(suite_with(attacks=[attack], ladder=[0.5, 1.0], **grid))
    assert not failures
    quiet = Console(quiet=True)
    assert not run_cases(planned, tmp_path, console=quiet, command="", examples=1, images=True)
    stored = store.read(tmp_path / planned[0].case.id)
    truth = [tuple(pixels) for pixels in stored.samples["truth"]]
    assert "random" not in attack or truth[:2] != truth[-2:]
    assert verify(stored).word == "match"
    assert verify(stored, images=True).word == "match"


# --- a planted victim ----------------------------------------------------------------------------


class BlindToShading(nn.Module):
    """Calls an image by its fine stripes: by the logarithm of the image less its low frequencies.

    A bias field adds a smooth number to the logarithm, so the low pass takes it away; movement
    between the parts of k-space mixes the stripes, which lie in the high frequencies.
    """

    def forward(self, x: Tensor) -> Tensor:
        fine = x.clamp_min(1e-3).log()
        k_space = torch.fft.fft2(fine)
        frequency = torch.fft.fftfreq(x.shape[-1], 1 / x.shape[-1]).abs()
        high = (frequency[:, None] >= 6) | (frequency[None] >= 6)
        fine = torch.fft.ifft2(k_space * high).real
        lying, standing = fine.diff(dim=2).abs(), fine.diff(dim=3).abs()
        score = lying.mean((1, 2, 3)) - standing.mean((1, 2, 3))
        return 30 * torch.stack([-score, score], 1)


def striped() -> tuple[Dataset, Victim]:
    """Return images of lying and standing stripes, and the victim that tells them apart."""
    wave = 0.4 + 0.06 * torch.cos(2 * torch.pi * 8 * torch.arange(32) / 32)
    lying = wave.view(1, 1, 32, 1).expand(8, 1, 32, 32)
    faint = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.1
    x = torch.cat([lying + faint, lying.transpose(2, 3) + faint])
    victim = victim_of(BlindToShading(), size=(32, 32))
    return dataset_of(x, torch.arange(16) // 8 == 0, 2), victim


def test_a_victim_blind_to_shading_stands_under_it_and_falls_under_motion() -> None:
    toys, victim = striped()
    setup = prepared_of(victim, toys)
    right = setup.clean.argmax(1) == setup.batch.y
    assert right.all()
    left = {}
    for name in ("bias_field", "motion"):
        parameters = {"search": "climbed", "draws": 5, "steps": 5}
        planned = planned_of(
            toys, name, parameters=parameters, norm="severity", threat="shift", ladder=(0.5, 1.0)
        )
        left[name] = (~run_attack(planned, setup).rungs["success"]).float().mean(1).tolist()
    assert left["bias_field"] == [1.0, 1.0]
    # standing stripes lie on the centre line of k-space, which stays: every other image falls
    assert left["motion"][1] == 0.5
