"""The Dockerfile holds what the wheel holds, and runs what the checkout runs."""

from __future__ import annotations

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def instructions(word: str) -> list[str]:
    return re.findall(rf"^{word} (.*)$", TEXT, re.MULTILINE)


def test_what_is_copied_is_there_and_is_what_the_wheel_needs() -> None:
    copied = [line.split()[:-1] for line in instructions("COPY") if "--from" not in line]
    names = {name for line in copied for name in line}
    assert all((ROOT / name).exists() for name in names)
    project = PROJECT["project"]
    files = {"pyproject.toml", project["readme"], *project["license-files"]}
    folders = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"])
    assert names == files | folders
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == names


def test_it_builds_the_wheel_as_the_checks_do_and_starts_our_command() -> None:
    build = "python -m build --wheel --outdir"
    assert build in TEXT
    assert build.removeprefix("python ") in (ROOT / ".ci" / "wheel").read_text(encoding="utf-8")
    (entry,) = map(json.loads, instructions("ENTRYPOINT"))
    assert entry[0] in PROJECT["project"]["scripts"]
    (extras,) = re.findall(r'ARG EXTRAS="(.*)"', TEXT)
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    (version,) = re.findall(r"ARG PYTHON=(\S+)", TEXT)
    assert f"Programming Language :: Python :: {version}" in PROJECT["project"]["classifiers"]


def test_it_names_no_host_and_does_not_run_as_root() -> None:
    assert "://" not in TEXT
    bases = [line.split()[0] for line in instructions("FROM")]
    assert bases
    assert all(fnmatch(base, "python:*-slim") for base in bases)
    assert instructions("USER") == ["bench"]
    stages = re.findall(r"COPY --from=(\w+)", TEXT)
    assert all(f" AS {stage}" in TEXT for stage in stages)
