"""Motion-capture sequences: shapes of the frames that were seen, never their depth."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from reprise.common import config as configs
from reprise.common.evaluation.pose import normalized_error
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training.phase import Phase
from reprise.papers.procrustean_regression import figures, parts, tasks


def frames(config: ConfigDict) -> Any:
    d = config.data
    return tasks.sequences(
        tuple(d.sequences), d.frames, missing=d.missing, seed=config.seed, data_dir=config.data_dir
    )


def phases(config: ConfigDict) -> list[Phase]:
    seen = frames(config)
    predict = parts.predictor(config, seen)

    def evaluate(current: Any) -> dict[str, float]:
        out: dict[str, float] = {}
        shapes = predict(current)
        for name, found, target in zip(config.data.sequences, shapes, seen["target"], strict=True):
            each = normalized_error(found, target, reflection="per_example")
            both = normalized_error(found, target, reflection="global")
            out |= {name: float(each.mean()), f"{name}_global": float(both.mean())}
        for suffix in ("", "_global"):
            own = [out[f"{name}{suffix}"] for name in config.data.sequences]
            out[f"error{suffix}"] = float(np.mean(own))
        return out

    method = config.model.method
    if method == "prn":
        return [
            parts.network_phase(config, "train", config.num_steps, seen, evaluate, frozen=False)
        ]
    if method == "fit":
        return [parts.fit_phase(config, seen, evaluate)]
    if method == "low_rank":
        return [parts.low_rank_phase(evaluate)]
    raise ValueError(f"config.model.method = {method!r}: allowed are prn, fit, low_rank")


def study(config: ConfigDict) -> Study:
    fit = {
        "model.method": "fit",
        "num_steps": config.model.fit_steps,
        "optimizer.learning_rate": config.model.fit_learning_rate,
    }
    arms = {
        "prn": Arm(),
        "prn_no_alignment": Arm({"model.alignment": "none"}),
        "prn_detached": Arm({"model.alignment": "detached"}),
        "fit": Arm(fit),
        "fit_detached": Arm({**fit, "model.alignment": "detached"}),
        "fit_no_alignment": Arm({**fit, "model.alignment": "none"}),
        "low_rank": Arm({"model.method": "low_rank", "num_steps": 0}),
    }

    def claim(results: Results) -> tuple[str, bool]:
        mean = {name: arm["error"] for name, arm in results.items()}
        pairs = [(a, f"{a}_no_alignment") for a in ("prn", "fit")]
        holds = all((mean[a] < mean[b]).all() for a, b in pairs)
        shown = ", ".join(f"{name} {value.mean():.3f}" for name, value in mean.items())
        text = (
            "mean normalised error of the sequences, with network and without, below that without "
            f"alignment in every seed: {shown}"
        )
        return text, holds

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        seen = frames(config)
        found: dict[str, np.ndarray] = {}
        for arm in ("prn", "fit", "low_rank", "fit_no_alignment"):
            own = configs.apply_overrides(config, arms[arm].overrides)
            shapes = parts.predictor(own, seen)(states[arm][0])
            pairs = zip(shapes, seen["target"], strict=True)
            found[arm] = np.stack([figures.best_mirror(one, target) for one, target in pairs])
        names = tuple(config.data.sequences)
        edges = {name: tasks.edges(name, config.data_dir) for name in names}
        middle = config.data.frames // 2
        rows = [(n, seen["points2d"][i, middle], edges[n]) for i, n in enumerate(names)]
        shown = {"truth": seen["target"][:, middle]}
        shown |= {name.replace("_", " "): shapes[:, middle] for name, shapes in found.items()}
        paths = [
            figures.skeletons(rows, shown, directory / f"{config.variant}-shapes.png"),
            figures.errors(results, ("error", "error_global"), directory, config.variant),
        ]
        if config.data.animated in names and not config.data.missing:
            at = names.index(config.data.animated)
            # In the frame of the motion: the camera's turn is undone by the true camera.
            world = {
                name: np.einsum("fij,fpi->fpj", seen["camera"][at], shapes[at])
                for name, shapes in {"truth": seen["target"], **found}.items()
            }
            moving = {name.replace("_", " "): shapes for name, shapes in world.items()}
            path = directory / f"{config.variant}-{config.data.animated}.gif"
            up = seen["camera"][at, :, 1].mean(0)
            paths.append(figures.animation(moving, edges[config.data.animated], up, path))
        return paths

    return Study(arms, claim, figures=draw)
