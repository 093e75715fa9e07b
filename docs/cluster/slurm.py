"""Run a suite on the nodes of a SLURM cluster: `python docs/cluster/slurm.py quick --data DIR`.

Everything after the script's name goes to `robustbench_med run`. Start it on a login node, in a
terminal that stays open (tmux) or as a small job of its own, with the results folder on a disk that
this node can write. Dask asks SLURM for the workers and ends them with the run.
"""

import subprocess
import sys

from dask_jobqueue import SLURMCluster


def cluster() -> SLURMCluster:
    """Return the cluster; adapt queue, memory, time and number of workers to yours."""
    return SLURMCluster(
        cores=4,  # threads of a worker
        processes=1,  # workers of a job: one, for it gets the whole GPU
        memory="16GB",
        walltime="04:00:00",
        python=sys.executable,  # an environment on a disk that all nodes see
        job_extra_directives=["--gres=gpu:1"],
        local_directory="/tmp",  # noqa: S108 - a node's own disk
        log_directory="slurm-logs",
    )


if __name__ == "__main__":
    with cluster() as slurm:
        slurm.scale(jobs=8)
        command = [sys.executable, "-m", "robustbench_med", "run", *sys.argv[1:]]
        command += ["--scheduler", slurm.scheduler_address]
        done = subprocess.run(command, check=False)  # noqa: S603 - your own arguments
    raise SystemExit(done.returncode)
