"""The picture of the embedding procedure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from reprise.common import config as configs
from reprise.common.training import distillation, distillation_setting
from reprise.papers.embedding_procedure_transfer import layers, parts


def procedure(config: ConfigDict, states: Mapping[str, list[Any]], directory: Path) -> Path:
    """Points at every tap and affinities at every iteration, for one batch and the first seed.

    Rows: teacher; student before training, trained alone, and with the transfer. All are seen
    through the teacher's principal axes and its message passing, on test images.
    """
    from matplotlib.figure import Figure

    first = configs.apply_overrides(config, {"seed": config.study.seeds[0]})
    setting = distillation_setting.build(first)
    test = setting.evaluation[""]
    rows = np.concatenate([np.flatnonzero(test["label"] == digit)[:5] for digit in range(10)])
    image, label = test["image"][rows], test["label"][rows]
    carried = states["iep"][0].model_state
    start = jax.jit(setting.student.init, static_argnames="train")
    students = {
        "student, untrained": start(jax.random.key(0), image, train=False),
        "student, alone": _variables(states["ce"][0]),
        "student, with IEP": _variables(states["iep"][0]),
    }

    @jax.jit
    def see(variables: Any) -> Any:
        _, targets = distillation.run_teacher(setting, carried, image)
        # As in training, where the batch normalises itself.
        (_, taps), _ = setting.student.apply(variables, image, train=True, mutable=["batch_stats"])
        points = parts.planes(taps, targets)
        pca = parts.axes(config, carried.extra["pca"], points[1])
        return [
            _stages(config, carried.extra["networks"]["passing"], parts.project(pca, p))
            for p in points
        ]

    seen = {name: see(variables) for name, variables in students.items()}
    shown = {"teacher": seen["student, alone"][1], **{k: v[0] for k, v in seen.items()}}
    teacher_points, teacher_affinities = shown["teacher"]
    columns = len(teacher_points) + len(teacher_affinities)
    figure = Figure(figsize=(1.75 * columns + 0.4, 1.75 * len(shown) + 0.4), layout="constrained")
    grid = figure.subplots(len(shown), columns)
    low, high = (f(teacher_affinities) for f in (np.min, np.max))
    for line, (name, (points, affinities)) in zip(grid, shown.items(), strict=True):
        line[0].set_ylabel(name)
        for axes, x, reference in zip(line, points, teacher_points, strict=False):
            axes.scatter(*np.asarray(x)[:, :2].T, c=label, cmap="tab10", s=9)
            most = 1.15 * np.abs(reference[:, :2]).max()
            axes.set(xlim=(-most, most), ylim=(-most, most))
        for axes, affinity in zip(line[len(points) :], affinities, strict=True):
            picture = axes.imshow(affinity, "magma", vmin=low, vmax=high, interpolation="nearest")
        for axes in line:
            axes.set(xticks=[], yticks=[], box_aspect=1)
    titles = [f"points, stage {i + 1}" for i in range(len(teacher_points))]
    titles += ["affinity, start"] + [
        f"iteration {i + 1}" for i in range(config.model.num_iterations)
    ]
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    figure.colorbar(picture, ax=grid, shrink=0.4, aspect=25, label="affinity, stage 2 to 3")
    figure.supxlabel("50 test images; colour: digit; affinities: sorted by digit", fontsize=10)
    path = directory / f"{config.variant}-procedure.png"
    figure.savefig(path, dpi=100)
    return path


def _variables(state: Any) -> dict[str, Any]:
    return {"params": state.params["student"], "batch_stats": state.model_state.stats}


def _stages(config: ConfigDict, networks: Any, points: parts.Points) -> Any:
    """(points of every tap, affinities of the last pair before and after every iteration)."""
    pair, (front, back) = list(parts.PAIRS.items())[-1]
    count = config.model.num_iterations
    last, messages = layers.message_passing(
        networks[pair], points[back], points[front], num_iterations=count
    )
    steps = messages.reshape(*last.shape, count, -1).mean(-1)
    # The last affinity, less the messages that were still to come.
    return list(points.values()), [last - steps[..., i:].sum(-1) for i in range(count + 1)]
