"""How a student is initialised by activation boundaries, then trained, and how it is judged."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from reprise.common.ops.distillation import squared_feature_loss
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import distillation, distillation_setting
from reprise.common.training import distillation_baselines as baselines
from reprise.common.training.distillation import Carried, Setting
from reprise.common.training.phase import Phase
from reprise.papers.activation_boundary.losses import (
    activation_mismatch,
    multilayer_activation_boundary_loss,
)

# Before the ReLU that ends each stage, in teacher and student alike.
TAPS = {f"stage{i}_pre": f"stage{i}_pre" for i in (1, 2, 3)}


def initialisation(setting: Setting, config: ConfigDict) -> Phase:
    """Phase 1: student and connectors learn the teacher's boundaries, without labels."""
    m = config.model
    extra_params, connect = baselines.connect(setting, TAPS)

    def loss(params: Any, carried: Carried, batch: Any, key: jax.Array) -> Any:
        (_, taps), carried = distillation.run_student(
            setting, params["student"], carried, batch["image"]
        )
        _, targets = distillation.run_teacher(setting, carried, batch["image"])
        theirs = [targets[name] for name in TAPS.values()]
        ours = connect(params["extra"], taps)
        each = multilayer_activation_boundary_loss(ours, theirs, m.margin, m.scale)
        return each.mean(), (carried, {})

    return distillation.student_phase(
        setting,
        config.init,
        loss,
        name="init",
        extra_params=extra_params,
        evaluate=mismatches(setting),
    )


def mismatches(setting: Setting) -> Any:
    """evaluate(state) -> the share of units on the wrong side, at each tap of the test images."""
    _, connect = baselines.connect(setting, TAPS)
    image = jnp.asarray(setting.evaluation[""]["image"][:1000])

    @jax.jit
    def measure(current: Any) -> Any:
        carried, params = current.model_state, current.params
        variables = {"params": params["student"], "batch_stats": carried.stats}
        _, taps = setting.student.apply(variables, image, train=False)
        _, targets = distillation.run_teacher(setting, carried, image)
        ours = connect(params["extra"], taps)
        pairs = zip(ours, (targets[name] for name in TAPS.values()), strict=True)
        return [activation_mismatch(s, t).mean() for s, t in pairs]

    def evaluate(current: Any) -> dict[str, float]:
        each = [float(m) for m in measure(current)]
        named = {f"mismatch_{i}": m for i, m in enumerate(each, 1)}
        return {**named, "mismatch": sum(each) / len(each)}

    return evaluate


def method(setting: Setting, config: ConfigDict) -> list[Phase]:
    """The phases of the student, after the teacher's."""
    m = config.model
    kd = baselines.knowledge_distillation(
        setting,
        config,
        temperature=m.temperature,
        ce_weight=0.0,
        scale_by_t2=m.scale_by_t2,
    )
    if m.method == "ce":
        return baselines.cross_entropy(setting, config)
    if m.method == "kd":
        return kd
    if m.method == "ab":
        first = initialisation(setting, config)
    elif m.method == "fitnet":
        first = baselines.imitate(
            setting,
            config.init,
            TAPS,
            squared_feature_loss,
            weights=tuple(m.scale * 2.0 ** (i - 2) for i in range(3)),
            ce_weight=0.0,
            name="init",
            evaluate=mismatches(setting),
        )
    else:
        raise ValueError(f"config.model.method = {m.method!r}: allowed are ab, fitnet, kd, ce")
    return [first] if m.stop_after_init else [first, *kd]


def phases(config: ConfigDict) -> list[Phase]:
    """The teacher, then the student."""
    setting = distillation_setting.build(config)
    teacher = distillation_setting.teacher_phase(setting, config)
    return [teacher, *method(setting, config)]


def study(config: ConfigDict) -> Study:
    """Boundaries then KD, against FitNets then KD, KD alone and CE alone, at equal updates."""
    total = config.init.num_steps + config.num_steps
    section = config.optimizer.schedule.args
    drops = tuple(round(b * total / config.num_steps) for b in section.boundaries)
    alone = {"num_steps": total, "optimizer.schedule.args.boundaries": drops}
    arms = {
        "ab": Arm(),
        "fitnet": Arm({"model.method": "fitnet"}),
        "kd": Arm({"model.method": "kd", **alone}),
        "ce": Arm({"model.method": "ce", **alone}),
        "ab_init": Arm({"model.stop_after_init": True}),
        "fitnet_init": Arm({"model.method": "fitnet", "model.stop_after_init": True}),
    }

    def claim(results: Results) -> tuple[str, bool]:
        gain = 100 * (results["ab"]["accuracy"] - results["kd"]["accuracy"])
        fitnet = 100 * (results["ab"]["accuracy"] - results["fitnet"]["accuracy"]).mean()
        ours, theirs = (results[a]["mismatch"] for a in ("ab_init", "fitnet_init"))
        text = (
            f"at least 2 points above KD alone: {gain.mean():+.1f} (worst seed {gain.min():+.1f}); "
            f"fewer units on the wrong side after the first phase than FitNets in every seed: "
            f"{ours.mean():.3f} against {theirs.mean():.3f}. Against FitNets then KD: {fitnet:+.1f}"
        )
        return text, bool(gain.mean() >= 2 and (ours < theirs).all())

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        from reprise.papers.activation_boundary import figures

        return [figures.mismatch_per_layer(config, results, directory)]

    return Study(arms, claim, figures=draw)
