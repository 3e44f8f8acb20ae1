"""Accuracy of one network, of the ensemble and of the fusion, in every arm."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from reprise.common.studies.study import Results

NAMES = {
    "vanilla": "alone",
    "dml": "deep mutual\nlearning",
    "fusion": "fusion,\nlabels alone",
    "ffl": "feature fusion\nlearning",
}
PARTS = {
    "accuracy": ("one network", "#4477aa"),
    "ensemble_accuracy": ("mean of the logits", "#ccbb44"),
    "fused_accuracy": ("fused classifier", "#aa3377"),
}


def accuracies(config: ConfigDict, results: Results, directory: Path) -> Path:
    """Every seed a dot, their mean a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, arm in enumerate(NAMES):
        for j, (metric, (label, colour)) in enumerate(PARTS.items()):
            if metric not in results[arm]:
                continue
            values, x = 100 * results[arm][metric], i + 0.25 * (j - 1)
            jitter = np.linspace(-0.07, 0.07, len(values))
            name = label if arm == "ffl" else None
            axes.plot(x + jitter, values, "o", ms=4, color=colour, alpha=0.7, label=name)
            axes.hlines(values.mean(), x - 0.11, x + 0.11, color="black", lw=1.5)
    axes.set_xticks(range(len(NAMES)), list(NAMES.values()))
    axes.set_ylabel("test accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    path = directory / f"{config.variant}-accuracies.png"
    figure.savefig(path, dpi=110)
    return path
