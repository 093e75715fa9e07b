"""Who stands against which attacks, image by image, and the mean of that with its interval."""

from __future__ import annotations

import numpy as np
import pandas as pd

from robustbench_med.bench.record import Estimate, Stored
from robustbench_med.errors import ResultsError
from robustbench_med.stats import cluster_mean


def correct_table(stored: Stored) -> pd.DataFrame:
    """Return who stands: a row an image, a column a rung (0 = clean).

    Untargeted: the images called right. Any other objective: of the images attacked, those on which
    the attacker has not reached the goal.

    Raises:
        ResultsError: the samples table lacks an (image, rung) pair or has one twice.
    """
    levels = np.array((0.0, *stored.record.case.ladder))
    eps = stored.samples["eps"].to_numpy(dtype=np.float64)
    rung = np.abs(eps[:, None] - levels).argmin(axis=1)
    samples = stored.samples
    owner, ids = pd.factorize(samples["sample"], sort=True)
    table = np.zeros((len(ids), len(levels)), dtype=bool)
    untargeted = stored.record.case.objective == "untargeted"
    table[owner, rung] = samples["correct"] if untargeted else ~samples["broken"].astype(bool)
    filled = np.zeros_like(table)
    filled[owner, rung] = True
    if len(eps) != table.size or not filled.all():
        raise ResultsError(
            f"expected one row a (sample, rung) in samples of record {stored.record.case_id}, got "
            f"{len(eps)} rows for {table.size} pairs: run that case again with --force"
        )
    found = pd.DataFrame(table, index=ids)
    if untargeted:
        return found
    attacked = samples.groupby("sample")["attacked"].all()
    return found[attacked.loc[ids].to_numpy(dtype=bool)]


def standing_images(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return which images stand in all `tables`: a row an image common to all, a column a rung.

    An image stands at a rung if it is correct there under every attack, and correct when clean.

    Args:
        tables: one `correct_table` an attack.
    """
    if not tables:
        return pd.DataFrame(dtype=bool)
    common = sorted(set.intersection(*(set(table.index) for table in tables)))
    stands = np.logical_and.reduce([table.loc[common].to_numpy() for table in tables])
    return pd.DataFrame(stands & stands[:, :1], index=common)


def means(table: pd.DataFrame, run: Stored) -> tuple[Estimate, ...]:
    """Return the mean of each column with its interval, by patient where `run` knows patients."""
    clusters = None
    if run.record.patients is not None:
        owner = run.samples.drop_duplicates("sample").set_index("sample")["patient"]
        clusters = owner.loc[table.index].to_numpy(dtype=np.str_)
    values = table.to_numpy(dtype=np.float64)
    return tuple(cluster_mean(values[:, rung], clusters) for rung in range(values.shape[1]))
