"""The pictures of the studies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.papers.fixed_point_layer import tasks


def residual_curve(model: Any, params: Any, noisy: Any, num_iters: int) -> np.ndarray:
    """||g(x) - x|| / ||x|| of the batch along the plain iteration of a `Denoiser`: [num_iters]."""
    bound = model.bind({"params": params})
    taps = bound(noisy)[1]
    y = taps["y"]
    g, cell = bound.fixed_point.map(), params["fixed_point"]["cell"]

    def body(x: Any, _: None) -> Any:
        after = g(cell, x, y)
        return after, jnp.linalg.norm(after - x) / jnp.maximum(jnp.linalg.norm(x), 1e-12)

    _, residuals = jax.jit(lambda x: jax.lax.scan(body, x, None, length=num_iters))(
        jnp.zeros_like(taps["x"])
    )
    return np.asarray(residuals)[1:]


def restored(
    config: ConfigDict,
    models: Mapping[str, Any],
    states: Mapping[str, list[Any]],
    examples: Mapping[str, np.ndarray],
    directory: Path,
) -> Path:
    """Noisy, restored and clean crops, and the residual per iteration."""
    from matplotlib import pyplot as plt

    count = len(examples["clean"])
    chosen = [count // 8, 3 * count // 8, 7 * count // 8]
    noisy, clean = (jnp.asarray(examples[name][chosen]) for name in ("noisy", "clean"))
    rows = {"noisy": noisy}
    for name, model in models.items():
        params = states[name][0].params
        rows[name] = model.apply({"params": params}, noisy)[0]
    rows["clean"] = clean
    figure, axes = plt.subplots(3, len(rows) + 1, figsize=(2.2 * (len(rows) + 1), 6.6))
    for column, (name, images) in enumerate(rows.items()):
        values = tasks.psnr(images, clean)
        for row in range(3):
            axis = axes[row, column]
            axis.imshow(np.clip(np.asarray(images[row, ..., 0]), 0, 1), cmap="gray", vmin=0, vmax=1)
            axis.axis("off")
            shown = "" if name == "clean" else f" {float(values[row]):.1f} dB"
            axis.set_title(name.replace("_", " ") + shown, fontsize=8)
    for row in range(3):
        axes[row, -1].axis("off")
    axis = figure.add_subplot(3, len(rows) + 1, len(rows) + 1)
    params = states["fpi"][0].params
    axis.semilogy(residual_curve(models["fpi"], params, noisy, 40))
    axis.set_title("relative step per iteration", fontsize=8)
    axis.tick_params(labelsize=7)
    return _save(figure, directory / f"{config.variant}-restored.png")


def mazes(
    config: ConfigDict,
    models: Mapping[str, Any],
    states: Mapping[str, list[Any]],
    examples: Mapping[str, np.ndarray],
    directory: Path,
) -> Path:
    """Mazes of twice the trained size: free cells, true values, and what each model finds."""
    from matplotlib import pyplot as plt

    y = jnp.asarray(examples["y"])
    rows = {"free cells": examples["y"][..., :1], "value": examples["value"]}
    for name, model in models.items():
        params = states[name][0].params
        rows[name] = np.asarray(model.apply({"params": params}, y, jnp.zeros_like(y[..., :1]))[0])
    figure, axes = plt.subplots(len(rows), len(y), figsize=(1.6 * len(y), 1.7 * len(rows)))
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image[..., 0], vmin=0, vmax=1)
            axis.axis("off")
        row[0].set_title(name, fontsize=8, loc="left")
    return _save(figure, directory / f"{config.variant}-values.png")


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
