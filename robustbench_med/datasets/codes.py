"""Codes of labels and masks that mean no class."""

from __future__ import annotations

UNLABELLED = -1
IGNORED = 255  # the same in stored masks, whose class ids are bytes
MAX_IDS = IGNORED  # classes that such bytes tell apart
