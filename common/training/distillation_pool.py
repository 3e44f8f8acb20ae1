"""Transfer without labels from a pool of images, its gradients clipped by the classification's.

Lee, Kim, Song (KD-SVD, ECCV 2018) and their later papers share this training: each step adds to
the gradient of the cross entropy that of every transfer loss, shrunk tensor by tensor to at most
sigmoid(epoch) times the norm of the first. The transfer losses need no labels: where a `Setting`
has `student_data["pool"]`, they see images of the pool, else the labelled batch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from reprise.common.ops.distillation import clip_to_reference_norm
from reprise.common.training import distillation
from reprise.common.training.distillation import Carried, Setting
from reprise.common.training.phase import Phase

Taps = Mapping[str, jax.Array]
Transfer = Callable[[Taps, Taps, Carried], Mapping[str, jax.Array]]


def batches(setting: Setting, batch_size: int) -> Callable[..., dict[str, jax.Array]]:
    """(resident data, carried, key) -> {"image", "label"} and, where there is a pool, "pool".

    Labelled examples and pool are each walked through in permutations of their own, `batch_size` a
    step, and augmented. Labelled batches are the same whether there is a pool or not.
    """
    augment = setting.augment or (lambda key, image: image)

    def draw(data: Mapping[str, jax.Array], carried: Carried, key: jax.Array) -> Any:
        labelled = {name: data[name] for name in ("image", "label")}
        batch = distillation.draw(labelled, carried.order, carried.step, batch_size)
        batch["image"] = augment(key, batch["image"])
        if "pool" in data:
            order = jax.random.fold_in(jax.random.wrap_key_data(carried.order), 2**31 - 1)
            pool = {"pool": data["pool"]}
            order = jax.random.key_data(order)
            rows = distillation.draw(pool, order, carried.step, batch_size)["pool"]
            batch["pool"] = augment(jax.random.fold_in(key, 1), rows)
        return batch

    return draw


def transfer_images(batch: Mapping[str, jax.Array]) -> jax.Array:
    """The images that transfer losses see: the pool's, or the labelled ones."""
    return batch["pool"] if "pool" in batch else batch["image"]


def clipped_transfer(
    setting: Setting,
    config: ConfigDict,
    transfer: Transfer,
    *,
    pool_statistics: bool = True,
    name: str = "student",
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    figures: Any = None,
) -> Phase:
    """The student's phase: cross entropy, and transfer losses clipped tensor by tensor.

    gradient = g_ce + sum over terms of g_term min(1, sigmoid(epoch) ||g_ce|| / ||g_term||), each
    parameter tensor by itself, weight decay added afterwards; epoch = floor(steps of this phase /
    steps an epoch of the labelled examples). The pool's images pass through the student after the
    labelled ones and normalise each other there.

    Args:
      setting: see `Setting`.
      config: a section with `batch_size`, `num_steps` and `optimizer`.
      transfer: (student's taps, teacher's taps, carried) -> {term: scalar}; each term is clipped by
        itself. "ce" is taken. The teacher's taps are those of inference mode.
      pool_statistics: let the pool's pass, too, move the student's running BatchNorm statistics,
        which by itself may help; without, only the transfer losses tell the student of the pool.
      name, evaluate, figures: see `distillation.student_phase`.
    """
    per_epoch = max(len(setting.student_data["image"]) // config.batch_size, 1)

    def loss(params: Any, carried: Carried, batch: Any, key: jax.Array) -> Any:
        student = params["student"]
        (logits, taps), carried = distillation.run_student(
            setting, student, carried, batch["image"]
        )
        image = transfer_images(batch)
        if "pool" in batch:
            (_, taps), after = distillation.run_student(setting, student, carried, image)
            carried = after if pool_statistics else carried
        _, targets = distillation.run_teacher(setting, carried, image)
        each, metrics = distillation.classification(logits, batch["label"])
        terms = transfer(taps, targets, carried)
        return {"ce": each.mean(), **terms}, (carried, {**metrics, **terms})

    def combine(grads: dict[str, Any], step: jax.Array) -> Any:
        factor = jax.nn.sigmoid((step // per_epoch).astype(jnp.float32))
        total = reference = grads["ce"]
        for term, gradient in grads.items():
            if term != "ce":
                clipped = clip_to_reference_norm(gradient, reference, factor)
                total = jax.tree.map(jnp.add, total, clipped)
        return total

    return distillation.student_phase(
        setting,
        config,
        loss,
        name=name,
        combine=combine,
        batches=batches(setting, config.batch_size),
        evaluate=evaluate,
        figures=figures,
    )


def carrying(phase: Phase, extra: Callable[[Any], Any]) -> Phase:
    """The phase with `extra(previous state)` as `Carried.extra`: what an earlier phase has made."""

    def init(key: jax.Array, previous: Any) -> Any:
        current = phase.init(key, previous)
        carried = current.model_state._replace(extra=extra(previous))
        return current._replace(model_state=carried)

    return dataclasses.replace(phase, init=init)
