"""The pictures of the studies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from reprise.common.evaluation.pose import normalized_error
from reprise.common.studies.study import Results


def error(shapes: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The normalised error of each frame, as it is."""
    return np.asarray(normalized_error(jnp.asarray(shapes), jnp.asarray(target)))


def best_mirror(shapes: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Each frame [F, P, 3] with the sign of the depth that is nearer to the target."""
    mirrored = shapes * np.array([1, 1, -1], shapes.dtype)
    nearer = error(mirrored, target) < error(shapes, target)
    return np.where(nearer[:, None, None], mirrored, shapes)


def _draw(axis: Any, points: np.ndarray, edges: np.ndarray, color: str) -> None:
    for a, b in edges:
        axis.plot(points[[a, b], 0], points[[a, b], 1], "-", color=color, linewidth=1)
    axis.plot(points[:, 0], points[:, 1], ".", color=color, markersize=3)
    axis.set_aspect("equal")
    axis.axis("off")


def skeletons(
    rows: Sequence[tuple[str, np.ndarray, np.ndarray]],
    shapes: Mapping[str, np.ndarray],
    path: Path,
) -> Path:
    """A row a frame: the 2D points, then every shape from the side, where only depth is new.

    Args:
      rows: (label, points2d [P, 2], edges [E, 2]).
      shapes: name -> [rows, P, 3]; "truth" is drawn in grey behind the others.
      path: of the picture.
    """
    from matplotlib import pyplot as plt

    columns = ["seen", *shapes]
    size = (1.5 * len(columns), 1.6 * len(rows))
    figure, axes = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False)
    for row, (label, points2d, edges) in enumerate(rows):
        _draw(axes[row, 0], points2d, edges, "tab:blue")
        truth = shapes["truth"][row][:, [2, 1]]
        limit = 1.15 * np.abs(truth).max()
        for axis, (name, value) in zip(axes[row, 1:], shapes.items(), strict=True):
            _draw(axis, truth, edges, "0.75" if name != "truth" else "black")
            if name != "truth":
                _draw(axis, value[row][:, [2, 1]], edges, "tab:red")
                far = error(value[row][None], shapes["truth"][row][None])[0]
                axis.text(0.02, 0.0, f"{far:.2f}", transform=axis.transAxes, fontsize=7)
            axis.set_xlim(-limit, limit)
            axis.set_ylim(-limit, limit)
        axes[row, 0].set_title(label if row else f"seen\n{label}", fontsize=8)
        for axis, name in zip(axes[row, 1:], shapes, strict=True):
            axis.set_title(f"{name}\nfrom the side" if row == 0 else "", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def errors(results: Results, metrics: Sequence[str], directory: Path, variant: str) -> Path:
    """Bars of every arm, one colour a metric, with each seed as a dot."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.5, 0.55 * len(results) + 1))
    height = 0.8 / len(metrics)
    for k, (metric, color) in enumerate(zip(metrics, ("tab:blue", "0.7"), strict=True)):
        at = np.arange(len(results)) + (k - (len(metrics) - 1) / 2) * height
        label = "one mirror for all frames" if metric.endswith("global") else "mirror by frame"
        values = [arm[metric] for arm in results.values()]
        axis.barh(at, [v.mean() for v in values], height, color=color, label=label)
        for y, v in zip(at, values, strict=True):
            axis.plot(v, np.full(len(v), y), "k.", markersize=3)
    axis.set_yticks(range(len(results)), [name.replace("_", " ") for name in results], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("normalised 3D error")
    axis.legend(fontsize=7)
    figure.tight_layout()
    path = directory / f"{variant}-errors.png"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def animation(
    shapes: Mapping[str, np.ndarray], edges: np.ndarray, up: np.ndarray, path: Path
) -> Path:
    """The frames [F, P, 3] of each, side by side, seen from one place; `up` [3] is upwards."""
    from matplotlib import animation as animations
    from matplotlib import pyplot as plt

    truth = shapes["truth"]
    # The body's long axis stands; the view is 30 degrees beside the widest side.
    _, _, axes = np.linalg.svd(truth.reshape(-1, 3), full_matrices=False)
    angle = np.pi / 6
    upright = axes[0] * np.sign(axes[0] @ up)
    view = np.stack([np.cos(angle) * axes[1] + np.sin(angle) * axes[2], upright], 1)
    flat = {name: value @ view for name, value in shapes.items()}
    limit = 1.1 * np.abs(flat["truth"]).max()
    figure, panels = plt.subplots(1, len(shapes), figsize=(1.3 * len(shapes), 1.9))

    def show(frame: int) -> list[Any]:
        for axis, (name, value) in zip(panels, flat.items(), strict=True):
            axis.clear()
            if name != "truth":
                _draw(axis, flat["truth"][frame], edges, "0.8")
            _draw(axis, value[frame], edges, "black" if name == "truth" else "tab:red")
            axis.set_xlim(-limit, limit)
            axis.set_ylim(-limit, limit)
            axis.set_title(name, fontsize=7)
        return []

    figure.tight_layout()
    steps = range(0, len(truth), 2)
    made = animations.FuncAnimation(figure, show, steps)
    made.save(path, writer=animations.PillowWriter(fps=8), dpi=80)
    plt.close(figure)
    return path
