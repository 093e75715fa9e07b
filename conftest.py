"""Check types and shapes under pytest where CHECK_SHAPES is set: `make shapes` and CI do so.

Checking every call doubles the time of a run, so `make test` leaves it out. The hook is installed
here and not by the option --jaxtyping-packages: pytest imports our own plugin, and with it the
package's `__init__`, before it reads any option, and the option refuses a package that is imported
already.

The threads of BLAS and OpenMP are set to one before anything loads them, also for the processes
that tests start: tests run in several processes, and threads that wait for work burn their time.
"""

import os

from jaxtyping import install_import_hook

if os.environ.get("CHECK_SHAPES"):
    packages = ["robustbench_med", "attacks", "defenses", "leaderboard"]
    install_import_hook(packages, "beartype.beartype")

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

pytest_plugins = ["pytester"]  # for tests/gate; pytest takes this line in no other conftest
