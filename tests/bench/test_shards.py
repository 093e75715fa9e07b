"""Shards: a case gives the same in pieces, and a stopped run loses at most one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_med.bench.attack_run import AttackRun, run_attack
from robustbench_med.bench.ladder import Sharding
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.shard_files import ShardFiles
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.stored_images import SHARD_BYTES, StoredImages, as_floats, shards
from tests.bench.toys import dataset_of, planned_of, prepared_of
from tests.toys import small_victim

N, K = 11, 3


def data() -> Dataset:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(N, 1, 6, 6, generator=rng)
    victim = small_victim(K)
    return dataset_of(x, victim.logits(x).argmax(1), K)


def stored(setup: AttackSetup) -> AttackSetup:
    """Return the setup with the images as they are stored, as the bench prepares it."""
    return replace(setup, batch=setup.data.batch("test", stored=True))


class Counting(nn.Module):
    """A module that counts the images it reads, and may stop after so many."""

    def __init__(self, module: nn.Module, stop: float = float("inf")) -> None:
        super().__init__()
        self.module, self.stop, self.seen = module, stop, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.seen > self.stop:
            raise KeyboardInterrupt
        self.seen += len(x)
        logits: Tensor = self.module(x)
        return logits


def same(a: AttackRun, b: AttackRun) -> None:
    assert a.rungs.keys() == b.rungs.keys()
    for name, value in a.rungs.items():
        assert torch.equal(value.nan_to_num(-1), b.rungs[name].nan_to_num(-1)), name
    assert torch.equal(a.distance, b.distance)
    assert a.ladder == b.ladder
    assert a.counter == b.counter


ATTACKS: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "pgd": {"steps": 3},
    "deepfool": {"steps": 4},
    "square": {"queries": 20},
    "uap": {"epochs": 1},
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("size", [1, 4, N])
def test_a_case_in_pieces_gives_the_same(attack: str, size: int) -> None:
    toys, victim = data(), small_victim(K)
    planned = planned_of(toys, attack, parameters=ATTACKS[attack])
    # one image at a time, so that every piece forwards the same batches
    setup = prepared_of(replace(victim, chunk=1), toys)
    whole = run_attack(planned, setup)
    same(run_attack(planned, stored(setup), sharding=Sharding(size)), whole)


@pytest.mark.parametrize("attack", ["pgd", "deepfool"])
def test_a_stopped_run_goes_on_with_the_shard_that_it_lost(attack: str, tmp_path: Path) -> None:
    toys, victim = data(), replace(small_victim(K), chunk=1)
    planned = planned_of(toys, attack, parameters=ATTACKS[attack])
    setup = stored(prepared_of(victim, toys))
    sharding = Sharding(3, ShardFiles(tmp_path / "shards"))

    def on(module: nn.Module) -> AttackSetup:
        return replace(setup, victim=replace(victim, module=module))

    counting = Counting(victim.module)
    whole = run_attack(planned, on(counting), sharding=Sharding(3))
    stopped = Counting(victim.module, stop=counting.seen * 0.6)
    with pytest.raises(KeyboardInterrupt):
        run_attack(planned, on(stopped), sharding=sharding)
    kept = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert kept
    assert kept == [f"shard_{i}.bin" for i in range(len(kept))]
    again = Counting(victim.module)
    resumed = run_attack(planned, on(again), sharding=sharding)
    same(resumed, whole)
    assert 0 < again.seen < counting.seen
    # the gradients that are checked are those that the stopped process recorded
    assert whole.recorder is not None
    assert resumed.recorder is not None
    for mine, theirs in zip(resumed.recorder.samples, whole.recorder.samples, strict=True):
        assert torch.equal(mine.gradient, theirs.gradient)


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "other images"])
def test_a_damaged_or_foreign_shard_is_computed_again(harm: str, tmp_path: Path) -> None:
    toys = data()
    planned = planned_of(toys, "pgd", parameters={"steps": 3})
    setup = stored(prepared_of(replace(small_victim(K), chunk=1), toys))
    sharding = Sharding(4, ShardFiles(tmp_path))
    whole = run_attack(planned, setup, sharding=sharding)
    path = tmp_path / "shard_1.bin"
    raw = bytearray(path.read_bytes())
    if harm == "cut":
        raw = raw[: len(raw) // 2]
    elif harm == "flipped":
        raw[-5] ^= 1
    elif harm == "empty":
        raw = bytearray()
    else:
        raw = bytearray((tmp_path / "shard_0.bin").read_bytes())
    path.write_bytes(raw)
    same(run_attack(planned, setup, sharding=sharding), whole)


@pytest.mark.parametrize("kept", [False, True])
def test_a_shard_of_a_run_that_kept_other_things_is_computed_again(
    kept: bool, tmp_path: Path
) -> None:
    toys, victim = data(), replace(small_victim(K), chunk=1)
    planned = planned_of(toys, "pgd", parameters=ATTACKS["pgd"])
    setup = stored(prepared_of(victim, toys))
    sharding = Sharding(3, ShardFiles(tmp_path / "shards"))
    run_attack(planned, setup, keeps=kept, sharding=sharding)
    again = run_attack(planned, setup, keeps=not kept, sharding=sharding)
    same(again, run_attack(planned, setup, keeps=not kept, sharding=Sharding(3)))


def test_a_folder_that_cannot_be_written_costs_no_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    toys = data()
    planned = planned_of(toys, "pgd", parameters={"steps": 3})
    setup = prepared_of(replace(small_victim(K), chunk=1), toys)
    (tmp_path / "file").write_text("in the way")
    sharding = Sharding(4, ShardFiles(tmp_path / "file" / "shards"))
    same(run_attack(planned, setup, sharding=sharding), run_attack(planned, setup))
    assert "is not stored" in caplog.text


def test_stored_images_are_read_as_a_tensor_would_be() -> None:
    rng = np.random.default_rng(0)
    for channels, shape in ((1, (7, 4, 5)), (3, (7, 4, 5, 3)), (1, (7, 3, 4, 5))):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        rows = np.array([5, 1, 2, 6])
        images = StoredImages(pixels, rows, channels)
        whole = as_floats(pixels[rows], channels)
        assert images.shape == tuple(whole.shape)
        assert torch.equal(images[:], whole)
        assert torch.equal(images[torch.tensor([2, 0])], whole[[2, 0]])
        assert torch.equal(images[1], whole[1])
        assert torch.equal(images.select(torch.tensor([3, 1]))[:], whole[[3, 1]])
        assert torch.equal(torch.cat(list(images.split(3))), whole)
        assert torch.equal(images[torch.tensor([], dtype=torch.long)], whole[:0])
        assert float(whole.max()) <= 1


def test_a_shard_holds_as_many_images_as_its_bytes() -> None:
    rows = torch.arange(1000)
    pieces = shards(rows, torch.zeros(1).expand(1000, 3, 224, 224))
    assert torch.equal(torch.cat(pieces), rows)
    assert max(len(piece) for piece in pieces) * 4 * 3 * 224 * 224 <= SHARD_BYTES
    assert len(shards(rows[:0], torch.zeros(0, 3, 224, 224))) == 1
    assert len(shards(rows[:2], torch.zeros(1).expand(2, 1, 4000, 4000))) == 2
