"""The examples for clusters: the job script, and the commands of the manifest, as far as they run.

A stand-in for `sbatch` runs the job on this machine, so that the whole script is tried.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from robustbench_med.bench import store
from tests.bench.toys import save_npz
from tests.faults.kills import MODEL

CHECKOUT = Path(__file__).parents[2]
SLURM = CHECKOUT / "docs" / "cluster" / "slurm.py"
MANIFEST = CHECKOUT / "docs" / "cluster" / "kubernetes.yaml"
# sbatch keeps a copy of the script, prints the id of the job, and returns at once
SBATCH = '#!/bin/sh\ncp "$1" job.sh\n{ nohup sh job.sh > job.log 2>&1 & echo $! > job.pid; }\n'
SBATCH += 'echo "Submitted batch job 1"\n'
SCANCEL = "#!/bin/sh\nkill $(cat job.pid) 2>/dev/null\nexit 0\n"
RUN = "run quick --dataset data.npz --victim model.py:first() --attack fgsm --eps 2/255"
RUN += " --examples 0 --shard 4 --results results"


def environment(**changed: str) -> dict[str, str]:
    path = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **changed}


def check_record(home: Path) -> None:
    (folder,) = store.homes_below(home / "results")
    assert store.read(folder).record.status == "ok"


@pytest.mark.slow
def test_the_job_script_for_slurm_starts_one_worker_a_job(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(SLURM.parent)!r}); import slurm\n"
    code += "print(slurm.cluster().job_script())"
    script = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "#SBATCH -t 04:00:00" in script
    assert "#SBATCH --cpus-per-task=4" in script
    assert "#SBATCH --gres=gpu:1" in script
    assert f"{sys.executable} -m distributed.cli.dask_worker tcp://" in script
    assert "--nthreads 4 " in script


@pytest.mark.slow
def test_the_script_for_slurm_runs_a_suite_on_its_jobs(tmp_path: Path) -> None:
    save_npz(tmp_path / "data.npz")
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, content in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    text = SLURM.read_text().replace("jobs=8", "jobs=1")
    (tmp_path / "slurm.py").write_text(text)
    paths = os.pathsep.join([str(programs), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "slurm.py", *RUN.split()[1:]],
        cwd=tmp_path,
        env=environment(PATH=paths),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    log = tmp_path / "job.log"
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "no job")
    check_record(tmp_path)


def commands() -> dict[str, list[str]]:
    """Return the command of each container of the manifest, by name."""
    found: dict[str, list[str]] = {}
    documents: list[Any] = list(yaml.safe_load_all(MANIFEST.read_text()))
    for document in documents:
        if document["kind"] != "Service":
            for container in document["spec"]["template"]["spec"]["containers"]:
                found[container["name"]] = container["command"]
    return found


def test_the_manifest_for_kubernetes_names_one_scheduler_throughout() -> None:
    service, *_ = yaml.safe_load_all(MANIFEST.read_text())
    address = f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert set(commands()) == {"scheduler", "worker", "driver"}
    assert address in commands()["worker"]
    assert address in commands()["driver"]
    assert str(service["spec"]["ports"][0]["port"]) in commands()["scheduler"]


@pytest.mark.slow
def test_the_commands_of_the_manifest_run_a_suite(tmp_path: Path) -> None:
    """They run on this machine; the name of the scheduler and its port are replaced."""
    save_npz(tmp_path / "data.npz")
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    port = str(20000 + os.getpid() % 10000)

    def here(command: list[str]) -> list[str]:
        words = [w.replace("robustbench-scheduler:8786", f"127.0.0.1:{port}") for w in command]
        return [sys.executable, *(port if word == "8786" else word for word in words[1:])]

    started = [
        subprocess.Popen(
            here(commands()[name]),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in ("scheduler", "worker")
    ]
    try:
        driver = here(commands()["driver"])
        driver[driver.index("quick") : driver.index("quick") + 1] = RUN.split()[1:-2]
        driver[driver.index("/data/results")] = "results"
        for _ in range(6):  # a job that fails before the scheduler is there is started again
            done = subprocess.run(
                driver, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stderr
    finally:
        for process in started:
            process.terminate()
            process.wait(60)
    check_record(tmp_path)
