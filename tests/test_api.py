"""The Python face: each function against what the bench gives for the same case."""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer.core
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

import robustbench_med as rm
from robustbench_med import registry
from robustbench_med.bench import store
from robustbench_med.bench.pack import unpack
from robustbench_med.bench.plan import plan
from robustbench_med.bench.record import Stored
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.suite import Suite
from robustbench_med.errors import (
    BenchError,
    DataError,
    InvalidOutputError,
    SpecError,
    UnknownNameError,
    VictimError,
)
from robustbench_med.types import Batch
from tests.bench.toys import save_npz, save_timm
from tests.toys import Pointwise, SmallMasks

CHECKOUT = Path(__file__).parents[1]
PGD = "pgd(steps=5)"
EPS = "1/255,2/255"


class Net(nn.Module):
    """A small network; `bend` is seen neither in its weights nor where it prints."""

    def __init__(self, width: int = 4, outputs: int = 2) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, width, 3, stride=2)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(16 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.norm(self.body(x)).relu(), 4)
        evaluation: Tensor = 4 * self.head(x.flatten(1))
        return evaluation


class Bent(Net):
    """The same weights in other code."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 3


class Broken(Net):
    """Answers NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.nan


def net_of(kind: type[Net] = Net, seed: int = 0, **arguments: Any) -> Net:  # noqa: ANN401
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(**arguments)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of one's own in the working folder."""
    monkeypatch.chdir(tmp_path)
    return str(save_npz(tmp_path / "mine.npz", n=16).name)


def numbers(records: list[Stored]) -> list[str]:
    fields = {"rungs", "radii", "audit", "checks", "flags", "threshold", "distance"}
    return [stored.record.model_dump_json(include=fields) for stored in records]


def lines(records: list[Stored]) -> list[str]:
    return [stored.record.model_dump_json() for stored in records]


def frozen_copy(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, robustbench_med as rm; assert 'evaluate' in dir(rm); "
        "heavy = {'torch', 'numpy', 'pandas', 'pydantic', 'timm'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT)


def test_the_face_is_what_it_says() -> None:
    for name in rm.__all__:
        assert getattr(rm, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'evaluated'"):
        _ = rm.evaluated


# --- evaluate ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_shipped_model_has_the_record_that_a_suite_gives_it(tmp_path: Path) -> None:
    attacks = ("fgsm", PGD)
    grid: dict[str, Any] = {"datasets": ["phantom_fundus"], "victims": ["fundus_resnet"]}
    grid |= {"attacks": attacks, "ladder": ["1/255", "2/255"], "n": 6}
    suite = Suite.model_validate({"name": "s", "title": "S", "seed": 3, "grids": [grid]})
    planned, _ = plan(suite)
    run_cases(planned, tmp_path, console=Console(quiet=True), command="run", examples=0)
    expected = [store.read(tmp_path / resolved.case.id) for resolved in planned]
    data = planned[0].data
    evaluation = rm.evaluate("fundus_resnet", data, attacks, eps=EPS, n=6, seed=3)
    assert [stored.record.case for stored in evaluation.records] == [
        stored.record.case for stored in expected
    ]
    assert numbers(evaluation.records) == numbers(expected)
    for stored, second in zip(evaluation.records, expected, strict=True):
        pd.testing.assert_frame_equal(stored.samples, second.samples)
        assert stored.folder == ""
    # what is finished in a folder is read there and not computed again
    again = rm.evaluate(
        rm.load_model("fundus_resnet"), data, attacks, eps=EPS, n=6, seed=3, results=tmp_path
    )
    assert lines(again.records) == lines(expected)


def test_committed_records_are_read_and_agree_with_their_board(tmp_path: Path) -> None:
    attacks = ["fgsm", "pgd(steps=20)", "deepfool"]
    ladder = ["0.5/255", "1/255", "2/255", "4/255", "8/255"]
    unpack(CHECKOUT / "results" / "quick", tmp_path)
    before = {path: path.stat().st_mtime for path in tmp_path.glob("*/record.json")}
    evaluation = rm.evaluate(
        "fundus_resnet", "phantom_fundus", attacks, eps=ladder, n=64, results=tmp_path
    )
    assert {path: path.stat().st_mtime for path in tmp_path.glob("*/record.json")} == before
    pages: Any = registry.module("leaderboard")
    (board,) = pages.make_boards(evaluation.records)
    (row,) = board.rows
    assert [evaluation.at(eps) for eps in evaluation.radii] == list(row.worst)
    assert evaluation.clean_interval == row.clean
    assert evaluation.accuracy < evaluation.at(0.5 / 255).value


def test_the_worst_case_is_taken_image_by_image(mine: str) -> None:
    net = net_of()
    specs = ["fgsm(eps=1/255)", "pgd(steps=5, eps=[1/255, 4/255])", "noise(eps=8/255)"]
    evaluation = rm.evaluate(net, mine, specs)
    assert evaluation.radii == (1 / 255, 4 / 255, 8 / 255)
    tables = [stored.samples for stored in evaluation.records]

    def right(table: pd.DataFrame, eps: float) -> Any:  # noqa: ANN401
        return table[np.isclose(table["eps"], eps)].set_index("sample")["correct"]

    clean = right(tables[0], 0)
    at_one = clean & right(tables[0], 1 / 255) & right(tables[1], 1 / 255)
    at_four = clean & right(tables[0], 1 / 255) & right(tables[1], 4 / 255)
    at_eight = at_four & right(tables[2], 8 / 255)
    assert evaluation.clean == clean.mean() > 0
    assert evaluation.at(1 / 255).value == at_one.mean()
    assert evaluation.at(4 / 255).value == at_four.mean() < at_one.mean()
    assert evaluation.accuracy == evaluation.interval.value == at_eight.mean()
    assert evaluation.interval.low <= evaluation.accuracy <= evaluation.interval.high
    assert evaluation.clean_interval.low < evaluation.clean < evaluation.clean_interval.high
    broken = pd.concat([table.groupby("sample")["success"].any() for table in tables], axis=1)
    attacked = tables[0].groupby("sample")["attacked"].all()
    assert evaluation.attack_success == broken.any(axis=1)[attacked].mean()
    assert len(evaluation.samples) == sum(map(len, tables))
    assert set(evaluation.samples["attack"]) == {"fgsm", "pgd", "noise"}
    assert evaluation.flags == tuple(
        flag for stored in evaluation.records for flag in stored.record.flags
    )
    message = f"at {8 / 255:.5f} {evaluation.accuracy:.3f} ({evaluation.interval.low:.3f} to"
    assert repr(evaluation).startswith(
        f"<Evaluation of module:Net on {mine}: clean {evaluation.clean:.3f}"
    )
    assert f"under fgsm, pgd, noise {message}" in repr(evaluation)
    for eps in (3 / 255, 1.0, -1.0):
        with pytest.raises(
            SpecError, match=r"expected a radius that was attacked \(0, 0.003.* got"
        ):
            evaluation.at(eps)
    with pytest.raises(SpecError, match="expected masks, got labels: read .accuracy"):
        _ = evaluation.dice


def test_an_interval_counts_patients_and_not_images(mine: str) -> None:
    evaluation = rm.evaluate(net_of(), mine, "fgsm", eps=2 / 255)
    same = rm.evaluate(net_of(), mine, "fgsm", eps=[2 / 255])
    assert numbers(same.records) == numbers(evaluation.records)
    alone = save_npz(Path("alone.npz"), n=16, test_patients=None)
    assert evaluation.records[0].record.patients == 8
    second = rm.evaluate(net_of(), alone, "fgsm", eps=2 / 255)
    assert second.accuracy == evaluation.accuracy
    assert (
        second.interval.high - second.interval.low
        < evaluation.interval.high - evaluation.interval.low
    )


def test_another_objective_counts_the_images_it_is_not_reached_on(mine: str) -> None:
    evaluation = rm.evaluate(net_of(), mine, PGD, eps="4/255", objective="targeted(target=1)")
    last = evaluation.samples[evaluation.samples["eps"] > 0]
    aimed = last[last["attacked"]]
    assert evaluation.accuracy == 1 - aimed["success"].mean()
    assert evaluation.attack_success == aimed["success"].mean()


def test_masks_have_a_dice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split in ("val", "test"):
        images = rng.integers(0, 256, (6, 16, 16), dtype=np.uint8)
        arrays |= {f"{split}_images": images, f"{split}_masks": (images > 127).astype(np.uint8)}
    np.savez(tmp_path / "masks.npz", **arrays)
    w = torch.tensor([[0.0], [20.0]])
    module = Pointwise(w, torch.tensor([0.0, -10.0]))  # foreground where brighter than 0.5
    evaluation = rm.evaluate(module, tmp_path / "masks.npz", "segpgd(steps=20)", eps=["8/255", 0.1])
    assert evaluation.clean == 1
    # each pixel is a linear victim of its own: all nearer than eps to 0.5 turn, no other does
    x = arrays["test_images"] / 255
    for eps in (8 / 255, 0.1):
        mask = (x > 0.5 + eps).reshape(6, -1).sum(1)
        truth, turned = (x > 0.5).reshape(6, -1).sum(1), ((x < 0.5) & (x > 0.5 - eps))
        dice = 2 * mask / (truth + mask + turned.reshape(6, -1).sum(1))
        assert evaluation.at(eps).value == pytest.approx(dice.mean(), abs=0.02)
    assert evaluation.dice == evaluation.at(0.1).value
    assert 0 < evaluation.dice < evaluation.at(8 / 255).value < 1
    with pytest.raises(SpecError, match="expected labels, got masks: read .dice"):
        _ = evaluation.accuracy
    result = rm.attack(module, tmp_path / "masks.npz", "segpgd(steps=20)", eps=0.1)
    called = (result.z[:, 0] > 0.5).long()
    assert torch.equal(result.output.long(), called)
    batch = rm.load_dataset(tmp_path / "masks.npz").batch("test")
    same = rm.attack(module, Batch(batch.x, batch.y, batch.ids), "segpgd(steps=20)", eps=0.1)
    assert float((same.z - same.x).abs().max()) == pytest.approx(0.1, abs=1e-6)


def test_a_run_says_how_to_repeat_it(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = save_timm(Path("w.safetensors"))
    evaluation = rm.evaluate(text, mine, PGD, eps=EPS, n=5, seed=2, defense="jpeg(quality=50)")
    words = shlex.split(evaluation.records[0].record.provenance.command, comments=True)
    assert words[:2] == ["python", "-c"]
    repeated: list[Any] = []

    def watched(*args: Any, **options: Any) -> None:  # noqa: ANN401
        repeated.append(rm.evaluate(*args, **options))

    code = words[2].replace("evaluate(", "watched(")
    exec(code, {"watched": watched})  # noqa: S102
    assert repeated[0].records[0].record.case == evaluation.records[0].record.case
    wrapped = rm.evaluate(net_of(), rm.load_dataset(mine), PGD, eps=EPS, n=5)
    assert "evaluate(<Net>, <Dataset>" in wrapped.records[0].record.provenance.command


def test_a_severity_is_that_of_a_shift_and_its_command_says_so(mine: str) -> None:
    evaluation = rm.evaluate(net_of(), mine, "bias_field", severity=[0.5, 1], n=5)
    assert evaluation.radii == (0.5, 1.0)
    assert "severity=(0.5, 1)" in evaluation.records[0].record.provenance.command
    result = rm.attack(net_of(), mine, "bias_field(severity=0.5)", n=5)
    again = rm.attack(net_of(), mine, "bias_field", severity="0.5", n=5)
    assert torch.equal(result.z, again.z)


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"eps": None}, SpecError, "pgd: expected eps, the radii to score at"),
        ({"eps": "2"}, SpecError, r"expected eps <= 1 .*2 grey levels are 2/255"),
        ({"eps": "-1"}, SpecError, "expected eps >= 0, got -1"),
        ({"attacks": "bias_field"}, SpecError, "expected severity for shifts, .* got eps"),
        ({"severity": 0.5}, SpecError, "expected eps for attacks, .* got severity"),
        ({"n": 0}, SpecError, r"arguments: grids.0.n: .* got 0"),
        ({"attacks": "pgdd"}, UnknownNameError, "did you mean 'pgd'"),
        ({"attacks": []}, SpecError, r"arguments: grids.0.attacks: .*at least 1"),
        ({"norm": "l1", "attacks": "square"}, SpecError, "square: expected norm in .* got 'l1'"),
        ({"chanels": ["T1"]}, SpecError, "arguments: expected no 'chanels'"),
        ({"data": "gone.npz"}, DataError, "gone.npz"),
        ({"data": "phantom_brian"}, UnknownNameError, "did you mean 'phantom_brain'"),
        ({"split": "train"}, DataError, "train"),
        ({"objective": "finding(index=0)"}, SpecError, "expected an objective for single_label"),
        ({"defense": "pgd_at"}, SpecError, "run `train CARD --defense pgd_at`"),
        ({"model": "segnet(weights='gone')"}, VictimError, "expected a weights file at gone"),
        ({"model": "chest_resnet"}, VictimError, "chest_resnet: expected size .* choose a victim"),
        ({"model": "*"}, SpecError, "expected a victim for mine, got none shipped"),
        ({"model": "segnet(weights='w')", "mean": [0.5]}, SpecError, "with a torch module alone"),
        ({"device": "abacus"}, SpecError, "expected a device of this machine"),
    ],
)
def test_mistakes_cost_one_line(
    mine: str, changed: dict[str, Any], kind: type[BenchError], message: str
) -> None:
    arguments: dict[str, Any] = {"model": net_of(), "data": mine, "attacks": PGD, "eps": EPS}
    arguments |= changed
    with pytest.raises(kind, match=message) as caught:
        rm.evaluate(**arguments)
    assert "\n" not in str(caught.value)


def test_a_name_that_stands_for_several_models_is_refused() -> None:
    with pytest.raises(SpecError, match=r"expected one model, got '\*', which stands for several"):
        rm.evaluate("*", "phantom_fundus", PGD, eps=EPS, n=2)


def test_a_model_that_cannot_be_scored_has_no_score(mine: str) -> None:
    with pytest.raises(InvalidOutputError, match="module:Broken · pgd: expected finite logits"):
        rm.evaluate(net_of(Broken), mine, PGD, eps=EPS, results="kept")
    (result,) = store.read_all(Path("kept"))[0]
    assert result.record.status == "invalid"

    class Deaf(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach().round())

    with pytest.raises(
        BenchError, match="not scored: .*module:Deaf.* expected a victim with gradients"
    ):
        rm.evaluate(net_of(Deaf), mine, PGD, eps=EPS)


# --- modules of one's own ------------------------------------------------------------------------


@pytest.mark.slow  # timm is imported
def test_a_module_is_the_model_that_its_spec_names(mine: str) -> None:
    import timm

    text = save_timm(Path("w.safetensors"))
    module = timm.create_model("test_resnet", in_chans=1, num_classes=2)
    loaded = rm.load_model(text, dataset=mine)
    module.load_state_dict(loaded.victim.module.state_dict())
    options: dict[str, Any] = {"eps": EPS, "n": 8}
    by_name = rm.evaluate(text, mine, ["fgsm", PGD], **options)
    mean, std = loaded.card.mean, loaded.card.std
    handed_in = rm.evaluate(module, mine, ["fgsm", PGD], mean=mean, std=std, **options)
    assert numbers(handed_in.records) == numbers(by_name.records)
    assert "model, code and weights are the user's own" in handed_in.records[0].record.notes[0]
    again = rm.evaluate(loaded, mine, ["fgsm", PGD], **options)
    assert [stored.record.case for stored in again.records] == [
        o.record.case for o in by_name.records
    ]
    as_model = rm.load_model(module, dataset=mine, mean=mean, std=std)
    third = rm.evaluate(as_model, mine, ["fgsm", PGD], **options)
    assert [stored.record.case for stored in third.records] == [
        o.record.case for o in handed_in.records
    ]
    with torch.no_grad():
        next(loaded.victim.module.parameters()).add_(1)
    with pytest.raises(VictimError, match="expected the weights it was loaded with, got others"):
        rm.evaluate(loaded, mine, PGD, **options)


def test_a_module_is_left_as_it_was(mine: str) -> None:
    net = net_of().train()
    net.norm.eval()
    before = frozen_copy(net)
    rm.evaluate(net, mine, PGD, eps=EPS)
    rm.load_model(net, dataset=mine)(torch.rand(3, 1, 32, 32))
    assert net.training
    assert net.head.training
    assert not net.norm.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


def test_records_tell_weights_code_and_statistics_apart(mine: str) -> None:
    def hash_of(net: nn.Module, **options: Any) -> str:  # noqa: ANN401
        return rm.load_model(net, dataset=mine, **options).sha256

    module = net_of()
    assert hash_of(module) == hash_of(net_of()) == hash_of(module.train())
    bent = net_of(Bent)
    assert all(torch.equal(bent.state_dict()[key], v) for key, v in module.state_dict().items())
    others = [
        hash_of(bent),
        hash_of(net_of(seed=1)),
        hash_of(module, mean=[0.5]),
        hash_of(module, std=[2.0]),
    ]
    moved = net_of()
    moved.norm.register_buffer("running_mean", torch.ones(4))
    others.append(hash_of(moved))
    warm = net_of()
    warm.temperature = 2.0  # type: ignore[assignment]
    others.append(hash_of(warm))
    hidden = net_of()
    hidden.register_buffer("scale", torch.ones(1), persistent=False)
    others.append(hash_of(hidden))
    for value in (
        torch.ones(1),
        {"a": torch.zeros(1)},
        np.ones(2),
        [np.zeros(2)],
        {1, 2},
        range(3),
    ):
        odd = net_of()
        odd._odd = value  # type: ignore[assignment]
        assert hash_of(odd) == hash_of(odd)
        others.append(hash_of(odd))
    for seed in (2, 3):
        outside = net_of()
        outside.__dict__["kept"] = [net_of(seed=seed), outside]  # torch does not know of it
        others.append(hash_of(outside))
    typed: dict[str, Any] = {"Net": Net}  # classes typed in have no file to read
    for code in ("x + 1", "x - 1", "x + 2"):
        exec(  # noqa: S102
            f"class Typed(Net):\n def forward(self, x): return Net.forward(self, {code})", typed
        )
        others.append(hash_of(net_of(typed["Typed"])))
    assert len({hash_of(module), *others}) == len(others) + 1


def test_finished_cases_of_another_module_are_not_taken(mine: str) -> None:
    first = rm.evaluate(net_of(), mine, PGD, eps=EPS, results="kept")
    second = rm.evaluate(net_of(seed=1), mine, PGD, eps=EPS, results="kept")
    assert first.records[0].record.case_id != second.records[0].record.case_id
    assert (
        first.records[0].record.case.victim == second.records[0].record.case.victim == "module:Net"
    )
    named = rm.evaluate(net_of(), mine, PGD, eps=EPS, results="kept", name="baseline")
    assert named.records[0].record.model_card.title == "baseline"
    assert named.records[0].record.case.victim == "module:baseline"
    assert len(list(Path("kept").glob("*/record.json"))) == 3


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (net_of(outputs=3), "expected 1 or 2 logits for this data, got outputs"),
        (nn.Linear(3, 3), "expected a model that reads .1, 32, 32. images, got: "),
        (SmallMasks(1, 2), "expected 1 or 2 logits for this data, got outputs"),
    ],
)
def test_modules_that_do_not_fit_the_data(mine: str, module: nn.Module, message: str) -> None:
    for ask in (rm.load_model, lambda model, dataset: rm.evaluate(model, dataset, PGD, eps=EPS)):
        with pytest.raises(VictimError, match=message):
            ask(module, dataset=mine)


def test_a_contract_says_what_a_module_returns(mine: str) -> None:
    from robustbench_med.victim import InputContract

    net = net_of()
    likely = nn.Sequential(net, nn.Softmax(dim=1))
    contract = InputContract(1, (32, 32), returns="probabilities")
    model = rm.load_model(likely, dataset=mine, contract=contract)
    x = torch.rand(2, 1, 32, 32)
    log_probabilities = net.eval()(x).log_softmax(1)
    torch.testing.assert_close(model(x).logits, log_probabilities)
    evaluation = rm.evaluate(model, mine, PGD, eps=EPS)
    flags = [stored.name for stored in evaluation.flags]
    assert "probabilities" not in " ".join(flags)
    with pytest.raises(SpecError, match="expected contract with a torch module alone"):
        rm.load_model("chest_resnet", contract=contract)
    with pytest.raises(SpecError, match=r"expected dataset=... with a model of your own, got none"):
        rm.load_model(net)


# --- FILE.py:FACTORY -----------------------------------------------------------------------------

FACTORY = """
import torch
from torch import nn
from beside import head

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, width, 3, stride=2), head(width)

    def forward(self, x):
        return self.head(nn.functional.adaptive_avg_pool2d(self.body(x).relu(), 4).flatten(1))

def make(width=4):
    return Net(width)

def raises():
    raise RuntimeError("no such thing\\nat all")

def leaves():
    raise SystemExit(3)

def nothing():
    return None

number = 3
"""


@pytest.fixture
def factory(mine: str) -> Path:
    Path("nets").mkdir()
    Path("nets/beside.py").write_text(
        "from torch import nn\ndef head(width):\n    return nn.Linear(16 * width, 2)\n"
    )
    path = Path("nets/model.py")
    path.write_text(FACTORY)
    return path


def test_a_factory_is_a_victim(mine: str, factory: Path) -> None:
    before = list(sys.path)
    text = f"{factory}:make"
    state = torch.random.get_rng_state()
    evaluation = rm.evaluate(text, mine, PGD, eps=EPS)
    assert torch.equal(state, torch.random.get_rng_state())
    assert sys.path == before
    record = evaluation.records[0].record
    assert record.case.victim == text
    assert record.model_card.title == "model.py:make"
    assert "model, code and weights are the user's own" in record.notes[0]
    # the same model, handed in
    module = rm.load_model(text, dataset=mine).victim.module
    handed_in = rm.evaluate(module, mine, PGD, eps=EPS)
    assert numbers(handed_in.records) == numbers(evaluation.records)
    again = rm.evaluate(f"{factory.resolve()}:make()", mine, PGD, eps=EPS)
    assert numbers(again.records) == numbers(evaluation.records)


def test_what_a_factory_makes_is_hashed(mine: str, factory: Path) -> None:
    def hash_of(text: str) -> str:
        return rm.load_model(text, dataset=mine).sha256

    text = f"{factory}:make"
    first = hash_of(text)
    assert hash_of(text) == first
    module = rm.load_model(f"{factory}:make(width=6)", dataset=mine).victim.module
    save_file({key: value + 1 for key, value in module.state_dict().items()}, "w.safetensors")
    wide = f"{factory}:make(width=6, weights='w.safetensors', mean=[0.5], std=[0.25])"
    second = rm.load_model(wide, dataset=mine)
    assert second.card.mean == (0.5,)
    assert all(
        torch.equal(value, module.state_dict()[key] + 1)
        for key, value in second.victim.module.state_dict().items()
    )
    hashes = {first, second.sha256, hash_of(f"{factory}:make(width=6)")}
    factory.write_text(FACTORY + "\n# changed\n")
    hashes.add(hash_of(text))
    factory.write_text(FACTORY.replace(".relu()", ".tanh()"))
    hashes.add(hash_of(text))
    factory.write_text(FACTORY)
    assert hash_of(text) == first
    beside = factory.parent / "beside.py"
    os.utime(beside, (0, 0))  # a compiled copy is told by its time
    beside.write_text(
        "from torch import nn\nclass Twice(nn.Linear):\n    def forward(self, x):\n"
        "        return 2 * super().forward(x)\n"
        "def head(width):\n    return Twice(16 * width, 2)\n"
    )
    hashes.add(hash_of(text))
    beside.write_text(beside.read_text().replace("2 *", "3 *") + "# longer\n")
    hashes.add(hash_of(text))
    assert len(hashes) == 7
    assert "beside" not in sys.modules


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("gone.py:make", VictimError, "gone.py:make: expected a Python file at gone.py, got none"),
        ("nets/model.py:mak", VictimError, "expected a function 'mak' in model.py, got none"),
        ("nets/model.py:number", VictimError, "expected a function 'number' in model.py, got none"),
        ("nets/model.py:raises", VictimError, "code that runs, got RuntimeError: no such thing$"),
        ("nets/model.py:leaves", VictimError, "code that runs, got SystemExit: 3"),
        ("nets/model.py:nothing", VictimError, "returns a torch nn.Module, got NoneType"),
        ("nets/model.py:make(depth=2)", VictimError, "code that runs, got TypeError: .*'depth'"),
        ("nets/model.py:make(pretrained=True)", SpecError, "parameter that the factory takes"),
        (
            "nets/model.py:make(weights=3)",
            VictimError,
            "expected weights='FILE.safetensors', got 3",
        ),
        ("nets/model.py:make(weights='gone')", VictimError, "expected a weights file at gone"),
        ("nets/model.py:make(4)", SpecError, "expected keyword parameters only"),
        (
            "nets/model.py",
            VictimError,
            "expected FILE.py:FACTORY, a function that makes a model, got",
        ),
        ("nets/model.py:", SpecError, "expected name or name"),
        (
            "nets/wrong.py:make",
            VictimError,
            r"nets/wrong.py: expected code that runs, got SyntaxErr",
        ),
    ],
)
def test_factories_that_are_wrong(
    mine: str, factory: Path, text: str, kind: type[BenchError], message: str
) -> None:
    Path("nets/wrong.py").write_text("def make(:\n")
    with pytest.raises(kind, match=message) as caught:
        rm.load_model(text, dataset=mine)
    assert "\n" not in str(caught.value)


def test_a_factory_that_answers_otherwise_each_time_is_told(mine: str, factory: Path) -> None:
    factory.write_text(
        FACTORY
        + "\nimport itertools, sys\nsys.modules.setdefault('_turns', itertools.count())\n"
        + "def turning():\n    found = Net(4)\n    with torch.no_grad():\n"
        + "        found.head.bias += next(sys.modules['_turns'])\n    return found\n"
    )
    with pytest.raises(BenchError, match="expected the weights the plan saw, got others"):
        rm.evaluate(f"{factory}:turning", mine, PGD, eps=EPS)
    del sys.modules["_turns"]


def test_the_command_line_takes_a_factory(
    mine: str, factory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from robustbench_med import cli

    # typer hands commands a plain click context; the type checker of the tests wants what they name
    monkeypatch.setattr(typer.core.TyperCommand, "context_class", typer.Context)
    words = ["robustbench_med", "run", "--dataset", mine, "--attack", PGD, "--eps", EPS]
    monkeypatch.setattr(sys, "argv", [*words, "--model", f"{factory}:make", "--results", "kept"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    (stored,) = store.read_all(Path("kept/custom"))[0]
    evaluation = rm.evaluate(f"{factory}:make", mine, PGD, eps=EPS)
    assert evaluation.records[0].record.case == stored.record.case
    assert numbers(evaluation.records) == numbers([stored])
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["robustbench_med", "run", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "FILE.py:FACTORY(...), which executes" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(sys, "argv", [*words, "--model", f"{factory}:raises"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.count("\n") == 1
    assert "got RuntimeError: no such thing" in message


# --- attack, defend, run_suite -------------------------------------------------------------------


@pytest.mark.parametrize("spec", [PGD, "fgsm", "deepfool", "square(queries=200)"])
def test_an_attack_leaves_the_images_that_a_record_is_scored_on(mine: str, spec: str) -> None:
    net = net_of().eval()
    norm: Any = "l2" if spec == "deepfool" else "linf"
    eps = 0.5 if norm == "l2" else 3 / 255
    options: dict[str, Any] = {"eps": eps, "norm": norm, "operating_point": "argmax"}
    result = rm.attack(net, mine, spec, **options)
    table = rm.evaluate(net, mine, spec, **options).samples
    table = table[table["eps"] > 0]
    assert list(result.ids) == list(table["sample"])
    assert result.success.tolist() == table["success"].tolist()
    assert result.attacked.tolist() == table["attacked"].tolist()
    size = (result.z - result.x).flatten(1).norm(p=2 if norm == "l2" else torch.inf, dim=1)
    mask = result.attacked.numpy()
    np.testing.assert_allclose(size[mask], table[norm][mask], atol=1e-6)
    assert result.success.any()
    assert float(size.max()) <= eps + 1e-6
    assert torch.equal(result.z[~result.attacked], result.x[~result.attacked])
    # what broke is wrong by the module's own word
    assert torch.equal(net(result.z).argmax(1) != result.y, result.success | ~result.attacked)
    torch.testing.assert_close(net(result.z), result.output)
    torch.testing.assert_close(net(result.x), result.clean_output)
    again = rm.attack(net, mine, spec, **options)
    assert torch.equal(again.z, result.z)
    with pytest.raises(SpecError, match="expected one radius, got 2: evaluate takes several"):
        rm.attack(net, mine, f"{spec.rstrip(')')}{', ' if '(' in spec else '('}eps=[0.1, 0.2])")


def test_an_attack_on_a_batch(mine: str) -> None:
    net = net_of().eval()
    batch = rm.load_dataset(mine).batch("test", n=6)
    result = rm.attack(net, batch, PGD, eps="4/255")
    assert torch.equal(result.x, batch.x)
    assert torch.equal(result.y, batch.y)
    assert torch.equal(net(result.z).argmax(1) != result.y, result.success | ~result.attacked)
    assert float((result.z - result.x).abs().max()) <= 4 / 255 + 1e-6
    text = save_timm(Path("w.safetensors"))
    with pytest.raises(SpecError, match="expected a dataset or a loaded model with a batch"):
        rm.attack(text, batch, PGD, eps="4/255")
    loaded = rm.load_model(text, dataset=mine)
    assert rm.attack(loaded, batch, PGD, eps="4/255").attacked.any()
    with pytest.raises(
        DataError, match="batch: expected a validation split for the operating point, got"
    ):
        rm.attack(net, batch, PGD, eps="4/255", operating_point="youden")


def test_an_attacker_without_the_model_climbs_another(mine: str) -> None:
    second = save_timm(Path("w.safetensors"))
    options: dict[str, Any] = {"eps": "8/255", "surrogates": [second]}
    result = rm.attack(net_of(), mine, PGD, **options)
    evaluation = rm.evaluate(net_of(), mine, PGD, **options)
    assert evaluation.records[0].record.case.threat == "transfer"
    table = evaluation.samples[evaluation.samples["eps"] > 0]
    assert result.success.tolist() == table["success"].tolist()
    white = rm.attack(net_of(), mine, PGD, eps="8/255")
    assert not torch.equal(white.z, result.z)


@pytest.mark.parametrize("spec", ["jpeg(quality=50)", "feature_squeezing"])
def test_a_defended_model_is_evaluated_as_its_spec(mine: str, spec: str) -> None:
    save_npz(Path("mine.npz"), n=16, **_training())
    net = net_of()
    defended = rm.defend(net, spec, mine)
    x = rm.load_dataset(mine).batch("test").x
    plain = rm.load_model(net, dataset=mine)
    if spec.startswith("jpeg"):
        assert not torch.equal(defended(x).logits, plain(x).logits)
        assert defended(x).suspicion is None
        assert defended.guide is not None
    else:
        assert torch.equal(defended(x).logits, plain(x).logits)
        assert defended(x).suspicion is not None
    evaluation = rm.evaluate(defended, mine, PGD, eps=EPS)
    expected = rm.evaluate(net, mine, PGD, eps=EPS, defense=spec)
    assert evaluation.records[0].record.case == expected.records[0].record.case
    assert numbers(evaluation.records) == numbers(expected.records)
    result = rm.attack(defended, mine, PGD, eps="2/255")
    table = evaluation.samples[np.isclose(evaluation.samples["eps"], 2 / 255)]
    assert set(result.ids) == set(table["sample"])
    with pytest.raises(SpecError, match="expected a model without a defense, got one behind"):
        rm.defend(defended, spec, mine)
    with pytest.raises(SpecError, match=r"expected one defense, got bit_depth before"):
        rm.evaluate(defended, mine, PGD, eps=EPS, defense="bit_depth")


def _training() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    images = rng.integers(40, 200, (16, 32, 32), dtype=np.uint8)
    return {"train_images": images, "train_labels": np.arange(16)[:, None] % 2}


def test_defenses_that_wrap_no_model(mine: str) -> None:
    with pytest.raises(SpecError, match="run `train CARD --defense trades`"):
        rm.defend(net_of(), "trades", mine)
    with pytest.raises(SpecError, match="expected a defense, got none"):
        rm.defend(net_of(), "none", mine)


def test_a_suite_from_python(mine: str, factory: Path) -> None:
    text = f"""
title = "Mine"
[[grids]]
datasets = ["mine.npz"]
victims = ["{factory}:make", "{factory}:raises"]
attacks = ["fgsm", "{PGD}"]
ladder = ["1/255", "2/255"]
"""
    Path("mine.toml").write_text(text)
    ran = rm.run_suite("mine.toml", results="kept", n=8, seed=1)
    assert ran.folder == Path("kept/mine")
    assert [stored.record.case.attack for stored in ran.records] == ["fgsm", "pgd"]
    assert [failure.label for failure in ran.not_scored] == [f"mine.npz · {factory}:raises"]
    assert "got RuntimeError" in ran.not_scored[0].reason
    evaluation = rm.evaluate(f"{factory}:make", "mine.npz", ["fgsm", PGD], eps=EPS, n=8, seed=1)
    assert [o.record.case for o in evaluation.records] == [o.record.case for o in ran.records]
    assert numbers(evaluation.records) == numbers(ran.records)
    again = rm.run_suite(Path("mine.toml"), results="kept", n=8, seed=1)
    assert lines(again.records) == lines(ran.records)
    command = ran.records[0].record.provenance.command
    assert 'run_suite("mine.toml", seed=1, n=8)' in command
    with pytest.raises(UnknownNameError, match="did you mean 'quick'"):
        rm.run_suite("quik")
    with pytest.raises(VictimError, match="got RuntimeError"):
        rm.run_suite("mine.toml", victims=[f"{factory}:raises"], results="kept")


def test_cards_are_read_without_their_data() -> None:
    model = rm.load_model("fundus_resnet")
    assert model.name == "fundus_resnet"
    assert model.card == registry.load("models")["fundus_resnet"]
    x = torch.rand(2, 3, 64, 64)
    assert model(x).logits.shape[0] == 2
    assert math.isfinite(float(model(x).logits.sum()))
    batch = Batch(x, torch.tensor([0, 1]), np.array(["a", "b"]))
    result = rm.attack(model, batch, "fgsm", eps="8/255")
    assert torch.equal(result.z, rm.attack("fundus_resnet", batch, "fgsm", eps="8/255").z)


@pytest.mark.slow
def test_another_process_finds_the_same_hash(mine: str, factory: Path) -> None:
    text = f"{factory}:make"
    code = (
        f"import robustbench_med as rm; print(rm.load_model({text!r}, dataset='mine.npz').sha256)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == rm.load_model(text, dataset=mine).sha256
    Path("elsewhere").mkdir()
    for path in factory.parent.glob("*.py"):
        (Path("elsewhere") / path.name).write_bytes(path.read_bytes())
    moved = rm.load_model("elsewhere/model.py:make", dataset=mine)
    assert moved.sha256 == done.stdout.strip()


def test_an_attacker_who_does_not_know_the_defense_needs_gradients(mine: str) -> None:
    with pytest.raises(SpecError, match="by gradients with knowledge oblivious, got square"):
        rm.evaluate(net_of(), mine, "square", eps=EPS, defense="bit_depth", knowledge="oblivious")
