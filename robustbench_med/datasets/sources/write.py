"""Write a draft as the text of a card file, with a comment on each setting."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from robustbench_med.datasets.sources.draft import Draft

_CARD = {
    "name": "",
    "title": "the name on pages and in tables",
    "modality": 'e.g. "chest X-ray" or "dermoscopy"',
    "task": "single_label, multi_label or segmentation",
    "classes": "their names, in the order of the model's outputs",
    "normal": "the index of the healthy class; delete the line if there is none",
    "channels": "of an image; grey pictures in colour files can be read as 1",
    "size": '[h, w], to which the reader resizes images, or "native": each keeps its own size',
    "spacing": "mm per pixel along each axis; delete it where it is not known",
    "native_range": "what 0 and 1 stand for",
    "licence": "",
}
_SOURCE = {
    "path": "the folder of the data, relative to this file",
    "format": "what the files are",
    "only": "the files that are read",
    "images_as": "slices or volumes: whether a series is one image",
    "labels": "where the truth is: folders, csv, masks or dicom_seg",
    "values": "the stored label of each class, in the order of classes",
    "csv": "the table, relative to path",
    "images": "the name of the folder of images",
    "masks": "the name of the folder of masks",
    "mask_suffix": "what the name of a mask has after that of its image",
    "mask_values": "the stored value of each class, in the order of classes",
    "clip": "clips values outside [native] to it",
    "scale": "each: every image from its own lowest to its own highest value",
    "ids": '"number" keeps file names out of records',
}
_TABLES = {
    "columns": "columns of the table",
    "split_names": "what the data call each split",
    "draw": "splits are drawn by patient, stratified by class; delete where the data have splits",
}


def card_text(draft: Draft, target: Path) -> str:
    """Return the text of a card file that will be written to `target`."""
    card = {"licence": "not stated", **draft.card}
    lines = [
        "# The card of a dataset, written by `python -m robustbench_med inspect`. Correct what is",
        "# wrong, then: python -m robustbench_med run --dataset " + target.name + " --model ...",
        "",
        *_lines({key: value for key, value in card.items() if key != "native"}, _CARD),
    ]
    stated = bool(draft.window) and "," not in draft.window
    if stated:
        step = f"window({draft.window.replace('/', ', ')})"
        lines.append(f'# preprocess = "{step}"  # what the files state; a step before your network')
    if "native" in card and not stated:
        lines.append(
            '# preprocess = "window(40, 400)"  # what the device does before its network: '
            "docs/native_units.md"
        )
    if "native" in card:
        comment = "the stored values that become 0 and 1, and the step between neighbouring ones"
        lines += ["", f"[native]  # {comment}", *_lines(card["native"], {})]
    source = {"path": _relative(draft.root, target.parent), **draft.source}
    source.setdefault("ids", "file")
    flat = {key: value for key, value in source.items() if not isinstance(value, dict)}
    lines += ["", "[source]", *_lines(flat, _SOURCE)]
    for name, comment in _TABLES.items():
        if name in source:
            lines += ["", f"[source.{name}]  # {comment}", *_lines(source[name], {})]
    return "\n".join(lines) + "\n"


def _relative(root: Path, home: Path) -> str:
    """Return the path of the data from the folder of the card file."""
    try:
        return Path(os.path.relpath(root.resolve(), home.resolve())).as_posix()
    except ValueError:  # on another drive
        return root.resolve().as_posix()


def _lines(values: dict[str, Any], comments: dict[str, str]) -> list[str]:
    known = [key for key in comments if key in values]
    lines = []
    for key in [*known, *(key for key in values if key not in known)]:
        comment = f"  # {comments[key]}" if comments.get(key) else ""
        lines.append(f"{key} = {_toml(values[key])}{comment}")
    return lines


def _toml(value: Any) -> str:  # noqa: ANN401 - a value of TOML
    """Return a value as TOML: strings, numbers and lists are written as in JSON."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")
