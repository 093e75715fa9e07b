"""Link what an installed project requires, and nothing else, into another environment.

    .venv/bin/python .ci/link_dependencies.py robustbench-med /tmp/venv

Packages that only the extras require are left out, so that an import of one of them fails there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def required(name: str, extras: tuple[str, ...] = ()) -> Iterator[Requirement]:
    """Yield the requirements of an installed distribution on this platform."""
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def closure(name: str) -> list[str]:
    """Return the distributions that a project requires, directly or not, without itself."""
    names: dict[tuple[str, tuple[str, ...]], None] = {}
    waiting = list(required(name))
    while waiting:
        requirement = waiting.pop()
        entry = requirement.name, tuple(sorted(requirement.extras))
        if entry not in names:
            names[entry] = None
            waiting += required(*entry)
    return sorted({name for name, _ in names})


def link(name: str, site: Path) -> None:
    """Link the files and folders of an installed distribution into a folder."""
    distribution = metadata.distribution(name)
    tops = {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}
    for top in tops:
        if not (site / top).exists():
            (site / top).symlink_to(str(distribution.locate_file(top)))


if __name__ == "__main__":
    project, environment = sys.argv[1:]
    (folder,) = Path(environment).glob("lib/python3*/site-packages")
    for distribution_name in closure(project):
        link(distribution_name, folder)
