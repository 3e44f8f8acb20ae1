"""The pictures of the study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common.studies.study import Results
from reprise.common.training.distillation import Setting
from reprise.papers.multi_head_graph_distillation import judging, layers, losses


def attention_graphs(
    config: ConfigDict,
    setting: Setting,
    taps: Sequence[str],
    states: Mapping[str, Sequence[Any]],
    directory: Path,
) -> Path:
    """Graphs of teacher, student alone and MHGD student on one test batch, the first seed's.

    Rows are pairs of taps; each graph is the mean over heads of softmax(tanh(S)), its examples in
    the order of their classes, with the share of 1 / B, that of no preference, in the middle of the
    scale.
    """
    from matplotlib.figure import Figure

    data, count = setting.evaluation[""], config.batch_size
    order = np.argsort(data["label"][:count], kind="stable")
    image = jnp.asarray(data["image"][:count][order])
    label = data["label"][:count][order]
    pairs = states["mhgd"][0].model_state.extra

    def of(vectors: Sequence[Any]) -> list[Any]:
        heads = config.model.num_heads
        return [
            layers.attention_logits(p, vectors[i + 1], vectors[i], num_heads=heads)
            for i, p in enumerate(pairs)
        ]

    alone, teacher = judging.vectors_of(setting, taps, states["ce"][0], image)
    ours, _ = judging.vectors_of(setting, taps, states["mhgd"][0], image)
    graphs = {"teacher": of(teacher), "student alone": of(alone), "MHGD student": of(ours)}
    figure = Figure(figsize=(8.4, 2.7 * len(pairs)), layout="constrained")
    grid = figure.subplots(len(pairs), len(graphs), squeeze=False)
    edges = np.flatnonzero(np.diff(label)) + 0.5
    for row in range(len(pairs)):
        for axes, (name, each) in zip(grid[row], graphs.items(), strict=True):
            share = np.asarray(jax.nn.softmax(jnp.tanh(each[row]), -1).mean(0)) * count
            shown = axes.imshow(share, cmap="RdBu_r", vmin=0.2, vmax=1.8, interpolation="nearest")
            far = losses.attention_graph_loss(each[row], graphs["teacher"][row]).sum()
            title = name if name == "teacher" else f"{name}: KL {float(far):.0f}"
            axes.set_title(title, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            for edge in edges:
                axes.axhline(edge, color="k", linewidth=0.3)
                axes.axvline(edge, color="k", linewidth=0.3)
        grid[row][0].set_ylabel(f"{taps[row + 1]} attends to {taps[row]}", fontsize=9)
    bar = figure.colorbar(shown, ax=grid, shrink=0.6)
    bar.set_label("attention x batch size, mean over heads", fontsize=8)
    path = directory / f"{config.variant}-graphs.png"
    figure.savefig(path, dpi=100)
    return path


def distances(
    config: ConfigDict,
    results: Results,
    states: Mapping[str, Sequence[Any]],
    evaluators: Sequence[Any],
    directory: Path,
) -> Path:
    """Distance of graphs from the teacher's against their correlation with them, a dot a seed.

    The line is the distance of graphs without any preference.

    Args:
      config, results, states, directory: of the study.
      evaluators: `judging.likeness` of each seed's setting.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    names = {"mhgd": "MHGD", "ce": "student alone", "ce_pool": "alone, pool in BatchNorm"}
    flat = []
    for arm in (arm for arm in names if arm in results):
        each = [f(state) for f, state in zip(evaluators, states[arm], strict=True)]
        flat += [m["flat_kl"] for m in each]
        correlation = np.array([m["correlation"] for m in each])
        label = f"{names[arm]} (mean correlation {correlation.mean():.2f})"
        axes.plot(correlation, results[arm]["graph_kl"], "o", alpha=0.7, label=label)
    axes.axhline(np.mean(flat), color="grey", linestyle="--", linewidth=1)
    note = f"flat graphs: {np.mean(flat):.0f}"
    axes.annotate(note, (0.02, np.mean(flat)), xycoords=("axes fraction", "data"), va="bottom")
    axes.set_ylim(0)
    axes.set_xlabel("correlation of log shares with the teacher's")
    axes.set_ylabel("KL to the teacher's graphs")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    path = directory / f"{config.variant}-distances.png"
    figure.savefig(path, dpi=110)
    return path
