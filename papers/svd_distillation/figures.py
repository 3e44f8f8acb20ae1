"""The picture of the study."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from reprise.common.studies.study import Results

LABELS = {
    "kd_svd": "KD-SVD",
    "kd_svd_apart": "KD-SVD, pool not in BatchNorm's statistics",
    "ce_pool": "pool in BatchNorm's statistics alone",
    "fsp_clipped": "FSP, one stage, clipped",
    "fsp": "FSP, two stages",
}


def gains(config: ConfigDict, results: Results, directory: Path) -> Path:
    """Points of accuracy above the student alone, a dot a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    arms = [arm for arm in LABELS if arm in results]
    for row, arm in enumerate(arms):
        gain = 100 * (results[arm]["accuracy"] - results["ce"]["accuracy"])
        axes.plot(gain, np.full(len(gain), row), "o", alpha=0.5, color="C0", markeredgewidth=0)
        axes.plot([gain.mean()] * 2, [row - 0.25, row + 0.25], color="C1", linewidth=2.5)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(arms)), [LABELS[arm] for arm in arms])
    axes.invert_yaxis()
    axes.set_xlabel("points above the student alone, same seed (bar: mean)")
    axes.spines[["top", "right"]].set_visible(False)
    path = directory / f"{config.variant}-gains.png"
    figure.savefig(path, dpi=110)
    return path
