"""How well BatchNorm's parameters predict the negative responses."""

from functools import reduce
from operator import getitem
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common.training import distillation, distillation_setting
from reprise.common.training.distillation import Carried
from reprise.papers.overhaul_distillation.margins import (
    margin_from_batchnorm,
    margin_from_features,
    norms_of_taps,
)


def margins(config: ConfigDict, carried: Carried, directory: Path) -> Path:
    """Each channel's margin from BatchNorm against the mean negative response it stands for."""
    from matplotlib.figure import Figure

    setting = distillation_setting.build(config)
    norms = norms_of_taps(
        setting.teacher, setting.teacher_data["image"].shape[1:], config.model.taps
    )
    norms = {tap: path for tap, path in norms.items() if path}
    image = jnp.asarray(setting.teacher_data["image"][:1000])

    @jax.jit
    def pairs(carried: Carried) -> dict[str, tuple[jax.Array, jax.Array]]:
        _, taps = distillation.run_teacher(setting, carried, image, batch_statistics=True)
        found = {}
        for tap, path in norms.items():
            norm = reduce(getitem, path, carried.teacher["params"])
            predicted = margin_from_batchnorm(norm["scale"], norm["bias"])
            found[tap] = (predicted, margin_from_features(taps[tap]))
        return found

    figure = Figure(figsize=(2.7 * len(norms), 2.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(norms)))
    for axes, (tap, both) in zip(panels, pairs(carried).items(), strict=True):
        predicted, seen = (np.asarray(x) for x in both)
        ends = min(predicted.min(), seen.min()) - 0.05, max(predicted.max(), seen.max()) + 0.05
        axes.plot(ends, ends, color="0.7", linewidth=1)
        axes.scatter(predicted, seen, s=10)
        axes.set(title=tap, xlabel="margin from BatchNorm", xlim=ends, ylim=ends, aspect="equal")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean negative response")
    path = directory / f"{config.variant}-margins.png"
    figure.savefig(path, dpi=110)
    return path
