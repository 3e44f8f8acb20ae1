"""The phases of FEED: paraphrasers of frozen teachers, then a student with its translators."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from reprise.common.ops.distillation import kd_kl_divergence
from reprise.common.training import distillation, optimizers, state
from reprise.common.training import distillation_baselines as baselines
from reprise.common.training.distillation import Carried, Setting, Variables
from reprise.common.training.phase import Phase
from reprise.papers.feed.layers import Paraphraser, Translator
from reprise.papers.feed.losses import feed_loss, reconstruction_loss


def factor_width(setting: Setting, config: ConfigDict) -> int:
    """K = round(k C) of the teachers' channels C, at least 1."""
    channels = distillation.tap_shapes(setting, setting.teacher)[config.model.tap].shape[-1]
    return max(1, round(config.model.rate * channels))


def teacher_maps(setting: Setting, carried: Carried, image: jax.Array, tap: str) -> jax.Array:
    """The teachers' feature maps [N, B, H, W, C]; the leading axis is there for one teacher too."""
    maps = distillation.run_teacher(setting, carried, image)[1][tap]
    return maps[None] if setting.num_teachers == 1 else maps


def _apply_each(module: Any, params: Any, inputs: jax.Array, method: str = "__call__") -> jax.Array:
    """One module with N stacks of parameters, each on its own input: [N, B, ...]."""
    return jax.vmap(lambda p, x: module.apply({"params": p}, x, method=method))(params, inputs)


def paraphrasers(
    setting: Setting,
    config: ConfigDict,
    receive: Callable[[Any], Variables],
    *,
    name: str = "paraphrasers",
) -> Phase:
    """Phase 1: an auto-encoder of each teacher's feature map, on the teachers' images.

    Args:
      setting: its teachers are those of `receive`.
      config: `model.tap`, `model.rate`, and `init` with batch_size, num_steps and optimizer.
      receive: final state of the phase before -> the teachers' variables.
      name: of the phase.

    Returns:
      A phase whose final state has the paraphrasers as `params`, with a leading axis of teachers,
      and the teachers in `model_state`, a `Carried`.
    """
    tap, section = config.model.tap, config.init
    distillation.check_taps(setting, {tap: tap})
    module = Paraphraser(factor_width(setting, config))
    shape = distillation.tap_shapes(setting, setting.teacher)[tap].shape
    tx = optimizers.make(section.optimizer, section.num_steps)

    def rebuild(params: Any, carried: Carried, image: jax.Array) -> jax.Array:
        maps = teacher_maps(setting, carried, image, tap)
        return jax.vmap(reconstruction_loss)(maps, _apply_each(module, params, maps))

    def loss(params: Any, carried: Carried, image: jax.Array, key: jax.Array) -> Any:
        each = rebuild(params, carried, image)
        # A sum over teachers: each paraphraser trains as if it were alone.
        return each.mean(1).sum(), (carried, {"reconstruction": each.mean()})

    one_step = state.gradient_step(loss, tx)

    def init(key: jax.Array, previous: Any) -> Any:
        first, order = jax.random.split(key)
        keys = jax.random.split(first, setting.num_teachers)
        params = jax.vmap(lambda k: module.init(k, jnp.zeros(shape))["params"])(keys)
        start = jnp.zeros((), jnp.int32)
        carried = Carried({}, receive(previous), (), jax.random.key_data(order), start)
        return state.create(params, tx, carried)

    def step(current: Any, data: Any, key: jax.Array) -> Any:
        carried = current.model_state
        image = distillation.draw(data, carried.order, carried.step, section.batch_size)["image"]
        image = image if setting.augment is None else setting.augment(key, image)
        current, metrics = one_step(current, image, key)
        return current._replace(model_state=carried._replace(step=carried.step + 1)), metrics

    judge = jax.jit(rebuild)
    seen = jnp.asarray(setting.evaluation[""]["image"][:1000])

    def evaluate(current: Any) -> dict[str, float]:
        return {"reconstruction": float(judge(current.params, current.model_state, seen).mean())}

    return Phase(
        name,
        section.num_steps,
        init,
        step,
        {"image": setting.teacher_data["image"]},
        evaluate,
        examples_per_step=section.batch_size,
    )


def student(setting: Setting, config: ConfigDict, *, name: str = "student") -> Phase:
    """Phase 2: a new student with CE + beta * feed_loss, after `paraphrasers`."""
    m = config.model
    width = factor_width(setting, config)
    paraphraser, translator = Paraphraser(width), Translator(width)
    shape = distillation.tap_shapes(setting, setting.student)[m.tap].shape
    count = 1 if m.shared_translator else setting.num_teachers

    def extra_params(key: jax.Array, carried: Carried) -> Any:
        keys = jax.random.split(key, count)
        return jax.vmap(lambda k: translator.init(k, jnp.zeros(shape))["params"])(keys)

    def translate(params: Any, features: jax.Array) -> jax.Array:
        inputs = jnp.broadcast_to(features, (count, *features.shape))
        factors = _apply_each(translator, params, inputs)
        return jnp.broadcast_to(factors, (setting.num_teachers, *factors.shape[1:]))

    def loss(params: Any, carried: Carried, batch: Any, key: jax.Array) -> Any:
        (logits, taps), carried = distillation.run_student(
            setting, params["student"], carried, batch["image"]
        )
        maps = teacher_maps(setting, carried, batch["image"], m.tap)
        theirs = _apply_each(paraphraser, carried.extra, maps, "encode")
        ours = translate(params["extra"], taps[m.tap])
        feature = feed_loss(ours, theirs, m.teacher_reduction)
        each, metrics = distillation.classification(logits, batch["label"])
        metrics["feed_loss"] = feature.mean()
        return (each + m.beta * feature).mean(), (carried, metrics)

    @jax.jit
    def rebuild(current: Any, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        params, carried = current.params, current.model_state
        variables = {"params": params["student"], "batch_stats": carried.stats}
        _, taps = setting.student.apply(variables, image, train=False)
        maps = teacher_maps(setting, carried, image, m.tap)
        theirs = _apply_each(paraphraser, carried.extra, maps, "encode")
        ours = translate(params["extra"], taps[m.tap])
        lengths = [jnp.sqrt((f**2).sum((2, 3, 4), keepdims=True)) for f in (theirs, ours)]
        # The loss leaves the length of the student's factor open.
        ours = ours * lengths[0] / jnp.maximum(lengths[1], 1e-12)
        both = [_apply_each(paraphraser, carried.extra, f, "decode") for f in (theirs, ours)]
        errors = [jax.vmap(reconstruction_loss)(maps, rebuilt).mean() for rebuilt in both]
        return errors[0], errors[1]

    seen = jnp.asarray(setting.evaluation[""]["image"][:1000])

    def evaluate(current: Any) -> dict[str, float]:
        theirs, ours = map(float, rebuild(current, seen))
        return {"rebuilt_from_teachers": theirs, "rebuilt_from_student": ours}

    phase = distillation.student_phase(
        setting, config, loss, name=name, extra_params=extra_params, evaluate=evaluate
    )

    def init(key: jax.Array, previous: Any) -> Any:
        start = phase.init(key, None)
        made = {"teacher": previous.model_state.teacher, "extra": previous.params}
        return start._replace(model_state=start.model_state._replace(**made))

    return dataclasses.replace(phase, init=init)


def first_teachers(variables: Variables, use: int, have: int) -> Variables:
    """The first `use` of `have` teachers; the leading axis goes where one of several is left."""
    if use == have:
        return variables
    return jax.tree.map(lambda x: x[0] if use == 1 else x[:use], variables)


def parallel(setting: Setting, config: ConfigDict) -> list[Phase]:
    """pFEED from the first `model.use_teachers` teachers; from one it is factor transfer."""
    have, use = setting.num_teachers, config.model.use_teachers or setting.num_teachers
    if not 1 <= use <= have:
        raise ValueError(f"config.model.use_teachers = {use}: there are {have} teachers")

    def receive(previous: Any) -> Variables:
        variables = {"params": previous[0].params, "batch_stats": previous[0].model_state}
        return first_teachers(variables, use, have)

    setting = setting._replace(num_teachers=use)
    return [paraphrasers(setting, config, receive), student(setting, config)]


def sequential_generations(setting: Setting, config: ConfigDict) -> list[Phase]:
    """sFEED: a student alone, then `model.generations` new ones, each taught by the one before.

    The teachers of the setting are not used.
    """
    own = setting._replace(teacher=setting.student, num_teachers=1)

    def receive(previous: Any) -> Variables:
        return {"params": previous.params["student"], "batch_stats": previous.model_state.stats}

    phases = baselines.cross_entropy(setting, config)
    for i in range(1, config.model.generations + 1):
        phases.append(paraphrasers(own, config, receive, name=f"paraphraser{i}"))
        phases.append(student(own, config, name=f"generation{i}"))
    return phases


def ensemble_kd(setting: Setting, config: ConfigDict) -> list[Phase]:
    """CE + KL to the mean of the teachers' softened outputs, temperature `model.temperature`."""
    temperature = config.model.temperature

    def loss(params: Any, carried: Carried, batch: Any, key: jax.Array) -> Any:
        (logits, _), carried = distillation.run_student(
            setting, params["student"], carried, batch["image"]
        )
        theirs, _ = distillation.run_teacher(setting, carried, batch["image"])
        theirs = theirs.reshape(-1, *logits.shape)
        mean = jax.nn.softmax(theirs / temperature).mean(0)
        # Logits whose softened softmax is that mean.
        target = temperature * jnp.log(jnp.maximum(mean, 1e-30))
        each, metrics = distillation.classification(logits, batch["label"])
        kl = kd_kl_divergence(logits, target, temperature)
        return (each + kl).mean(), (carried, metrics)

    return [distillation.student_phase(setting, config, loss)]
