"""Methods that every distillation paper is measured against, as phases of `distillation`."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from reprise.common.models.connector import FeatureConnector
from reprise.common.ops import distillation as losses
from reprise.common.training import distillation, distillation_pool
from reprise.common.training.distillation import Carried, Setting
from reprise.common.training.phase import Phase


class Connectors(nn.Module):
    """One `FeatureConnector` a tap, or nothing where the widths agree already.

    Attributes:
      features: the teacher's channels at each tap.
      always: connect where the widths agree, too.
    """

    features: tuple[int, ...]
    always: bool = True

    @nn.compact
    def __call__(self, taps: list[jax.Array]) -> list[jax.Array]:
        pairs = list(zip(taps, self.features, strict=True))
        return [
            FeatureConnector(width, name=f"connector{i}")(x)
            if self.always or x.shape[-1] != width
            else x
            for i, (x, width) in enumerate(pairs)
        ]


def connect(
    setting: Setting, pairs: Mapping[str, str], *, always: bool = True
) -> tuple[Callable[[jax.Array, Any], Any], Callable[[Any, Mapping[str, Any]], list[jax.Array]]]:
    """Connectors from the student's taps to the teacher's widths, for `student_phase`.

    Args:
      setting: see `Setting`.
      pairs: student's tap -> teacher's tap.
      always: connect where the widths agree, too.

    Returns:
      (extra_params, apply): apply(params, the student's taps) -> features as wide as the teacher's.
    """
    distillation.check_taps(setting, pairs)
    widths = distillation.tap_shapes(setting, setting.teacher)
    module: Any = Connectors(tuple(widths[t].shape[-1] for t in pairs.values()), always)
    shapes = distillation.tap_shapes(setting, setting.student)

    def extra_params(key: jax.Array, carried: Carried) -> Any:
        zeros = [jnp.zeros(shapes[name].shape) for name in pairs]
        return module.init(key, zeros).get("params", {})

    def apply(params: Any, taps: Mapping[str, Any]) -> list[jax.Array]:
        return module.apply({"params": params}, [taps[name] for name in pairs])

    return extra_params, apply


def cross_entropy(
    setting: Setting,
    config: ConfigDict,
    *,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
) -> list[Phase]:
    """The student alone; `evaluate` as in `student_phase`."""

    def loss(params: Any, carried: Carried, batch: Any, key: jax.Array) -> Any:
        (logits, _), carried = distillation.run_student(
            setting, params["student"], carried, batch["image"]
        )
        each, metrics = distillation.classification(logits, batch["label"])
        return each.mean(), (carried, metrics)

    return [distillation.student_phase(setting, config, loss, evaluate=evaluate)]


def knowledge_distillation(
    setting: Setting,
    config: ConfigDict,
    *,
    temperature: float = 4.0,
    ce_weight: float = 1.0,
    kd_weight: float = 1.0,
    scale_by_t2: bool = True,
) -> list[Phase]:
    """ce_weight CE + kd_weight KL at a temperature (Hinton, Vinyals, Dean, 2015)."""

    def loss(params: Any, carried: Carried, batch: Any, key: jax.Array) -> Any:
        (logits, _), carried = distillation.run_student(
            setting, params["student"], carried, batch["image"]
        )
        target, _ = distillation.run_teacher(setting, carried, batch["image"])
        each, metrics = distillation.classification(logits, batch["label"])
        kl = losses.kd_kl_divergence(logits, target, temperature, scale_by_t2)
        return (ce_weight * each + kd_weight * kl).mean(), (carried, metrics)

    return [distillation.student_phase(setting, config, loss)]


def imitate(
    setting: Setting,
    config: ConfigDict,
    pairs: Mapping[str, str],
    feature_loss: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    weights: tuple[float, ...],
    ce_weight: float = 1.0,
    connected: bool = True,
    name: str = "student",
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
) -> Phase:
    """ce_weight CE + sum over taps of weight * feature_loss(student, teacher), in one phase.

    With `squared_feature_loss` this is FitNets, with `attention_transfer_loss` attention transfer.

    Args:
      setting, config: see `student_phase`.
      pairs: student's tap -> teacher's tap.
      feature_loss: (student's features, teacher's) -> [B].
      weights: one a tap.
      ce_weight: 0 for an initialisation phase.
      connected: bring the student's features to the teacher's width first.
      name, evaluate: see `student_phase`.
    """
    extra_params, apply = connect(setting, pairs)

    def loss(params: Any, carried: Carried, batch: Any, key: jax.Array) -> Any:
        (logits, taps), carried = distillation.run_student(
            setting, params["student"], carried, batch["image"]
        )
        _, targets = distillation.run_teacher(setting, carried, batch["image"])
        ours = apply(params["extra"], taps) if connected else [taps[n] for n in pairs]
        theirs = [targets[n] for n in pairs.values()]
        each, metrics = distillation.classification(logits, batch["label"])
        terms = [w * feature_loss(s, t) for w, s, t in zip(weights, ours, theirs, strict=True)]
        return (ce_weight * each + sum(terms)).mean(), (carried, metrics)

    return distillation.student_phase(
        setting,
        config,
        loss,
        name=name,
        extra_params=extra_params if connected else None,
        evaluate=evaluate,
    )


def flow_losses(
    taps: Mapping[str, jax.Array], targets: Mapping[str, jax.Array], names: Sequence[str]
) -> jax.Array:
    """Sum over consecutive taps of the squared distance between their flow matrices: [B]."""

    def flows(of: Mapping[str, jax.Array]) -> list[jax.Array]:
        return [losses.flow_matrix(of[a], of[b]) for a, b in itertools.pairwise(names)]

    each = list(map(losses.flow_loss, flows(taps), flows(targets)))
    return jnp.stack(each).sum(0)


def flow_initialisation(
    setting: Setting, config: ConfigDict, names: Sequence[str], *, weight: float = 1.0
) -> Phase:
    """The first phase of FSP (Yim et al., CVPR 2017): flow matrices alone; `cross_entropy` follows.

    It needs no labels: with a pool of images in the setting it sees those.

    Args:
      setting, config: see `student_phase`.
      names: taps of both networks, front to back, with the same channels.
      weight: on the sum of `flow_losses`.
    """
    distillation.check_taps(setting, {n: n for n in names}, channels=True)

    def loss(params: Any, carried: Carried, batch: Any, key: jax.Array) -> Any:
        image = distillation_pool.transfer_images(batch)
        (_, taps), carried = distillation.run_student(setting, params["student"], carried, image)
        _, targets = distillation.run_teacher(setting, carried, image)
        return weight * flow_losses(taps, targets, names).mean(), (carried, {})

    batches = distillation_pool.batches(setting, config.batch_size)
    return distillation.student_phase(setting, config, loss, name="init", batches=batches)
