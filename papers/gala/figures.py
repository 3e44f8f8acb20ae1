"""The pictures of the studies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from reprise.common.studies.study import Results
from reprise.papers.gala.readout import READOUTS, unit_rows


def embedding(
    config: ConfigDict, steps: Sequence[int], latents: Sequence[Any], labels: Any, directory: Path
) -> Path:
    """t-SNE of the latent rows at unit norm, coloured by class, over training."""
    from matplotlib import pyplot as plt
    from sklearn.manifold import TSNE

    figure, axes = plt.subplots(1, len(steps), figsize=(3.1 * len(steps), 3.2), squeeze=False)
    where: Any = "pca"
    for axis, step, latent in zip(axes[0], steps, latents, strict=True):
        rows = np.asarray(unit_rows(latent))
        # Fifty principal directions first, and each picture starts from the one before.
        rows = rows - rows.mean(0)
        left, values, _ = np.linalg.svd(rows, full_matrices=False)
        reduced = left[:, :50] * values[:50]
        start = where if isinstance(where, str) else where / where[:, 0].std() * 1e-2
        where = TSNE(init=start, random_state=0, max_iter=500, learning_rate="auto").fit_transform(
            reduced
        )
        axis.scatter(*where.T, c=labels, s=3, cmap="tab10", vmin=-0.5, vmax=9.5, linewidths=0)
        axis.set_title(f"{step} updates", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    path = directory / f"{config.variant}-embedding.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def readouts(config: ConfigDict, results: Results, directory: Path) -> Path:
    """Accuracy of every arm under every read-out after training; each seed is a dot."""
    from matplotlib import pyplot as plt

    columns = [*(f"acc_{name}" for name in READOUTS), "acc"]
    titles = [*READOUTS, "chosen by modularity"]
    arms = list(results)
    figure, axes = plt.subplots(
        1, len(columns), figsize=(2.0 * len(columns) + 1.5, 0.32 * len(arms) + 1.1), sharey=True
    )
    for axis, column, title in zip(axes, columns, titles, strict=True):
        for row, arm in enumerate(arms):
            values = results[arm][column]
            axis.barh(row, values.mean(), color="0.8")
            axis.plot(values, np.full(len(values), row), "k.", markersize=3)
        axis.set_title(title, fontsize=9)
        axis.set_xlim(0, 1)
        axis.set_xlabel("accuracy", fontsize=8)
        axis.tick_params(labelsize=8)
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].invert_yaxis()
    figure.tight_layout()
    path = directory / f"{config.variant}-readouts.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path
