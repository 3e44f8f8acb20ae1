"""Training without labels: the network, the optimiser, the step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from reprise.common.evaluation.representation import collapse_std
from reprise.common.training import optimizers, state
from reprise.common.training.phase import Phase
from reprise.papers.ensiam import judging, losses, models, tasks
from reprise.papers.ensiam.views import augment_views

LOSSES = ("ensiam", "simsiam", "no_stop_gradient")


def network(config: ConfigDict) -> models.Siamese:
    """Backbone, projector and predictor of the config."""
    m, dtype = config.model, jnp.dtype(config.precision)
    if m.backbone == "conv":
        backbone: Any = models.ConvNet(m.widths, flatten=m.flatten, dtype=dtype)
    else:
        from reprise.common.models.resnet import ResNet

        backbone = ResNet(
            depth=m.depth,
            num_classes=None,
            small_images=m.small_images,
            zero_init=True,
            dtype=dtype,
        )
    projector = models.Projector((m.projector,) * m.projector_layers, dtype=dtype)
    return models.Siamese(backbone, projector, models.Predictor(m.predictor, dtype=dtype))


def optimizer(config: ConfigDict, rate: Any) -> optax.GradientTransformation:
    """`config.optimizer` with its learning rate in the state, where settings of a sweep differ.

    The predictor's learning rate stays constant where the config says so.
    """
    steps = max(config.num_steps, 1)
    section = ConfigDict(config.optimizer.to_dict())
    section.learning_rate = 1.0
    tx = optimizers.make(section, steps)
    if config.model.constant_predictor_rate:
        section.schedule = ConfigDict({"name": "constant", "args": ConfigDict()})
        tx = optax.partition(
            {"scheduled": tx, "constant": optimizers.make(section, steps)},
            lambda params: {
                name: "constant" if name == "predictor" else "scheduled" for name in params
            },
        )
    return optax.chain(tx, optax.inject_hyperparams(optax.scale)(rate))


def _attached(predictions: jax.Array, projections: jax.Array) -> jax.Array:
    """EnSiam with the gradient let through the target.

    On the digits, in 150 steps, it makes features worse but does not collapse.
    """
    target = losses.unit(projections.astype(jnp.float32).mean(0))
    return -(losses.unit(predictions) * target).sum(-1).mean(0)


def views_of(config: ConfigDict, batch: Any, key: jax.Array, strength: Any) -> jax.Array:
    """[K, B, S, S, C] of a batch, drawn on the device, keyed by step, image and view."""
    images, view = tasks.to_float(batch["image"]), tasks.view_of(config, strength)
    if not config.data.crops_on_host:
        return augment_views(key, images, config.model.num_views, view=view, index=batch["index"])
    # The host has cut K crops of every photograph; what is left is drawn for each.
    keys = jax.random.split(key, images.shape[1])
    draw = functools.partial(augment_views, num_views=1, view=view, index=batch["index"])
    return jax.vmap(draw, (0, 1))(keys, images)[:, 0]


def build(config: ConfigDict) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """The network, (key, learning rate, strength) -> state, and the step."""
    if config.model.loss not in LOSSES:
        raise ValueError(f"config.model.loss = {config.model.loss!r}: one of {', '.join(LOSSES)}")
    model = network(config)
    objective = {
        "ensiam": losses.ensiam_loss,
        "simsiam": losses.simsiam_pairwise_loss,
        "no_stop_gradient": _attached,
    }[config.model.loss]
    size, channels = config.data.size, config.data.channels

    def start(key: jax.Array, rate: Any, strength: Any) -> state.TrainState:
        variables = model.init(key, jnp.zeros((2, size, size, channels)), train=False)
        model_state = {
            "batch_stats": variables["batch_stats"],
            "strength": jnp.asarray(strength, jnp.float32),
        }
        tx = optimizer(config, rate)
        return state.create(variables["params"], tx, model_state, ema=config.ema_decay > 0)

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        # Every view is a pass of its own: its batch statistics are those of B images, and the
        # running ones move K times a step, one view after another.
        def one(stats: Any, view: jax.Array) -> Any:
            (p, taps), new = model.apply(
                {"params": params, "batch_stats": stats}, view, train=True, mutable=["batch_stats"]
            )
            return new["batch_stats"], (p, taps["projection"])

        views = views_of(config, batch, key, model_state["strength"])
        stats, (p, z) = jax.lax.scan(one, model_state["batch_stats"], views)
        metrics = {"collapse_std": collapse_std(z[0], scaled=True)}
        return objective(p, z).mean(), (model_state | {"batch_stats": stats}, metrics)

    step = state.gradient_step(
        loss,
        optimizer(config, 1.0),
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
        remat=config.remat,
    )
    return model, start, step


def phase(config: ConfigDict) -> Phase:
    """One phase of self-supervised training. Evaluation reads the frozen backbone's features."""
    model, start, step = build(config)

    def init(key: jax.Array, previous: Any) -> state.TrainState:
        return start(key, config.optimizer.learning_rate, config.data.strength)

    evaluate = judging.evaluator(config, model) if config.judge.features else None
    return Phase("train", config.num_steps, init, step, tasks.stream(config), evaluate)
