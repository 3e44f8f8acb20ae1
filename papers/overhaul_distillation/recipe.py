"""How a student learns from the teacher's features before its ReLUs, and how it is judged."""

from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from reprise.common.ops.distillation import squared_feature_loss
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import distillation, distillation_setting
from reprise.common.training import distillation_baselines as baselines
from reprise.common.training.distillation import Carried, Setting
from reprise.common.training.phase import Phase
from reprise.papers.overhaul_distillation.losses import multilayer_overhaul_loss
from reprise.papers.overhaul_distillation.margins import (
    margin_from_batchnorm,
    margin_from_features,
    norms_of_taps,
)

# Accuracy in the official README.
REPORTED = {
    "cifar100": {"ofd": 0.7592, "ce": 0.7268},
    "cifar100_depth": {"ofd": 0.7911, "ce": 0.7728},
    "cifar100_width": {"ofd": 0.7802, "ce": 0.7512},
}


def layer_weights(count: int) -> list[float]:
    """2^-(L-1-i): a stage has half the units of the one before it."""
    return [2.0 ** (i + 1 - count) for i in range(count)]


def overhaul(setting: Setting, config: ConfigDict) -> Phase:
    """CE + alpha * the loss over all taps; with `l2` the plain squared distance in its place."""
    m = config.model
    extra_params, connect = baselines.connect(setting, {tap: tap for tap in m.taps})
    norms = norms_of_taps(setting.teacher, setting.student_data["image"].shape[1:], m.taps)

    def margin(carried: Carried, tap: str, features: Any) -> Any:
        if norms[tap] is None:
            return margin_from_features(features)
        norm = reduce(getitem, norms[tap], carried.teacher["params"])
        return margin_from_batchnorm(norm["scale"], norm["bias"])

    def loss(params: Any, carried: Carried, batch: Any, key: Any) -> Any:
        (logits, taps), carried = distillation.run_student(
            setting, params["student"], carried, batch["image"]
        )
        _, targets = distillation.run_teacher(
            setting, carried, batch["image"], batch_statistics=m.batch_statistics
        )
        ours, theirs = connect(params["extra"], taps), [targets[tap] for tap in m.taps]
        if m.method == "l2":
            pairs = zip(layer_weights(len(ours)), ours, theirs, strict=True)
            feature = jnp.stack([w * squared_feature_loss(s, t) for w, s, t in pairs]).sum(0)
        else:
            margins = [margin(carried, tap, targets[tap]) for tap in m.taps]
            feature = multilayer_overhaul_loss(ours, theirs, margins)
        each, metrics = distillation.classification(logits, batch["label"])
        metrics["feature_loss"] = feature.mean()
        return (each + m.alpha * feature).mean(), (carried, metrics)

    return distillation.student_phase(setting, config, loss, extra_params=extra_params)


def method(setting: Setting, config: ConfigDict) -> list[Phase]:
    """The phases of the student, after the teacher's."""
    m = config.model
    if m.method == "ce":
        return baselines.cross_entropy(setting, config)
    if m.method == "kd":
        return baselines.knowledge_distillation(setting, config)
    if m.method == "fitnet":
        after = [tap.removesuffix("_pre") for tap in m.taps]
        weights = tuple(m.alpha * w for w in layer_weights(len(after)))
        pairs = {tap: tap for tap in after}
        return [baselines.imitate(setting, config, pairs, squared_feature_loss, weights=weights)]
    if m.method in ("ofd", "l2"):
        return [overhaul(setting, config)]
    raise ValueError(f"config.model.method = {m.method!r}: allowed are ofd, l2, fitnet, kd, ce")


def phases(config: ConfigDict) -> list[Phase]:
    """The teacher, then the student."""
    setting = distillation_setting.build(config)
    return [distillation_setting.teacher_phase(setting, config), *method(setting, config)]


def study(config: ConfigDict) -> Study:
    """The method against CE alone and KD, and with each of its choices undone."""
    reported = REPORTED.get(config.variant, {})
    overrides: dict[str, dict[str, Any]] = {
        "ofd": {},
        "ce": {"model.method": "ce"},
        "kd": {"model.method": "kd"},
        "l2": {"model.method": "l2"},
        "fitnet": {"model.method": "fitnet"},
        "ofd_inference": {"model.batch_statistics": False},
    }
    for alpha in config.model.more_alphas:
        for name in ("ofd", "l2", "fitnet"):
            overrides[f"{name}_{alpha:g}"] = {**overrides[name], "model.alpha": alpha}
    arms = {
        name: Arm(changes, {"accuracy": reported[name]} if name in reported else {})
        for name, changes in overrides.items()
    }

    def claim(results: Results) -> tuple[str, bool]:
        ours = results["ofd"]["accuracy"]
        gain = {name: 100 * (ours - results[name]["accuracy"]) for name in arms}
        text = (
            f"at least 2 points above CE alone: {gain['ce'].mean():+.1f} (worst seed "
            f"{gain['ce'].min():+.1f}). Against KD: {gain['kd'].mean():+.1f}; against plain L2 at "
            f"the same taps, without margin: {gain['l2'].mean():+.1f}; against L2 after the ReLUs, "
            f"teacher in inference mode: {gain['fitnet'].mean():+.1f}; against itself with the "
            f"teacher in inference mode: {gain['ofd_inference'].mean():+.1f}"
        )
        return text, bool(gain["ce"].mean() >= 2)

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        from reprise.papers.overhaul_distillation import figures

        return [figures.margins(config, states["ofd"][0].model_state, directory)]

    return Study(arms, claim, figures=draw)
