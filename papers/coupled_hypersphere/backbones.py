"""Where the weights of the frozen backbone come from: a phase of their own, or nowhere."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from reprise.common import data
from reprise.common.evaluation.over_set import over_set
from reprise.common.models.torchvision_weights import from_torchvision
from reprise.common.training import optimizers, state
from reprise.common.training.phase import Phase
from reprise.papers.coupled_hypersphere.models import backbone


def normalised(config: ConfigDict, image: jax.Array) -> jax.Array:
    """Images in [0, 1], minus `config.data.mean` and over `config.data.std` of each channel."""
    mean, std = (jnp.asarray(v, jnp.float32) for v in (config.data.mean, config.data.std))
    return (image - mean) / std


def phase(config: ConfigDict) -> Phase | None:
    """What makes the weights that `config.model.weights` names; None where they are random."""
    weights = config.model.weights
    if weights == "random":
        return None
    if weights == "pretrain":
        return _pretraining(config)
    if not Path(weights).is_file():
        raise ValueError(
            f"config.model.weights = {weights!r}: no such file. Make it from torchvision as "
            "common/models/torchvision_weights.py says; or say pretrain, or random to compile "
            "without weights"
        )
    variables = _read(weights, backbone(config))

    def init(key: jax.Array, previous: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, variables)

    def step(current: Any, resident: Any, key: jax.Array) -> Any:
        return resident, {}

    return Phase("weights", 1, init, step, variables, examples_per_step=1)


@functools.lru_cache(maxsize=4)
def _read(path: str, model: Any) -> Any:
    return jax.tree.map(np.asarray, from_torchvision(np.load(path), model))


def variables_of(previous: Any) -> Any:
    """The backbone's variables, from the final state of the phase that made them."""
    if isinstance(previous, state.TrainState):
        return {"params": previous.params, "batch_stats": previous.model_state}
    return previous


def _pretraining(config: ConfigDict) -> Phase:
    """Classification of a labelled set, with flips and shifts; kept for other runs."""
    p, d = config.pretrain, config.data
    model = backbone(config)
    tx = optimizers.make(p.optimizer, p.num_steps)
    source = data.load(p.data, p.train_split, data_dir=config.data_dir or None)
    batches = data.stream(source, p.batch_size, seed=config.seed)
    shape = batches.spec["image"].shape[1:]

    def prepared(image: jax.Array) -> jax.Array:
        return normalised(config, jnp.broadcast_to(image / 255.0, (*image.shape[:3], 3)))

    def augmented(image: jax.Array, key: jax.Array) -> jax.Array:
        flip, shift = jax.random.split(key)
        mirrored = jax.random.bernoulli(flip, 0.5, (len(image), 1, 1, 1))
        image = jnp.where(mirrored, image[:, :, ::-1], image)
        padded = jnp.pad(image, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")

        def crop(x: jax.Array, corner: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(x, (corner[0], corner[1], 0), image.shape[1:])

        return jax.vmap(crop)(padded, jax.random.randint(shift, (len(image), 2), 0, 9))

    def init(key: jax.Array, previous: Any) -> state.TrainState:
        variables = model.init(key, prepared(jnp.zeros((1, *shape))), train=False)
        return state.create(variables["params"], tx, variables["batch_stats"])

    def loss(params: Any, batch_stats: Any, batch: Any, key: jax.Array) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        image = augmented(prepared(batch["image"]), key)
        (logits, _), new = model.apply(variables, image, train=True, mutable=["batch_stats"])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        accuracy = (logits.argmax(-1) == batch["label"]).mean()
        return each.mean(), (new["batch_stats"], {"accuracy": accuracy})

    def correct(current: state.TrainState, batch: Any) -> Any:
        variables = variables_of(current)
        logits, _ = model.apply(variables, prepared(batch["image"]), train=False)
        return {"accuracy": logits.argmax(-1) == batch["label"]}

    def evaluate(current: state.TrainState) -> dict[str, float]:
        if int(current.step) < p.num_steps:  # eval_every counts the steps of the adaptation
            return {}
        held_out = data.load(p.data, p.test_split, data_dir=config.data_dir or None)
        return over_set(correct, held_out.arrays(), 250)(current)

    m = config.model
    depends = {"pretrain": p, "mean": d.mean, "std": d.std, "precision": config.precision}
    network = {k: m[k] for k in ("backbone", "backbone_classes", "depth", "width", "widen")}
    step = state.gradient_step(loss, tx)
    return Phase(
        "pretrain",
        p.num_steps,
        init,
        step,
        batches,
        evaluate,
        examples_per_step=p.batch_size,
        reuse=depends | {"network": network},
    )
