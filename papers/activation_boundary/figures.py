"""Pictures of what the first phase achieves."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from reprise.common.studies.study import Results


def mismatch_per_layer(config: ConfigDict, results: Results, directory: Path) -> Path:
    """Share of units on the wrong side at each tap, after either first phase."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    arms = {"ab_init": "activation boundaries", "fitnet_init": "FitNets (squared distance)"}
    for shift, (arm, label) in zip((-0.2, 0.2), arms.items(), strict=True):
        each = [results[arm][f"mismatch_{i}"] for i in (1, 2, 3)]
        axes.bar(
            np.arange(3) + shift,
            [m.mean() for m in each],
            0.38,
            yerr=[m.std() for m in each],
            capsize=3,
            label=label,
        )
    axes.set_xticks(range(3), ["stage 1", "stage 2", "stage 3"])
    axes.set_ylabel("units on the wrong side")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = directory / f"{config.variant}-mismatch.png"
    figure.savefig(path, dpi=110)
    return path
