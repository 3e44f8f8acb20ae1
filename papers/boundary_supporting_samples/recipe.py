"""How a student learns from its teacher at the teacher's boundary, and how it is judged."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common.ops.distillation import soft_cross_entropy
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import distillation, distillation_setting
from reprise.common.training import distillation_baselines as baselines
from reprise.common.training.distillation import Carried, Setting
from reprise.common.training.phase import Phase
from reprise.papers.boundary_supporting_samples import spirals
from reprise.papers.boundary_supporting_samples.losses import boundary_similarity, bss_loss_weights
from reprise.papers.boundary_supporting_samples.models import PointMLP
from reprise.papers.boundary_supporting_samples.samples import (
    boundary_supporting_samples,
    sample_target_class,
    select_base_samples,
)

METHODS = ("bss", "random", "kd", "ce")


def method(setting: Setting, config: ConfigDict) -> list[Phase]:
    """The phase of the student, after the teacher's: CE + alpha KD + beta KD at the boundary."""
    m = config.model
    if m.method not in METHODS:
        raise ValueError(f"config.model.method = {m.method!r}: allowed are {', '.join(METHODS)}")
    if m.method == "ce":
        return baselines.cross_entropy(setting, config)
    per_epoch = max(len(setting.student_data["image"]) // config.batch_size, 1)

    def loss(params: Any, carried: Carried, batch: Any, key: jax.Array) -> Any:
        image, label = batch["image"], batch["label"]
        (logits, _), carried = distillation.run_student(setting, params["student"], carried, image)
        target, _ = distillation.run_teacher(setting, carried, image)
        each, metrics = distillation.classification(logits, label)
        epoch = carried.step // per_epoch + 1
        alpha, beta = bss_loss_weights(epoch, max(config.num_steps, 1) / per_epoch)
        value = each.mean() + alpha * soft_cross_entropy(logits, target, m.temperature).mean()
        if m.method == "kd":
            return value, (carried, metrics)
        rows, mask, _ = select_base_samples(logits, target, label, min(m.num_samples, len(label)))

        def beside(carried: Carried) -> tuple[jax.Array, jax.Array, Carried]:
            start = image[rows]
            moved = near(setting, m, carried, start, target[rows], key)
            (ours, _), carried = distillation.run_student(
                setting, params["student"], carried, moved
            )
            theirs, _ = distillation.run_teacher(setting, carried, moved)
            each = soft_cross_entropy(ours, theirs, m.temperature)
            way = jnp.sqrt(((moved - start) ** 2).reshape(len(rows), -1).sum(-1))
            count = jnp.maximum(mask.sum(), 1)
            # The repeats that fill the batch do not count.
            mean, displacement = (jnp.where(mask, x, 0.0).sum() / count for x in (each, way))
            return mean, displacement, carried

        def without(carried: Carried) -> tuple[jax.Array, jax.Array, Carried]:
            return jnp.zeros(()), jnp.zeros(()), carried

        bss, displacement, carried = jax.lax.cond((beta > 0) & mask.any(), beside, without, carried)
        found = {"bss": bss, "displacement": displacement, "base_samples": mask.sum()}
        return value + beta * bss, (carried, {**metrics, **found})

    return [distillation.student_phase(setting, config, loss)]


def near(
    setting: Setting, m: ConfigDict, carried: Carried, image: Any, logits: Any, key: jax.Array
) -> jax.Array:
    """Images moved to the teacher's boundary, or at random by a fixed length as a control."""
    if m.method == "random":
        noise = jax.random.normal(key, image.shape)
        length = jnp.sqrt((noise**2).sum((1, 2, 3), keepdims=True))
        return jnp.clip(image + m.random_norm * noise / length, *m.clip)

    def teacher(x: jax.Array) -> jax.Array:
        return distillation.run_teacher(setting, carried, x)[0]

    return walk(m, teacher, image, sample_target_class(logits, key))


def walk(m: ConfigDict, logits_fn: Any, image: Any, target_class: Any) -> jax.Array:
    """`boundary_supporting_samples` with the settings of a config."""
    low, high = m.clip
    return boundary_supporting_samples(
        logits_fn, image, target_class, m.step_size, m.num_walk, clip_min=low, clip_max=high
    )


def likeness(setting: Setting, config: ConfigDict, points: np.ndarray) -> Any:
    """evaluate(state) -> agreement of student and teacher at points, likeness of their boundaries.

    The latter from test images that both put into one class, towards each of the other classes.
    """
    image = setting.evaluation[""]["image"][: config.model.similarity_images]

    @jax.jit
    def measure(params: Any, carried: Carried, points: Any, image: Any) -> dict[str, jax.Array]:
        def student(x: jax.Array) -> jax.Array:
            variables = {"params": params, "batch_stats": carried.stats}
            return setting.student.apply(variables, x, train=False)[0]

        def teacher(x: jax.Array) -> jax.Array:
            return distillation.run_teacher(setting, carried, x)[0]

        agreement = (student(points).argmax(-1) == teacher(points).argmax(-1)).mean()
        logits = teacher(image)
        first = logits.argmax(-1)
        same = first == student(image).argmax(-1)

        def towards(k: jax.Array) -> tuple[jax.Array, jax.Array]:
            target = jnp.full(len(image), k)
            ours, theirs = (walk(config.model, f, image, target) for f in (student, teacher))
            both = boundary_similarity(ours - image, theirs - image)
            counts = same & (first != k)
            return jnp.stack([jnp.where(counts, x, 0.0).sum() for x in both]), counts.sum()

        sums, counts = jax.lax.map(towards, jnp.arange(logits.shape[1]))
        magnitude, angle = sums.sum(0) / jnp.maximum(counts.sum(), 1)
        found = {"mag_similarity": magnitude, "ang_similarity": angle}
        return {"agreement": agreement, **found}

    def evaluate(current: Any) -> dict[str, float]:
        found = measure(current.params["student"], current.model_state, points, image)
        return {name: float(value) for name, value in found.items()}

    return evaluate


def build(config: ConfigDict) -> Setting:
    """The setting of a config; `spiral` is this paper's own data, with networks `mlp-WIDTH`."""
    if config.data.name != "spiral":
        return distillation_setting.build(config)
    sizes = [int(config.model[who].removeprefix("mlp-")) for who in ("teacher", "student")]
    teacher, student = (PointMLP(size, dtype=jnp.dtype(config.precision)) for size in sizes)
    sets = spirals.generate(config.seed, (2000, config.data.count, 3000))
    return Setting(teacher, student, sets[0], sets[1], {"": sets[2]})


def phases(config: ConfigDict) -> list[Phase]:
    """The teacher, then the student."""
    setting = build(config)
    on_plane = config.data.name == "spiral"
    points = spirals.grid() if on_plane else setting.evaluation[""]["image"][:1000]
    *before, last = method(setting, config)
    also = likeness(setting, config, points)

    def evaluate(current: Any) -> dict[str, float]:
        return {**last.evaluate(current), **also(current)}

    teacher = distillation_setting.teacher_phase(setting, config)
    return [teacher, *before, dataclasses.replace(last, evaluate=evaluate)]


def study(config: ConfigDict) -> Study:
    """Samples at the boundary against samples moved at random, KD alone and CE alone."""
    arms = {name: Arm({"model.method": name}) for name in METHODS}

    def points(results: Results, metric: str, arm: str) -> np.ndarray:
        return 100 * (results["bss"][metric] - results[arm][metric])

    def told(gain: np.ndarray) -> str:
        from scipy import stats

        half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
        return f"{gain.mean():+.1f} +- {half:.1f} (worst seed {gain.min():+.1f})"

    def on_the_plane(results: Results) -> tuple[str, bool]:
        accuracy, agreement = (points(results, m, "kd") for m in ("accuracy", "agreement"))
        noise = points(results, "accuracy", "random")
        text = (
            f"at least 2 points of accuracy above KD: {told(accuracy)}; at least 4 points of "
            f"agreement with the teacher over the plane: {told(agreement)}. Against samples moved "
            f"at random: {told(noise)} in accuracy; means +- 95 % over seeds"
        )
        return text, bool(accuracy.mean() >= 2 and agreement.mean() >= 4)

    def on_images(results: Results) -> tuple[str, bool]:
        gain, noise = (points(results, "accuracy", arm) for arm in ("kd", "random"))
        text = (
            f"accuracy at least 1 point above KD: {told(gain)}. Against samples moved at random by "
            f"{config.model.random_norm:g}: {told(noise)}; means +- 95 % over seeds"
        )
        return text, bool(gain.mean() >= 1)

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        from reprise.papers.boundary_supporting_samples import figures

        return figures.draw(config, results, states, directory)

    return Study(arms, on_the_plane if config.data.name == "spiral" else on_images, figures=draw)
