"""One teacher against several, at equal total weight."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from reprise.common.studies.study import Results


def by_total_weight(config: ConfigDict, results: Results, directory: Path) -> Path:
    """Accuracy by the total weight on factors; bars are standard errors over seeds."""
    from matplotlib.figure import Figure

    count, beta = config.model.num_teachers, config.model.beta
    curves = {
        "1 teacher (factor transfer)": {beta: "ft", count * beta: "ft_total"},
        f"{count} teachers": {beta: "pfeed_share", count * beta: "pfeed"},
    }
    figure = Figure(figsize=(6.5, 3), layout="constrained")
    axes = figure.subplots()
    for shift, (label, arms) in zip((-0.02, 0.02), curves.items(), strict=True):
        each = [results[arm]["accuracy"] for arm in arms.values()]
        axes.errorbar(
            np.arange(len(arms)) + shift,
            [x.mean() for x in each],
            [x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else 0.0 for x in each],
            marker="o",
            capsize=3,
            label=label,
        )
    for arm, label, style in (("kd", "KD from the ensemble", "--"), ("ce", "CE alone", ":")):
        axes.axhline(results[arm]["accuracy"].mean(), color="0.4", linestyle=style, label=label)
    axes.set_xticks([0, 1], [f"{w:g}" for w in (beta, count * beta)])
    axes.set(xlim=(-0.3, 1.3), xlabel="weight on factors, sum over teachers")
    axes.set_ylabel("test accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    path = directory / f"{config.variant}-weight.png"
    figure.savefig(path, dpi=110)
    return path
