"""The pictures of the studies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from reprise.common.evaluation.flow import flow_to_color
from reprise.common.studies.study import Results


def flows(pairs: Mapping[str, Any], found: Mapping[str, Any], path: Path, count: int = 4) -> Path:
    """Both images, the true flow and the ones found, by the colour wheel; one scale a pair."""
    from matplotlib import pyplot as plt

    count = min(count, len(pairs["first"]))
    rows = ["first", "second", "true flow", *found]
    figure, axes = plt.subplots(len(rows), count, figsize=(2 * count, 1.9 * len(rows)))
    for column in range(count):
        target = np.asarray(pairs["flow"][column])
        largest = float(np.linalg.norm(target, axis=-1).max())
        fields = [target, *(np.asarray(flow[column]) for flow in found.values())]
        images = [np.asarray(pairs[name][column, ..., 0]) for name in ("first", "second")]
        images += [flow_to_color(field, largest) for field in fields]
        for axis, name, image in zip(axes[:, column], rows, images, strict=True):
            axis.imshow(image, cmap="gray")
            axis.axis("off")
            error = ""
            if name in found:
                distance = np.linalg.norm(np.asarray(found[name][column]) - target, axis=-1)
                error = f" {distance.mean():.2f} px"
            axis.set_title(name + error, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def errors(config: ConfigDict, results: Results, directory: Path) -> Path:
    """Mean error of every arm with each seed as a dot."""
    from matplotlib import pyplot as plt

    bars = {name: metrics["error"] for name, metrics in results.items()}
    bars["learned, 2T"] = results["learned"]["error_2T"]
    bars["predict 0"] = results["learned"]["predict_zero"]
    figure, axis = plt.subplots(figsize=(6, 2.8))
    for row, values in enumerate(bars.values()):
        axis.barh(row, values.mean(), color="0.8")
        axis.plot(values, np.full(len(values), row), "k.", markersize=4)
    axis.set_yticks(range(len(bars)), list(bars))
    axis.invert_yaxis()
    axis.set_xlabel("mean |x - d|, samples")
    figure.tight_layout()
    path = directory / f"{config.variant}-errors.png"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
