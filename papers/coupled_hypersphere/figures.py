"""The pictures of the studies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from reprise.common.config import apply_overrides
from reprise.common.studies.study import Results
from reprise.papers.coupled_hypersphere import adaptation, tasks


def _shown(test: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """One normal image, then defects of every kind in turn."""
    kinds = [np.flatnonzero(test["label"] == kind) for kind in np.unique(test["label"])]
    rounds = [kind[i] for i in range(count) for kind in kinds[1:] if i < len(kind)]
    return np.array([kinds[0][0], *rounds[: count - 1]])


def heat_maps(
    config: ConfigDict, results: Results, states: Mapping[str, list[Any]], directory: Path
) -> Path:
    """Test images, their masks, and the maps of every arm of the first seed, each on its scale."""
    from matplotlib import pyplot as plt

    test = tasks.test_set(apply_overrides(config, {"seed": config.study.seeds[0]}))
    shown = _shown(test, 7)
    image = test["image"][shown]
    figure, axes = plt.subplots(
        len(states) + 2, len(shown), figsize=(1.3 * len(shown), 1.32 * (len(states) + 2))
    )
    rows: dict[str, Any] = {"image": image.mean(-1), "defect": test["mask"][shown]}
    for arm, each in states.items():
        name = arm if arm in adaptation.ARMS else "cfa"
        score = adaptation.scores(apply_overrides(config, {"model.arm": name}))
        rows[arm] = adaptation.maps_of(score, image, len(image))(each[0])
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        low, high = np.quantile(np.asarray(pictures, np.float32), (0.01, 0.995))
        for axis, picture in zip(row, pictures, strict=True):
            if name in ("image", "defect"):
                axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            else:
                axis.imshow(picture, cmap="inferno", vmin=low, vmax=high)
            axis.set_xticks([])
            axis.set_yticks([])
        label = name
        if name in results:
            label += f"\n{results[name]['pixel_auroc'][0]:.3f}"
        row[0].set_ylabel(label, fontsize=8)
    figure.tight_layout(pad=0.3)
    path = directory / f"{config.variant}-maps.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def training(config: ConfigDict, states: Mapping[str, list[Any]], directory: Path) -> Path:
    """Radius, attraction and repulsion over the steps of every trained arm, all seeds."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6))
    arms = [arm for arm in states if arm not in adaptation.ARMS]
    titles = ("radius", "L_att", "L_rep")
    for k, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        for i, arm in enumerate(arms):
            for j, each in enumerate(states[arm]):
                track = np.asarray(each.model_state["track"])[:, k]
                width = max(1, len(track) // 60)
                smooth = track[: len(track) // width * width].reshape(-1, width).mean(1)
                steps = np.arange(len(smooth)) * width
                label = arm if j == 0 else None
                axis.plot(steps, smooth, color=f"C{i}", lw=1, label=label)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].axhline(config.model.alpha**0.5, color="0.6", lw=0.8, ls="--")
    axes[1].set_yscale("symlog")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    path = directory / f"{config.variant}-training.png"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
