"""The pictures of runs and studies."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from reprise.common.studies.study import Results
from reprise.papers.contextual_gradient_scaling.diagnostics import Layers


def accuracies(results: Results, path: Path) -> Path:
    """Mean test accuracy of every arm, each seed a dot with its 95 % interval over tasks."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 0.4 * len(results) + 0.9))
    for row, metrics in enumerate(results.values()):
        values = 100 * metrics["accuracy"]
        axis.barh(row, values.mean(), color="0.8")
        rows = row + np.linspace(-0.2, 0.2, len(values))
        axis.errorbar(values, rows, xerr=100 * metrics["accuracy_ci95"], fmt="k.", markersize=4)
    axis.set_yticks(range(len(results)), list(results))
    axis.invert_yaxis()
    axis.set_xlabel("test accuracy, %")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def layers(moved: Mapping[str, Layers], path: Path) -> Path:
    """Norm of each layer's inner gradient, and of its update over that of its kernel."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    parts = ("gradients", "changes")
    titles = ("norm of the gradient", "norm of the update / norm of the kernel")
    for axis, part, title in zip(axes, parts, titles, strict=True):
        for label, each in moved.items():
            axis.plot(getattr(each, part), "o-", label=label)
        axis.set_xticks(range(len(each.names)), [*each.names[:-1], "head"])
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.set_title(title, fontsize=9)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
