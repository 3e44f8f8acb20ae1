"""The linear probe for sets too large to keep features of: a classifier trained on the stream."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from reprise.common import data
from reprise.common.data import augment
from reprise.common.evaluation.over_set import over_set
from reprise.common.training import optimizers, state
from reprise.common.training.phase import Phase
from reprise.papers.ensiam import judging, tasks, training


class _Cropped:
    """A source's examples, each cut to its central square."""

    def __init__(self, source: Any, size: int):
        self.source, self.cut = source, tasks.centre_crop(size)
        self.arrays = source.arrays

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return self.cut(self.source[index])


def phase(config: ConfigDict) -> Phase:
    """LARS on a linear layer over frozen features; crops and flips; top-1 of central crops."""
    p, d = config.probe, config.data
    model = training.network(config)
    head: Any = nn.Dense(p.num_classes, kernel_init=nn.initializers.normal(0.01))
    tx = optax.lars(
        optimizers.make_schedule(p.schedule, p.learning_rate, p.num_steps),
        weight_decay=0.0,
        trust_ratio_mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        momentum=0.9,
    )

    def logits(params: Any, model_state: Any, images: jax.Array) -> jax.Array:
        taps = model.apply(model_state, images, train=False)[1]
        return head.apply({"params": params}, taps["embed"].astype(jnp.float32))

    def init(key: jax.Array, previous: Any) -> state.TrainState:
        # What was trained before is no parameter of this phase.
        frozen = judging.variables(previous)
        embed = jax.eval_shape(
            lambda v: model.apply(v, jnp.zeros((1, d.size, d.size, d.channels)), train=False)[1],
            frozen,
        )["embed"]
        params = head.init(key, jnp.zeros(embed.shape))["params"]
        return state.create(params, tx, jax.tree.map(jnp.copy, frozen))

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        images = tasks.to_float(batch["image"][:, 0])
        images = augment.multi_view(key, images, 1, augment.random_flip, index=batch["index"])
        images = augment.normalize(images[0], d.mean, d.std)
        out = logits(params, jax.lax.stop_gradient(model_state), images)
        value = optax.softmax_cross_entropy_with_integer_labels(out, batch["label"]).mean()
        accuracy = (out.argmax(-1) == batch["label"]).mean()
        return value, (model_state, {"accuracy": accuracy})

    def right(current: state.TrainState, batch: Any) -> dict[str, jax.Array]:
        out = logits(current.params, current.model_state, tasks.plain(config, batch["image"]))
        return {"top1": (out.argmax(-1) == batch["label"]).astype(jnp.float32)}

    def evaluate(current: state.TrainState) -> dict[str, float]:
        source = data.load(d.name, d.test, data_dir=config.data_dir or None)
        return over_set(right, _Cropped(source, d.size), p.batch_size)(current)

    train = data.load(d.name, d.train, data_dir=config.data_dir or None)
    stream = tasks.crop_stream(config, train, p.batch_size, 1, (0.08, 1.0))
    return Phase("probe", p.num_steps, init, state.gradient_step(loss, tx), stream, evaluate)
