"""Words by which folders and columns are recognised, in lower case."""

from __future__ import annotations

from robustbench_med.datasets.dataset import SplitName

SPLITS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "ts"),
}
IMAGES = frozenset(["images", "image", "imgs", "img", "imagestr", "scans", "volumes", "data"])
MASKS = frozenset(
    [
        "masks",
        "mask",
        "labels",
        "label",
        "labelstr",
        "segmentations",
        "segmentation",
        "seg",
        "annotations",
        "gt",
        "ground_truth",
        "groundtruth",
    ]
)
# the end of a mask's name
SUFFIXES = ("_mask", "_masks", "_seg", "_segmentation", "_label", "_gt", "-mask", "-seg")
HEALTHY = frozenset(
    ("normal", "healthy", "no finding", "no_finding", "negative", "control", "notumor")
    + ("no_tumor", "no tumor", "no", "non-covid", "noncovid", "nodr", "no_dr", "no dr")
)
# columns of a table, the most certain words first
LABEL = (
    *("label", "class", "target", "diagnosis", "dx", "category", "grade", "level", "finding"),
    *("findings", "labels", "finding labels", "severity", "type", "y"),
)
SPLIT = ("split", "set", "subset", "partition", "fold", "dataset", "usage")
PATIENT = ("patient", "subject", "case", "pid", "lesion", "person", "participant")
GROUPS = frozenset(
    ("sex", "gender", "age", "site", "race", "ethnicity", "scanner", "hospital", "view")
    + ("view position", "localization", "manufacturer", "age_group", "skin_tone", "country")
)
