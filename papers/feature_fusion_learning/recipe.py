"""How parallel networks and their fusion are trained together, and how each is judged."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from reprise.common.evaluation.over_set import over_set
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import distillation, distillation_setting
from reprise.common.training.distillation import Carried, Setting
from reprise.common.training.phase import Phase
from reprise.papers.feature_fusion_learning.losses import (
    deep_mutual_learning_loss,
    ensemble_logits,
    mutual_distillation_loss,
    sigmoid_rampup,
)
from reprise.papers.feature_fusion_learning.models import (
    FeatureFusion,
    ParallelNetworks,
    ParallelResNet,
)

METHODS = ("ffl", "fusion", "dml", "vanilla")


def method(setting: Setting, config: ConfigDict) -> list[Phase]:
    """One phase from scratch; a teacher, where there is one, is not asked.

    The networks are copies of the setting's student, or its branches where that is a
    `ParallelResNet`. `accuracy` is theirs on average: any of them can be used alone.
    """
    m, student = config.model, setting.student
    if m.method not in METHODS:
        raise ValueError(f"config.model.method = {m.method!r}: allowed are {', '.join(METHODS)}")
    parallel = student
    if not isinstance(student, ParallelResNet):
        parallel = ParallelNetworks([student.clone() for _ in range(m.num_networks)], m.tap)
    network = FeatureFusion(parallel, student.num_classes, student.dtype)
    setting = setting._replace(student=network)
    per_epoch = max(len(setting.student_data["image"]) // config.batch_size, 1)
    with_fusion = m.method in ("ffl", "fusion")

    def loss(params: Any, carried: Carried, batch: Any, key: jax.Array) -> Any:
        (fused, taps), carried = distillation.run_student(
            setting, params["student"], carried, batch["image"]
        )
        sub, label = taps["sub_logits"], batch["label"]
        weight = jnp.zeros(())
        if m.method in ("ffl", "dml"):
            weight = sigmoid_rampup(carried.step // per_epoch, m.rampup)
        if with_fusion:
            each = mutual_distillation_loss(sub, fused, label, weight, m.temperature)
        else:
            each = deep_mutual_learning_loss(sub, label, weight, m.temperature)
        value = each.mean()
        if m.network_l2:
            networks = params["student"]["parallel"]
            value += 0.5 * m.network_l2 * optax.tree.norm(networks, squared=True)
        return value, (carried, {"accuracy": (sub.argmax(-1) == label).mean()})

    phase = distillation.student_phase(setting, config, loss)
    return [dataclasses.replace(phase, evaluate=accuracies(setting, with_fusion))]


def accuracies(setting: Setting, with_fusion: bool) -> Any:
    """evaluate(state) -> accuracy of a network alone, of their ensemble and of the fusion."""

    def right(variables: Any, batch: Any) -> dict[str, jax.Array]:
        fused, taps = setting.student.apply(variables, batch["image"], train=False)
        sub, label = taps["sub_logits"], batch["label"]
        found = {
            "accuracy": (sub.argmax(-1) == label).mean(0),
            "ensemble_accuracy": ensemble_logits(sub).argmax(-1) == label,
        }
        return found | ({"fused_accuracy": fused.argmax(-1) == label} if with_fusion else {})

    judges = {
        prefix: over_set(right, dict(data), 500) for prefix, data in setting.evaluation.items()
    }

    def evaluate(current: Any) -> dict[str, float]:
        stats = current.model_state.stats
        variables = {"params": current.params["student"], "batch_stats": stats}
        return {
            prefix + name: value
            for prefix, judge in judges.items()
            for name, value in judge(variables).items()
        }

    return evaluate


def build(config: ConfigDict) -> Setting:
    """The setting of a config, without a teacher; `parallel-DEPTH` is a `ParallelResNet`."""
    m = config.model
    kind, _, depth = m.student.partition("-")
    plain = ConfigDict(config.copy_and_resolve_references())
    plain.model.student = "cnn-1" if kind == "parallel" else m.student
    with plain.unlocked():
        plain.model.teacher = plain.model.student
    setting = distillation_setting.build(plain)
    student = setting.student
    if kind == "parallel":
        student = ParallelResNet(
            int(depth), m.num_networks, m.shared_stages, student.num_classes, student.dtype
        )
    return setting._replace(teacher=None, teacher_data={}, student=student)


def phases(config: ConfigDict) -> list[Phase]:
    """A single phase: nothing is trained before."""
    return method(build(config), config)


def study(config: ConfigDict) -> Study:
    """Mutual distillation against networks alone, fusion by labels alone, and mutual learning."""
    apart = {"model.shared_stages": 0}  # what is compared with is two whole networks
    arms = {
        "ffl": Arm(),
        "fusion": Arm({"model.method": "fusion"}),
        "dml": Arm({"model.method": "dml", **apart}),
        "vanilla": Arm({"model.method": "vanilla", **apart}),
    }

    def told(gain: np.ndarray) -> str:
        from scipy import stats

        half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
        return f"{gain.mean():+.2f} +- {half:.2f} (worst seed {gain.min():+.1f})"

    def claim(results: Results) -> tuple[str, bool]:
        def gain(arm: str, metric: str) -> np.ndarray:
            return 100 * (results["ffl"][metric] - results[arm][metric])

        alone, fused = gain("vanilla", "accuracy"), gain("fusion", "fused_accuracy")
        text = (
            f"a network of FFL at least 1.5 points above one trained alone: {told(alone)}; the "
            f"fused classifier at least 0.7 points above the same without mutual distillation: "
            f"{told(fused)}. A network of FFL against one of DML: {told(gain('dml', 'accuracy'))}; "
            "means +- 95 % over seeds"
        )
        return text, bool(alone.mean() >= 1.5 and fused.mean() >= 0.7)

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        from reprise.papers.feature_fusion_learning import figures

        return [figures.accuracies(config, results, directory)]

    return Study(arms, claim, figures=draw)
