"""Training without labels: the network, the optimiser, the step."""

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


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """`config.optimizer`; the predictor's learning rate stays constant where the config says so."""
    steps = max(config.num_steps, 1)
    scheduled = optimizers.make(config.optimizer, steps)
    if not config.model.constant_predictor_rate:
        return scheduled
    section = ConfigDict(config.optimizer.to_dict())
    section.schedule = ConfigDict({"name": "constant", "args": ConfigDict()})
    return optax.partition(
        {"scheduled": scheduled, "constant": optimizers.make(section, steps)},
        lambda params: {
            name: "constant" if name == "predictor" else "scheduled" for name in params
        },
    )


def _attached(predictions: jax.Array, projections: jax.Array) -> jax.Array:
    """EnSiam with the gradient let through the target: it collapses."""
    target = losses.unit(projections.astype(jnp.float32).mean(0))
    return -(losses.unit(predictions) * target).sum(-1).mean(0)


def views_of(config: ConfigDict, batch: Any, key: jax.Array) -> jax.Array:
    """[K, B, S, S, C] of a batch, drawn on the device."""
    images, view = tasks.to_float(batch["image"]), tasks.view_of(config)
    if not config.data.crops_on_host:
        return augment_views(key, images, config.model.num_views, view=view)
    # The host has cut K crops of every photograph; what is left is drawn for each.
    count, (rows, crops) = images.shape[0] * images.shape[1], images.shape[:2]
    flat = augment_views(key, images.reshape(count, *images.shape[2:]), 1, view=view)[0]
    return jnp.moveaxis(flat.reshape(rows, crops, *flat.shape[1:]), 1, 0)


def phase(config: ConfigDict) -> Phase:
    """One phase of self-supervised training. Evaluation reads the frozen backbone's features."""
    if config.model.loss not in LOSSES:
        raise ValueError(f"config.model.loss = {config.model.loss!r}: one of {', '.join(LOSSES)}")
    model, tx = network(config), optimizer(config)
    objective = {
        "ensiam": losses.ensiam_loss,
        "simsiam": losses.simsiam_pairwise_loss,
        "no_stop_gradient": _attached,
    }[config.model.loss]
    size, channels = config.data.size, config.data.channels

    def init(key: jax.Array, previous: Any) -> state.TrainState:
        variables = model.init(key, jnp.zeros((2, size, size, channels)), train=False)
        model_state = {"batch_stats": variables["batch_stats"]}
        return state.create(variables["params"], tx, model_state, ema=config.ema_decay > 0)

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        # Every view is a pass of its own: its batch statistics are those of B images, and the
        # running ones move K times a step, one view after another.
        def one(model_state: Any, view: jax.Array) -> Any:
            (p, taps), model_state = model.apply(
                {"params": params, **model_state}, view, train=True, mutable=["batch_stats"]
            )
            return model_state, (p, taps["projection"])

        model_state, (p, z) = jax.lax.scan(one, model_state, views_of(config, batch, key))
        return objective(p, z).mean(), (
            model_state,
            {"collapse_std": collapse_std(z[0], scaled=True)},
        )

    step = state.gradient_step(
        loss, tx, accumulate=config.accumulate, ema_decay=config.ema_decay, remat=config.remat
    )
    evaluate = judging.evaluator(config, model) if config.judge.features else None
    return Phase("train", config.num_steps, init, step, tasks.stream(config), evaluate)
