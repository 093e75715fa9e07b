"""Check types and shapes under pytest: what is imported from here on is checked at every call.

Not by the option --jaxtyping-packages: pytest imports our own plugin, and with it the package's
`__init__`, before it reads any option, and the option refuses a package that is imported already.
"""

from jaxtyping import install_import_hook

install_import_hook(["robustbench_med", "attacks", "defenses", "leaderboard"], "beartype.beartype")

pytest_plugins = ["pytester"]  # for tests/gate; pytest takes this line in no other conftest
