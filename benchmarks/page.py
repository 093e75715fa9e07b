"""The page of 1,000 records: processor seconds to build it, seconds until a browser shows it.

    python -m benchmarks.page

Ten datasets, ten victims on each, ten attacks: planted records of 100 images at five radii, written
to a temporary folder and read back as the command line does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import leaderboard
from robustbench_med.bench import store
from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Audit, Check, Cost, Record
from robustbench_med.cards import AttackCard
from robustbench_med.stats import Estimate
from tests.leaderboard.planted import DATASETS, LADDER, PROVENANCE, model_card, rungs_of
from tests.leaderboard.planted import samples_table as samples_of

SIDE, IMAGES = 10, 100


def plant(folder: Path) -> None:
    """Write SIDE ** 3 records into `folder`."""
    for d in range(SIDE):
        dataset = DATASETS[d % 3].model_copy(update={"name": f"data_{d}", "title": f"Data {d}"})
        for v in range(SIDE):
            rng = np.random.default_rng(SIDE * d + v)
            strength = rng.gamma(2.5, 0.7 + 0.1 * v, IMAGES)
            for a in range(SIDE):
                breaks = 1 + np.floor(strength * (1 + 0.1 * a)).clip(0, 5).astype(int)
                samples = samples_of(breaks, LADDER)
                case = Case(
                    dataset=dataset.name,
                    data_sha256="d" * 64,
                    victim=f"net_{v}",
                    victim_sha256=f"{v:064d}",
                    attack=f"attack_{a}",
                    attack_version=1,
                    parameters={"steps": 40},
                    norm="linf",
                    ladder=LADDER,
                    threat="white_box",
                )
                share = Estimate(value=0.98, low=0.95, high=0.99)
                record = Record(
                    case_id=case.id,
                    case=case,
                    status="ok",
                    n=IMAGES,
                    patients=len(set(samples["patient"])),
                    threshold=(0.4,),
                    rungs=rungs_of(samples, LADDER),
                    audit=Audit(
                        norm="linf",
                        max_size=LADDER,
                        min_value=0.0,
                        max_value=1.0,
                        over_budget=0,
                        tolerance=1e-6,
                        bit_depth=8,
                        survives_rounding=share,
                    ),
                    cost=Cost(forward=4000, backward=4000, seconds=9.0 + v, peak_memory_mib=400),
                    checks=tuple(
                        Check(name=f"check_{i}", value=0.0, threshold=1.0, n_images=12)
                        for i in range(10)
                    ),
                    dataset_card=dataset,
                    model_card=model_card(f"net_{v}", f"Net {v}", "CNN", dataset.name),
                    attack_card=AttackCard(
                        name=f"attack_{a}",
                        title=f"Attack {a}",
                        function="pgd:pgd",
                        version=1,
                        norms=("linf",),
                        schedule="descend",
                    ),
                    provenance=PROVENANCE,
                )
                home = folder / case.id
                home.mkdir()
                (home / "record.json").write_text(record.model_dump_json())
                samples.to_parquet(home / "samples.parquet", index=False, compression="zstd")


def open_page(path: Path) -> tuple[float, float]:
    """Return wall seconds until Chromium fired `load`, and until it had painted after that."""
    from tests.leaderboard.browser import browser

    with browser() as chromium:
        chromium.new_page().goto("about:blank")
        page = chromium.new_page()
        start = time.perf_counter()
        page.goto(path.as_uri())
        loaded = time.perf_counter() - start
        page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        return loaded, time.perf_counter() - start


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "many"
        folder.mkdir()
        plant(folder)
        start, wall = time.process_time(), time.perf_counter()
        records, _ = store.read_all(folder)
        read = time.process_time()
        path = leaderboard.publish(records, folder, title="1,000 records")
        end = time.process_time()
        print(
            f"{len(records)} records: read {read - start:.1f} s, tables and page {end - read:.1f} s"
        )
        print(f"of processor time, {time.perf_counter() - wall:.1f} s of wall time")
        print(f"page {path.stat().st_size / 1e6:.1f} MB")
        for _ in range(3):
            loaded, painted = open_page(path)
            print(
                f"opened: loaded after {loaded:.2f} s, painted after {painted:.2f} s of wall time"
            )
        if len(sys.argv) > 1:
            subprocess.run(["cp", str(path), sys.argv[1]], check=True)  # noqa: S603, S607


if __name__ == "__main__":
    main()
