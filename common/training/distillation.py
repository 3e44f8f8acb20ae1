"""What distillation methods have in common: networks, data and budget, as phases.

A method is a function (setting, config) -> phases of its student, which follow the teacher's:

    phases = [distillation.teacher_phase(setting, config.teacher), *method(setting, config)]

Each phase hands `Carried` on: the teacher goes along in the state, so that a student's step is one
pure function of state and batch, for one seed or for several together.
"""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from reprise.common.evaluation.over_set import over_set
from reprise.common.training import optimizers, state
from reprise.common.training.phase import Phase

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}
Augment = Callable[[jax.Array, jax.Array], jax.Array]  # (key, images) -> images


class Setting(NamedTuple):
    """Who teaches whom, on what.

    Attributes:
      teacher, student: Linen modules, image, train -> (logits, taps).
      teacher_data: {"image": [n, H, W, C], "label": [n]}, kept on the devices.
      student_data: the same for the student; may hold more than the labelled examples under other
        names with leading axes of their own (see `draw`).
      evaluation: prefix of the metric's name -> {"image", "label"}; "" for the test set.
      num_teachers: with more than one their variables, logits and taps have a leading axis.
      augment: (key, images) -> images, of every batch; None for none.
    """

    teacher: Any
    student: Any
    teacher_data: Mapping[str, np.ndarray]
    student_data: Mapping[str, np.ndarray]
    evaluation: Mapping[str, Mapping[str, np.ndarray]]
    num_teachers: int = 1
    augment: Augment | None = None


class Carried(NamedTuple):
    """What a student's training carries beside its parameters; `model_state` of its TrainState.

    Attributes:
      stats: the student's BatchNorm statistics.
      teacher: the teacher's variables, never changed; with several teachers a leading axis.
      extra: what an earlier phase of the method made (paraphrasers, attention networks), or ().
      order: uint32 key data of the order of examples.
      step: int32 [], updates that counted.
    """

    stats: Any
    teacher: Variables
    extra: Any
    order: jax.Array
    step: jax.Array


def draw(
    data: Mapping[str, jax.Array], order: jax.Array, step: jax.Array, batch_size: int
) -> dict[str, jax.Array]:
    """Batch `step` of resident data: every epoch is a permutation, its last partial batch dropped.

    Args:
      data: arrays of one leading axis n.
      order: uint32 key data; decides the permutations.
      step: int32 [].
      batch_size: at most n.
    """
    count = len(jax.tree.leaves(data)[0])
    if batch_size > count:
        raise ValueError(f"draw: batch_size = {batch_size}: there are only {count} examples")
    per_epoch = count // batch_size
    key = jax.random.fold_in(jax.random.wrap_key_data(order), step // per_epoch)
    rows = jax.random.permutation(key, count)
    rows = jax.lax.dynamic_slice_in_dim(rows, step % per_epoch * batch_size, batch_size)
    return jax.tree.map(lambda x: x[rows], dict(data))


def run_student(
    setting: Setting, params: Any, carried: Carried, image: jax.Array
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Carried]:
    """((logits, taps), carried with the new statistics): the student in training mode."""
    variables = {"params": params, "batch_stats": carried.stats}
    out, updated = setting.student.apply(variables, image, train=True, mutable=["batch_stats"])
    return out, carried._replace(stats=updated["batch_stats"])


def run_teacher(
    setting: Setting, carried: Carried, image: jax.Array, *, batch_statistics: bool = False
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(logits, taps) of the frozen teacher; of each of several, stacked.

    With `batch_statistics` BatchNorm normalises by the batch and what it would remember is
    discarded; else in inference mode. No gradient passes to its parameters; it does to the image.
    """

    def one(variables: Variables) -> Any:
        variables = jax.lax.stop_gradient(variables)
        if not batch_statistics:
            return setting.teacher.apply(variables, image, train=False)
        return setting.teacher.apply(variables, image, train=True, mutable=["batch_stats"])[0]

    # One after another: vmapped convolutions over kernels are slow on CPUs.
    several = setting.num_teachers > 1
    return jax.lax.map(one, carried.teacher) if several else one(carried.teacher)


def tap_shapes(setting: Setting, model: Any) -> dict[str, Any]:
    """Shapes of a model's taps for one image, by name; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, *setting.student_data["image"].shape[1:]), jnp.float32)

    def taps_of(image: jax.Array) -> Any:
        return model.init_with_output(jax.random.key(0), image, train=False)[0][1]

    return jax.eval_shape(taps_of, image)


def check_taps(
    setting: Setting,
    pairs: Mapping[str, str],
    *,
    channels: bool = False,
    pixels: bool = True,
) -> None:
    """Refuses taps that do not fit, before anything is compiled.

    Args:
      setting: see `Setting`.
      pairs: student's tap -> teacher's tap.
      channels: the number of channels must be the same.
      pixels: the axes between batch and channels must be the same.

    Raises:
      ValueError: one line with both taps and their shapes.
    """
    ours, theirs = (tap_shapes(setting, model) for model in (setting.student, setting.teacher))
    for mine, other in pairs.items():
        for who, name, taps in (("student", mine, ours), ("teacher", other, theirs)):
            if name not in taps:
                raise ValueError(f"{who} has no tap {name!r}; it has {', '.join(sorted(taps))}")
        a, b = ours[mine].shape[1:], theirs[other].shape[1:]
        if (pixels and a[:-1] != b[:-1]) or (channels and a[-1] != b[-1]):
            what = "pixels and channels" if pixels and channels else "channels"
            raise ValueError(
                f"student's tap {mine!r} {list(a)} and teacher's {other!r} {list(b)} must have the "
                f"same {what if channels else 'pixels'}"
            )


def classification(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(cross entropy [B], {"accuracy": []})."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return each, {"accuracy": (logits.argmax(-1) == label).mean()}


def teacher_phase(setting: Setting, config: ConfigDict, reuse: Mapping[str, Any]) -> Phase:
    """Trains the teacher, or all of them together, with the cross entropy; kept for other runs.

    Args:
      setting: see `Setting`.
      config: a section with `batch_size`, `num_steps` and `optimizer`.
      reuse: what the teacher depends on beside this section: model, data set, seed.

    Returns:
      A phase whose final state is the teacher's `state.TrainState`.
    """
    tx = optimizers.make(config.optimizer, config.num_steps)
    model, several = setting.teacher, setting.num_teachers > 1

    def loss(params: Any, stats: Any, batch: Any, key: jax.Array) -> Any:
        image = batch["image"] if setting.augment is None else setting.augment(key, batch["image"])
        variables = {"params": params, "batch_stats": stats}
        (logits, _), new = model.apply(variables, image, train=True, mutable=["batch_stats"])
        each, metrics = classification(logits, batch["label"])
        return each.mean(), (new["batch_stats"], metrics)

    one_step = state.gradient_step(loss, tx)

    def start(key: jax.Array) -> Any:
        image = jnp.zeros((1, *setting.teacher_data["image"].shape[1:]), jnp.float32)
        variables = model.init(key, image, train=False)
        order = jax.random.key_data(jax.random.fold_in(key, 1))
        return state.create(variables["params"], tx, variables.get("batch_stats", {})), order

    def move(pair: Any, data: Any, key: jax.Array) -> Any:
        current, order = pair
        batch = draw(data, order, current.step, config.batch_size)
        current, metrics = one_step(current, batch, key)
        return (current, order), metrics

    def init(key: jax.Array, previous: Any) -> Any:
        if several:
            return jax.vmap(start)(jax.random.split(key, setting.num_teachers))
        return start(key)

    def step(pair: Any, data: Any, key: jax.Array) -> Any:
        if not several:
            return move(pair, data, key)
        # One after another: vmapped convolutions over kernels are slow on CPUs.
        keys = jax.random.split(key, setting.num_teachers)
        pair, metrics = jax.lax.map(lambda xs: move(xs[0], data, xs[1]), (pair, keys))
        nonfinite = metrics.pop("nonfinite").max(0)
        return pair, jax.tree.map(lambda m: m.mean(0), metrics) | {"nonfinite": nonfinite}

    judges = _judges(setting, model)

    def evaluate(pair: Any) -> dict[str, float]:
        variables = _variables(pair[0].params, pair[0].model_state)
        if not several:
            return judges(variables)
        apart = [jax.tree.map(itemgetter(i), variables) for i in range(setting.num_teachers)]
        each = [judges(one) for one in apart]
        return {name: float(np.mean([m[name] for m in each])) for name in each[0]}

    return Phase(
        "teacher",
        config.num_steps,
        init,
        step,
        dict(setting.teacher_data),
        evaluate,
        examples_per_step=config.batch_size * setting.num_teachers,
        reuse={**reuse, "config": config, "num_teachers": setting.num_teachers},
    )


def student_phase(
    setting: Setting,
    config: ConfigDict,
    loss: Callable[..., Any],
    *,
    name: str = "student",
    extra_params: Callable[[jax.Array, Any], Any] | None = None,
    combine: Callable[[dict[str, Any], jax.Array], Any] | None = None,
    batches: Callable[[Mapping[str, jax.Array], Carried, jax.Array], Any] | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    figures: Any = None,
) -> Phase:
    """One phase of a student's training, after the teacher's or another of the student's.

    Args:
      setting: see `Setting`.
      config: a section with `batch_size`, `num_steps` and `optimizer`.
      loss: (params, carried, batch, key) -> (value, (carried, metrics)); value is a scalar, or
        {term: scalar} with `combine`. params is {"student": ..., "extra": ...}.
      name: of the phase.
      extra_params: (key, carried) -> parameters trained beside the student's in this phase, and
        dropped after it: connectors, translators.
      combine: see `state.gradient_step`.
      batches: (resident data, carried, key) -> batch; default: `draw` and `setting.augment`.
      evaluate: metrics beside the student's accuracy, of the phase's state.
      figures: see `Phase`.

    Returns:
      A phase whose state is a `state.TrainState` with `Carried` as its model_state.
    """
    tx = optimizers.make(config.optimizer, max(config.num_steps, 1))
    one_step = state.gradient_step(loss, tx, combine=combine)

    def init(key: jax.Array, previous: Any) -> Any:
        keys = jax.random.split(key, 3)
        image = jnp.zeros((1, *setting.student_data["image"].shape[1:]), jnp.float32)
        student = setting.student.init(keys[0], image, train=False)
        params, stats, teacher, extra = student["params"], student.get("batch_stats", {}), {}, ()
        before = previous.model_state if isinstance(previous, state.TrainState) else None
        if isinstance(before, Carried):
            teacher, extra = before.teacher, before.extra
            params, stats = previous.params["student"], before.stats
        elif previous is not None:
            teacher = _variables(previous[0].params, previous[0].model_state)
        order = jax.random.key_data(keys[1])
        carried = Carried(stats, teacher, extra, order, jnp.zeros((), jnp.int32))
        both = {"student": params, "extra": extra_params(keys[2], carried) if extra_params else {}}
        return state.create(both, tx, carried)

    def batch_of(data: Any, carried: Carried, key: jax.Array) -> Any:
        batch = draw(data, carried.order, carried.step, config.batch_size)
        if setting.augment is not None:
            batch["image"] = setting.augment(key, batch["image"])
        return batch

    def step(current: Any, data: Any, key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        carried = current.model_state
        batch = (batches or batch_of)(data, carried, first)
        current, metrics = one_step(current, batch, second)
        # Not the optimiser's count: skipped updates must not repeat their batch.
        advanced = current.model_state._replace(step=carried.step + 1)
        return current._replace(model_state=advanced), metrics

    judges = _judges(setting, setting.student)

    def judge(current: Any) -> dict[str, float]:
        found = judges(_variables(current.params["student"], current.model_state.stats))
        return {**found, **(evaluate(current) if evaluate else {})}

    return Phase(
        name,
        config.num_steps,
        init,
        step,
        dict(setting.student_data),
        judge,
        figures,
        examples_per_step=config.batch_size,
    )


def _variables(params: Any, stats: Any) -> Variables:
    return {"params": params, "batch_stats": stats}


def _judges(setting: Setting, model: Any) -> Callable[[Variables], dict[str, float]]:
    def right(variables: Variables, batch: Any) -> dict[str, jax.Array]:
        logits, _ = model.apply(variables, batch["image"], train=False)
        return {"accuracy": logits.argmax(-1) == batch["label"]}

    judges = {
        prefix: over_set(right, dict(data), 500) for prefix, data in setting.evaluation.items()
    }

    def evaluate(variables: Variables) -> dict[str, float]:
        return {
            f"{prefix}accuracy": judge(variables)["accuracy"] for prefix, judge in judges.items()
        }

    return evaluate
