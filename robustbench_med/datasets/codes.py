"""Values of labels and masks that stand for no class."""

from __future__ import annotations

UNLABELLED = -1
IGNORED = 255  # has the same meaning in stored masks, whose class ids are bytes
MAX_IDS = IGNORED  # largest number of classes that such bytes can encode
