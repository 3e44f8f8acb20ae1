"""How the teacher's embedding procedure is learned, then handed to a student, and judged."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import (
    distillation,
    distillation_pool,
    distillation_setting,
    optimizers,
    state,
)
from reprise.common.training import distillation_baselines as baselines
from reprise.common.training.distillation import Carried, Setting
from reprise.common.training.phase import Phase
from reprise.papers.embedding_procedure_transfer import layers, losses, parts, projections
from reprise.papers.embedding_procedure_transfer.black_box import (
    black_box_estimation_loss,
    black_box_init,
    black_box_knowledge_loss,
)
from reprise.papers.embedding_procedure_transfer.parts import PAIRS, TAPS
from reprise.papers.multi_head_graph_distillation import sample_head_mask, split_statistics
from reprise.papers.svd_distillation import svd_distillation_loss

TERMS = ("interim", "alteration", "black_box")


def estimation(setting: Setting, config: ConfigDict) -> Phase:
    """Phase 1: principal axes and message passing of the teacher; there is no student in it.

    With the black-box part, also its attention heads. The state's params are the networks', by kind
    and pair of taps; its `Carried.extra` has the axes, "pca", and the networks' statistics.
    """
    section, m = config.init, config.model
    black_box = "black_box" in m.terms
    tx = optimizers.make(section.optimizer, max(section.num_steps, 1))
    draw = distillation_pool.batches(setting, section.batch_size)
    channels = {
        n: s.shape[-1] for n, s in distillation.tap_shapes(setting, setting.teacher).items()
    }

    def init(key: jax.Array, previous: Any) -> Any:
        keys = jax.random.split(key, 1 + len(PAIRS))
        params: dict[str, Any] = {"passing": {}, "attention": {}}
        statistics: dict[str, Any] = {"passing": {}, "attention": {}}
        for each, (pair, (front, back)) in zip(keys[1:], PAIRS.items(), strict=True):
            widths = channels[back] // 2, channels[front] // 2
            nets = {"passing": layers.message_passing_init(each, *widths, widths[0])}
            if black_box:
                heads = jax.random.fold_in(each, 1)
                nets["attention"] = black_box_init(heads, *widths, m.num_heads)
            for kind, net in nets.items():
                params[kind][pair], statistics[kind][pair] = split_statistics(net)
        pca = {name: projections.incremental_pca_init(channels[name]) for name in TAPS}
        teacher = {"params": previous[0].params, "batch_stats": previous[0].model_state}
        extra = {"pca": pca, "statistics": statistics}
        order, start = jax.random.key_data(keys[0]), jnp.zeros((), jnp.int32)
        return state.create(params, tx, Carried((), teacher, extra, order, start))

    def loss(params: Any, carried: Carried, batch: Any, key: jax.Array) -> Any:
        image = distillation_pool.transfer_images(batch)
        _, targets = distillation.run_teacher(setting, carried, image)
        pca = carried.extra["pca"]
        _, flat = parts.planes(targets, targets)
        points = parts.project(parts.axes(config, pca, flat), flat)
        nets = merged(params, carried.extra["statistics"])
        statistics: dict[str, Any] = {kind: {} for kind in nets}
        total, metrics = jnp.zeros(()), {}
        for i, (pair, (front, back)) in enumerate(PAIRS.items()):
            affinity, messages, statistics["passing"][pair] = layers.message_passing(
                nets["passing"][pair],
                points[back],
                points[front],
                num_iterations=m.num_iterations,
                train=True,
            )
            true = projections.cosine_affinity(points[back])
            total = total + losses.affinity_kl(true, affinity).sum()
            if black_box:
                heads = nets["attention"][pair]
                mask = sample_head_mask(jax.random.fold_in(key, i), m.num_heads + 1, len(image))
                each, new = black_box_estimation_loss(
                    heads,
                    points[back],
                    points[front],
                    messages,
                    mask,
                    num_iterations=m.num_iterations,
                    num_heads=m.num_heads,
                )
                statistics["attention"][pair] = {**split_statistics(heads)[1], **new}
                metrics[f"estimator_{pair}"] = each.mean()
                total = total + each.mean()
        if m.incremental:
            pca = {n: projections.incremental_pca_update(pca[n], flat[n]) for n in TAPS}
        return total, (carried._replace(extra={"pca": pca, "statistics": statistics}), metrics)

    one_step = state.gradient_step(loss, tx)

    def step(current: Any, data: Any, key: jax.Array) -> Any:
        carried = current.model_state
        current, metrics = one_step(current, draw(data, carried, key), key)
        advanced = current.model_state._replace(step=carried.step + 1)
        return current._replace(model_state=advanced), metrics

    return Phase(
        "estimation",
        section.num_steps,
        init,
        step,
        dict(setting.student_data),
        examples_per_step=section.batch_size,
    )


def merged(params: Any, statistics: Any) -> dict[str, Any]:
    """The networks by kind and pair of taps, parameters and statistics together."""
    return {
        kind: {pair: {**net, **statistics[kind][pair]} for pair, net in nets.items()}
        for kind, nets in params.items()
    }


def transfer(setting: Setting, config: ConfigDict) -> Phase:
    """Phase 2: a new student, its cross entropy, and the losses of `model.terms`, each clipped."""
    m = config.model

    def terms(taps: Any, targets: Any, carried: Carried) -> dict[str, jax.Array]:
        both = parts.planes(taps, targets)
        pca = parts.axes(config, carried.extra["pca"], both[1])
        ours, theirs = (parts.project(pca, points) for points in both)
        total = dict.fromkeys(m.terms, jnp.zeros(()))
        for pair, (front, back) in PAIRS.items():
            points = ours[back], ours[front], theirs[back], theirs[front]
            passing = carried.extra["networks"]["passing"][pair]
            interim, alteration = losses.embedding_procedure_losses(
                passing, *points, num_iterations=m.num_iterations
            )
            each = {"interim": interim, "alteration": alteration}
            if "black_box" in m.terms:
                heads = carried.extra["networks"]["attention"][pair]
                found = black_box_knowledge_loss(heads, *points, num_heads=m.num_heads)
                each["black_box"] = found.sum()
            total = {term: value + each[term] for term, value in total.items()}
        return total

    phase = distillation_pool.clipped_transfer(setting, config, terms, pool_statistics=False)

    def init(key: jax.Array, previous: Any) -> Any:
        """The student of every other method for this seed, with what phase 1 made."""
        current, before = phase.init(key, None), previous.model_state
        networks = merged(previous.params, before.extra["statistics"])
        extra = {"pca": before.extra["pca"], "networks": networks}
        carried = current.model_state._replace(teacher=before.teacher, extra=extra)
        return current._replace(model_state=carried)

    return dataclasses.replace(phase, init=init)


def method(setting: Setting, config: ConfigDict) -> list[Phase]:
    """The phases of the student, after the teacher's."""
    m = config.model
    distillation.check_taps(setting, {n: n for n in TAPS}, channels=True)

    def kd_svd(taps: Any, targets: Any, carried: Carried) -> dict[str, jax.Array]:
        ours, theirs = ([of[name] for name in TAPS] for of in (taps, targets))
        return {"transfer": svd_distillation_loss(ours, theirs).sum()}

    if m.method == "ce":
        return baselines.cross_entropy(setting, config)
    if m.method == "kd_svd":
        return [distillation_pool.clipped_transfer(setting, config, kd_svd, pool_statistics=False)]
    if m.method != "iep":
        raise ValueError(f"config.model.method = {m.method!r}: allowed are iep, kd_svd, ce")
    if not m.terms or not set(m.terms) <= set(TERMS):
        raise ValueError(f"config.model.terms = {m.terms!r}: some of {', '.join(TERMS)}")
    return [estimation(setting, config), transfer(setting, config)]


def phases(config: ConfigDict) -> list[Phase]:
    """The teacher, then its embedding procedure and the student."""
    setting = distillation_setting.build(config)
    teacher = distillation_setting.teacher_phase(setting, config)
    return [teacher, *method(setting, config)]


def study(config: ConfigDict) -> Study:
    """IEP against the student alone and KD-SVD, and what each part of it gives."""
    arms = {
        "iep": Arm(),
        "interim": Arm({"model.terms": ("interim",)}),
        "alteration": Arm({"model.terms": ("alteration",)}),
        "black_box": Arm({"model.terms": ("black_box",)}),
        "with_black_box": Arm({"model.terms": TERMS}),
        "batch_pca": Arm({"model.incremental": False}),
        "ce": Arm({"model.method": "ce"}),
        "kd_svd": Arm({"model.method": "kd_svd"}),
    }

    def claim(results: Results) -> tuple[str, bool]:
        gain = {
            arm: 100 * (numbers["accuracy"] - results["ce"]["accuracy"])
            for arm, numbers in results.items()
        }
        iep = gain["iep"]
        above = (iep - gain["kd_svd"]).mean()
        others = {"interim": "interim alone", "alteration": "alteration alone"}
        others["black_box"] = "black box alone"
        others["with_black_box"] = "all three"
        others["batch_pca"] = "PCA of each batch"
        rest = ", ".join(f"{label} {gain[arm].mean():+.2f}" for arm, label in others.items())
        text = (
            f"at least 2.5 points above the student alone: {iep.mean():+.2f} (worst seed "
            f"{iep.min():+.2f}); above KD-SVD: {above:+.2f}. Gains of the parts: {rest}"
        )
        return text, bool(iep.mean() >= 2.5 and above > 0)

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        from reprise.papers.embedding_procedure_transfer import figures

        return [figures.procedure(config, states, directory)]

    return Study(arms, claim, figures=draw if config.variant == "digits" else None)
