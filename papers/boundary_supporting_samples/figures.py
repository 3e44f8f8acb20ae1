"""Pictures of boundaries in the plane, and of digits moved to a boundary."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from reprise.common.studies.study import Results
from reprise.common.training import distillation
from reprise.papers.boundary_supporting_samples import recipe, spirals
from reprise.papers.boundary_supporting_samples.samples import sample_target_class

COLOURS = ("#4477aa", "#ee6677", "#228833")
NAMES = {"ce": "cross entropy alone", "kd": "KD", "bss": "KD and BSS"}


def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
    """The figures of a variant, of the study's first seed."""
    if config.data.name == "spiral":
        return [boundaries(config, results, states, directory)]
    return [moved_images(config, states, directory)]


def boundaries(config: ConfigDict, results: Results, states: Any, directory: Path) -> Path:
    """The plane as the teacher and each student divide it, and the walk of the student's points."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    setting = recipe.build(config)
    points, label = (setting.student_data[name] for name in ("image", "label"))
    size, reach = 300, 2.0
    plane = spirals.grid(size, reach)
    carried = states["bss"][0].model_state

    def teacher(x: Any) -> Any:
        return distillation.run_teacher(setting, carried, x)[0]

    target = sample_target_class(teacher(points), jax.random.key(0))
    path = []
    for steps in range(config.model.num_walk + 1):
        m = config.model.copy_and_resolve_references()
        m.num_walk = steps
        path.append(np.asarray(recipe.walk(m, teacher, points, target)).reshape(-1, 2))
    divided = np.asarray(teacher(plane)).argmax(-1).reshape(size, size)

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = figure.subplots(1, 4)
    axis = np.linspace(-reach, reach, size)
    extent = (-reach, reach, -reach, reach)
    look = {"cmap": ListedColormap(COLOURS), "alpha": 0.35, "vmin": 0, "vmax": 2}
    for axes, arm in zip(panels, ("teacher", "ce", "kd", "bss"), strict=True):
        if arm == "teacher":
            axes.imshow(divided, origin="lower", extent=extent, **look)
            axes.plot(*np.stack(path).transpose(2, 0, 1), color="black", lw=0.8)
            axes.plot(*path[-1].T, "x", color="black", ms=4)
            axes.set_title("teacher, and the walk\nof the student's points", fontsize=9)
        else:
            state = states[arm][0]
            variables = {"params": state.params["student"], "batch_stats": {}}
            logits, _ = setting.student.apply(variables, plane, train=False)
            own = np.asarray(logits).argmax(-1).reshape(size, size)
            axes.imshow(own, origin="lower", extent=extent, **look)
            for k in range(3):
                axes.contour(axis, axis, divided == k, [0.5], colors="black", linewidths=0.8)
            accuracy, agreement = (100 * results[arm][m][0] for m in ("accuracy", "agreement"))
            axes.set_title(
                f"{NAMES[arm]}\naccuracy {accuracy:.1f}, agreement {agreement:.1f}", fontsize=9
            )
        axes.scatter(
            *points.reshape(-1, 2).T, c=[COLOURS[k] for k in label], s=14, ec="white", lw=0.5
        )
        axes.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    out = directory / f"{config.variant}-boundaries.png"
    figure.savefig(out, dpi=110)
    return out


def moved_images(config: ConfigDict, states: Any, directory: Path) -> Path:
    """Training images, where the walk takes them, and the difference."""
    from matplotlib.figure import Figure

    setting = recipe.build(config)
    image = setting.student_data["image"][:10]
    carried = states["bss"][0].model_state

    def teacher(x: Any) -> Any:
        return distillation.run_teacher(setting, carried, x)[0]

    logits = teacher(image)
    target = sample_target_class(logits, jax.random.key(0))
    moved = np.asarray(recipe.walk(config.model, teacher, image, target))
    after = np.asarray(teacher(moved)).argmax(-1)
    figure = Figure(figsize=(9, 3), layout="constrained")
    rows = figure.subplots(3, len(image))
    low, high = float(image.min()), float(image.max())
    for column, (x, y) in enumerate(zip(image, moved, strict=True)):
        for row, picture in enumerate((x, y, y - x)):
            axes = rows[row, column]
            shown = picture if picture.shape[-1] == 1 else (picture - low) / (high - low)
            reach = (high - low) / 2
            limits = (-reach, reach) if row == 2 else (low, high)
            axes.imshow(
                np.clip(shown, 0, 1) if picture.shape[-1] == 3 else shown,
                cmap="RdBu" if row == 2 else "gray",
                vmin=limits[0],
                vmax=limits[1],
            )
            axes.set(xticks=[], yticks=[])
        first, towards = int(np.asarray(logits)[column].argmax()), int(target[column])
        rows[0, column].set_title(f"{first} to {towards}", fontsize=9)
        rows[1, column].set_title(f"seen as {after[column]}", fontsize=9)
    for axes, text in zip(rows[:, 0], ("image", "BSS", "difference"), strict=True):
        axes.set_ylabel(text, fontsize=9)
    out = directory / f"{config.variant}-samples.png"
    figure.savefig(out, dpi=110)
    return out
