"""The pictures of the studies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from reprise.common.studies.study import Results

NAMES = {
    "ensiam": "EnSiam",
    "simsiam_kaug": "SimSiam K-aug",
    "simsiam_equal_compute": "SimSiam, equal compute",
    "simsiam": "SimSiam, equal epochs",
    "ensiam_k2": "EnSiam, K = 2",
    "no_stop_gradient": "no stop-gradient",
    "untrained": "untrained",
}
COLORS = dict(zip(NAMES, ("C0", "C1", "C2", "C4", "C9", "C3", "0.5"), strict=True))


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def collapse(
    config: ConfigDict, results: Results, states: Mapping[str, list[Any]], directory: Path
) -> Path:
    """Spectrum of the projections, their deviation, and the variance of the target, by arm."""
    from matplotlib import pyplot as plt

    from reprise.papers.ensiam import judging, tasks, training

    collect = judging.features(config, training.network(config), tasks.sets(config)[1]["image"])
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    for name, each in states.items():
        z = collect(each[0])["projection"]
        unit = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
        values = np.linalg.svd(unit - unit.mean(0), compute_uv=False)
        axes[0].semilogy(np.maximum(values, 1e-4), color=COLORS[name], label=NAMES[name])
    axes[0].set_xlabel("dimension")
    axes[0].set_ylabel("singular value of z / |z|")
    axes[0].legend(fontsize=7)
    _dots(axes[1], results, "collapse_std", "std of z / |z|, times sqrt(d)")
    axes[1].axvline(0.3, color="0.6", linestyle=":")
    _dots(axes[2], results, "variance_ensemble", "variance of the target", "variance_single")
    axes[2].set_title("ring: one view, dot: mean of 4", fontsize=8)
    return _save(figure, directory / f"{config.variant}-collapse.png")


def _dots(axis: Any, results: Results, metric: str, label: str, ring: str = "") -> None:
    for row, (name, values) in enumerate(results.items()):
        for shown, face in ((metric, COLORS[name]), (ring, "none")):
            if shown:
                axis.plot(
                    values[shown],
                    np.full(len(values[shown]), row),
                    "o",
                    color=COLORS[name],
                    markerfacecolor=face,
                    markersize=5,
                )
    axis.set_yticks(range(len(results)), [NAMES[name] for name in results], fontsize=8)
    axis.set_ylim(-0.5, len(results) - 0.5)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.locator_params(axis="x", nbins=3)
    axis.set_xlabel(label)


def stability(config: ConfigDict, results: Results, directory: Path) -> Path:
    """kNN accuracy by learning rate and by strength: mean over seeds as lines, seeds as dots."""
    from matplotlib import pyplot as plt

    from reprise.papers.ensiam import sweep

    rate, strength = config.optimizer.learning_rate, config.data.strength
    found = sweep.settings(config)
    axes_of = {
        "learning rate": {n: r for n, (r, s) in found.items() if s == strength},
        "strength of augmentation": {n: s for n, (r, s) in found.items() if r == rate},
    }
    axes_of = {label: points for label, points in axes_of.items() if len(points) > 1}
    figure, axes = plt.subplots(
        1, len(axes_of) + 1, figsize=(4 * len(axes_of) + 4, 3.4), squeeze=False
    )
    for axis, (label, points) in zip(axes[0], axes_of.items(), strict=False):
        for row, (name, metrics) in enumerate(results.items()):
            order = sorted(points, key=points.__getitem__)
            x = np.asarray([points[n] for n in order])
            x = x * 1.04 ** (row - 1) if label == "learning rate" else x + 0.03 * (row - 1)
            y = np.stack([metrics[f"knn_{n}"] for n in order])
            axis.plot(x, y.mean(1), color=COLORS[name], label=NAMES[name])
            axis.plot(x, y, ".", color=COLORS[name], markersize=4)
        if label == "learning rate":
            axis.set_xscale("log")
            axis.set_xticks(sorted(points.values()), [f"{v:g}" for v in sorted(points.values())])
            axis.minorticks_off()
        axis.set_xlabel(label)
        axis.set_ylabel("kNN accuracy")
    axes[0][0].legend(fontsize=8)
    _dots(axes[0][-1], results, "knn_range", "largest - smallest over settings")
    return _save(figure, directory / f"{config.variant}-settings.png")
