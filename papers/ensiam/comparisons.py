"""The arms, claims and figures of the studies."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from reprise.common.studies.study import Arm, Results, Study
from reprise.papers.ensiam import figures


def _arms(config: ConfigDict) -> dict[str, Arm]:
    """The method, SimSiam of as many views, and SimSiam of two with as many passes in all."""
    longer = config.num_steps * config.model.num_views // 2
    two = {"model.loss": "simsiam", "model.num_views": 2}
    return {
        "ensiam": Arm(),
        "simsiam_kaug": Arm({"model.loss": "simsiam"}),
        "simsiam_equal_compute": Arm(two | {"num_steps": longer}),
    }


def verdict(difference: np.ndarray) -> str:
    """`+0.0123 (ahead)`: a mean over paired seeds within two standard errors of 0 is a tie."""
    error = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else np.inf
    mean = difference.mean()
    word = "tie" if abs(mean) <= 2 * error else "ahead" if mean > 0 else "behind"
    return f"{mean:+.4f} ({word})"


def accuracy(config: ConfigDict) -> Study:
    two = {"model.loss": "simsiam", "model.num_views": 2}
    reported = {"cifar10": {"probe": 0.918}, "imagenet": {"top1": 0.681}}.get(config.variant, {})
    arms = _arms(config) | {"simsiam": Arm(two, reported)}
    measured = "knn" if config.judge.features else "top1"
    if config.judge.redraws:
        # How much of the accuracy the training is responsible for.
        arms["untrained"] = Arm({"num_steps": 0})
        arms["ensiam_k2"] = Arm({"model.num_views": 2})
        arms["no_stop_gradient"] = Arm({"model.loss": "no_stop_gradient", "model.num_views": 2})

    def claim(results: Results) -> tuple[str, bool]:
        ours = results["ensiam"]
        gain = {name: ours[measured] - other[measured] for name, other in results.items()}
        text = (
            f"{measured} above SimSiam's at equal epochs: {verdict(gain['simsiam'])}, and at equal "
            f"compute: {verdict(gain['simsiam_equal_compute'])}; against SimSiam of as many views: "
            f"{verdict(gain['simsiam_kaug'])}"
        )
        if "untrained" in results:
            text += f"; against the untrained network: {verdict(gain['untrained'])}"
        holds = all("ahead" in verdict(gain[n]) for n in ("simsiam", "simsiam_equal_compute"))
        if "variance_single" in ours:
            ratio = ours["variance_ensemble"] / ours["variance_single"]
            text += (
                f"; the target's variance is at most half of one view's: worst {ratio.max():.2f}"
            )
            holds &= bool((ratio <= 0.5).all())
        return text, holds

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        if not config.judge.redraws:
            return []
        return [figures.collapse(config, results, states, directory)]

    return Study(arms, claim, figures=draw)


def stability(config: ConfigDict) -> Study:
    def claim(results: Results) -> tuple[str, bool]:
        spread = {name: metrics["knn_range"] for name, metrics in results.items()}
        change = spread["ensiam"] - spread["simsiam_equal_compute"]
        means = ", ".join(f"{name} {value.mean():.3f}" for name, value in spread.items())
        pairwise = spread["ensiam"] - spread["simsiam_kaug"]
        holds = "behind" in verdict(change)
        text = (
            "kNN accuracy varies less over the settings (largest minus smallest) than SimSiam's at "
            f"equal compute: {means}; difference {_smaller(change)}, against SimSiam of as many "
            f"views {_smaller(pairwise)}"
        )
        return text, holds

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        return [figures.stability(config, results, directory)]

    return Study(_arms(config), claim, figures=draw)


def _smaller(difference: np.ndarray) -> str:
    """The verdict in words that fit a spread, of which less is better."""
    return verdict(difference).replace("behind", "less").replace("ahead", "more")
