"""The pictures of the studies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from reprise.common.studies.study import Results
from reprise.papers.disentangled_options import claims
from reprise.papers.disentangled_options.environments import (
    FOUR_ROOMS,
    GOALS,
    MOVES,
    fourrooms_cells,
)
from reprise.papers.disentangled_options.losses import hellinger_regularizer

COLORS = {"lambda 0": "0.45", "lambda 0.01": "C2", "lambda 0.05": "C0", "lambda 0.2": "C3"}


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def indicators(config: ConfigDict, results: Results, directory: Path) -> Path:
    """Every indicator of every arm: the seeds as dots, the mean with its 95 % interval."""
    from matplotlib import pyplot as plt

    shown = ("hellinger", "information", "usage_entropy", "duration", "return", "steps")
    names = [name for name in shown if name in results[claims.BASELINE]]
    arms = [name for name in COLORS if name in results]
    figure, axes = plt.subplots(1, len(names), figsize=(2.3 * len(names), 2.6))
    for axis, name in zip(axes, names, strict=True):
        for column, arm in enumerate(arms):
            values = results[arm][name]
            low, high = claims.interval(values)
            spread = column + np.linspace(-0.25, 0.25, len(values))
            axis.plot(spread, values, ".", color=COLORS[arm], markersize=3)
            axis.plot([column, column], [low, high], "k-", linewidth=1)
            axis.plot(column, values.mean(), "k_", markersize=12)
        axis.set_xticks(range(len(arms)), [arm.removeprefix("lambda ") for arm in arms])
        axis.set_xlabel("lambda")
        axis.set_title(name, fontsize=9)
    figure.tight_layout()
    return _save(figure, directory / f"{config.variant}-indicators.png")


def curves(config: ConfigDict, states: Mapping[str, list[Any]], directory: Path) -> Path:
    """Length of episodes, distance and information of options while they are learned."""
    from matplotlib import pyplot as plt

    m = config.model
    titles = {
        "steps": "steps an episode, last 100",
        "hellinger": "Hellinger distance, visited cells",
        "information": "I(option; action | state), nats",
    }
    figure, axes = plt.subplots(1, len(titles), figsize=(11, 2.8))
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for arm in (arm for arm in COLORS if arm in states):
            rows = np.stack([np.asarray(state.curves[name]) for state in states[arm]])
            x = (1 + np.arange(rows.shape[1])) * m.unroll * m.num_envs / 1000
            bands = np.array([claims.interval(column) for column in rows.T])
            axis.plot(x, rows.mean(0), color=COLORS[arm], linewidth=1.2, label=arm)
            axis.fill_between(x, *bands.T, color=COLORS[arm], alpha=0.2, linewidth=0)
        axis.axvline(m.goal_moves_after / 1000, color="k", linestyle=":", linewidth=1)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("thousand environment steps; the goal moves at the dots", fontsize=8)
    axes[0].set_yscale("log")
    axes[0].set_ylim(bottom=10)
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    return _save(figure, directory / f"{config.variant}-curves.png")


def rooms(config: ConfigDict, states: Mapping[str, list[Any]], directory: Path) -> Path:
    """The first seed's options on the map: where each runs, where it moves, how far apart they are.

    An arrow is the mean move of the option's policy; the shade is the share of the visits to the
    cell, since the goal moved, in which the option ran; the last map is the mean distance of pairs.
    """
    from matplotlib import pyplot as plt

    m = config.model
    cells = fourrooms_cells()
    walls = np.array([list(row) for row in FOUR_ROOMS]) == "#"
    arms = (claims.BASELINE, claims.METHOD)
    columns = m.num_options + 1
    figure, axes = plt.subplots(len(arms), columns, figsize=(2.3 * columns, 2.6 * len(arms)))
    for row, arm in zip(axes, arms, strict=True):
        state = states[arm][0]
        logits = np.asarray(state.tables.logits) / m.temperature
        probs = np.asarray(jax.nn.softmax(logits))
        visits = np.asarray(state.visits)
        share = visits / np.maximum(visits.sum(1, keepdims=True), 1)
        usage = visits.sum(0) / max(visits.sum(), 1)
        distance = np.asarray(hellinger_regularizer(state.tables.logits, temperature=m.temperature))
        goal = cells[int(state.moved_goal)]
        maps = [*share.T, distance]
        names = [f"option {w}: {usage[w]:.0%} of steps" for w in range(m.num_options)]
        names.append(f"mean distance of pairs: {distance.mean():.2f}")
        for w, (axis, values, name) in enumerate(zip(row, maps, names, strict=True)):
            picture = np.full(walls.shape, np.nan)
            picture[tuple(cells.T)] = values
            last = w == m.num_options
            shown = axis.imshow(picture, cmap="viridis" if last else "Blues", vmin=0, vmax=1)
            axis.imshow(np.where(walls, 1.0, np.nan), cmap="gray", vmin=0, vmax=4)
            axis.plot(goal[1], goal[0], "r*", markersize=8)
            if last:
                figure.colorbar(shown, ax=axis, fraction=0.046)
            else:
                down, right = (probs[:, w] @ np.array(MOVES)).T
                axis.quiver(
                    cells[:, 1],
                    cells[:, 0],
                    right,
                    down,
                    angles="xy",
                    scale=1.1,
                    scale_units="xy",
                    width=0.008,
                    color="C1",
                )
            axis.set_title(name, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(arm)
    figure.tight_layout()
    return _save(figure, directory / f"{config.variant}-rooms.png")


def forces(
    config: ConfigDict,
    grid: np.ndarray,
    found: Mapping[str, Mapping[str, np.ndarray]],
    directory: Path,
) -> Path:
    """What each option of a point mass at rest does on its way to the upper right goal.

    Args:
      config: of the study.
      grid: positions [P, 2].
      found: arm -> {"mean" [P, O, 2], "best" [P] option of the largest value, "distance" [P] mean
        distance of pairs}.
      directory: where it goes.
    """
    from matplotlib import pyplot as plt

    columns = config.model.num_options + 1
    figure, axes = plt.subplots(len(found), columns, figsize=(2.3 * columns, 2.6 * len(found)))
    for row, (arm, values) in zip(axes, found.items(), strict=True):
        for w, axis in enumerate(row):
            axis.plot(*GOALS[-1], "r*", markersize=9)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_aspect("equal")
            axis.set_xlim(-1.1, 1.1)
            axis.set_ylim(-1.1, 1.1)
            if w == columns - 1:
                dots = axis.scatter(
                    *grid.T, c=values["distance"], s=26, marker="s", cmap="viridis", vmin=0, vmax=1
                )
                figure.colorbar(dots, ax=axis, fraction=0.046)
                mean = values["distance"].mean()
                axis.set_title(f"mean distance of pairs: {mean:.2f}", fontsize=8)
                continue
            force = np.clip(values["mean"][:, w], -1, 1)
            best = values["best"] == w
            for mask, color in ((best, "C0"), (~best, "0.7")):
                axis.quiver(
                    *grid[mask].T,
                    *force[mask].T,
                    angles="xy",
                    scale_units="xy",
                    scale=5.5,
                    width=0.009,
                    color=color,
                )
            axis.set_title(f"option {w}: best in {best.mean():.0%}", fontsize=8)
        row[0].set_ylabel(arm)
    figure.tight_layout()
    return _save(figure, directory / f"{config.variant}-forces.png")
