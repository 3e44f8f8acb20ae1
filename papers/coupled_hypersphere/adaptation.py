"""The two phases of CFA, and of what it is compared with."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from reprise.common import data
from reprise.common.evaluation.anomaly import image_auroc, per_region_overlap, pixel_auroc
from reprise.common.training import optimizers, sharding, state
from reprise.common.training.phase import Phase
from reprise.papers.coupled_hypersphere import backbones, tasks
from reprise.papers.coupled_hypersphere.layers import PatchDescriptor, add_coords, patch_features
from reprise.papers.coupled_hypersphere.losses import (
    anomaly_map,
    attraction_and_repulsion,
    coupled_hypersphere_score,
)
from reprise.papers.coupled_hypersphere.memory import compress, running_mean
from reprise.papers.coupled_hypersphere.models import backbone
from reprise.papers.coupled_hypersphere.optimizer import adamw_amsgrad

ARMS = ("cfa", "untrained", "raw", "gaussian")
TRACK = ("radius", "attract", "repel")


class Bank(NamedTuple):
    """State of the phase that makes the memory bank.

    Attributes:
      backbone: its variables.
      descriptor: parameters of phi, as they start.
      mean: of the descriptors at each position, over the batches so far: [H, W, D].
      square: the same of their outer products, [H, W, D, D], for the Gaussian arm; else [].
      batches: how many so far.
    """

    backbone: Any
    descriptor: Any
    mean: Float[Array, "height width d"]
    square: Float[Array, "..."]
    batches: Int[Array, ""]


class Parts(NamedTuple):
    """The pure functions of a config's network.

    Attributes:
      init: key -> variables of the backbone.
      patches: (variables, images [B, S, S, C] in [0, 1]) -> [B, H, W, C1 + C2 + C3], no gradient.
      init_descriptor: (key, patches) -> parameters.
      describe: (parameters, patches) -> phi [B, H, W, D].
    """

    init: Callable[[jax.Array], Any]
    patches: Callable[[Any, jax.Array], jax.Array]
    init_descriptor: Callable[[jax.Array, jax.Array], Any]
    describe: Callable[[Any, jax.Array], jax.Array]


def parts(config: ConfigDict) -> Parts:
    m = config.model
    if m.arm not in ARMS:
        raise ValueError(f"config.model.arm = {m.arm!r}: allowed are {', '.join(ARMS)}")
    network, dtype = backbone(config), jnp.dtype(config.precision)
    shape = (1, config.data.size, config.data.size, len(config.data.mean))

    def init(key: jax.Array) -> Any:
        return network.init(key, jnp.zeros(shape), train=False)

    def patches(variables: Any, image: jax.Array) -> jax.Array:
        image = backbones.normalised(config, image)
        _, taps = network.apply(variables, image, train=False)
        return jax.lax.stop_gradient(patch_features([taps[name] for name in m.taps]))

    if m.arm == "raw":
        return Parts(init, patches, lambda key, p: {}, lambda _, p: add_coords(p))
    if m.arm == "gaussian":
        return Parts(init, patches, lambda key, p: {}, lambda _, p: _some(p, m.gaussian_channels))

    def descriptor(p: jax.Array) -> Any:
        return PatchDescriptor(p.shape[-1] // m.gamma_d, dtype)

    return Parts(
        init,
        patches,
        lambda key, p: descriptor(p).init(key, p)["params"],
        lambda params, p: descriptor(p).apply({"params": params}, p),
    )


def _some(p: Array, count: int) -> Array:
    """At most `count` channels, the same random ones always: covariances grow with their square.

    No coordinates: at one position they do not vary.
    """
    channels = p.shape[-1]
    if channels <= count:
        return p
    return p[..., np.sort(np.random.default_rng(0).permutation(channels)[:count])]


def _stream(config: ConfigDict) -> Any:
    source, transform = tasks.train_source(config)
    return data.stream(source, config.batch_size, seed=config.seed, transform=transform)


def bank_phase(config: ConfigDict) -> Phase:
    """One pass over the training images with the descriptor as it starts."""
    net, arm = parts(config), config.model.arm
    stream = _stream(config)
    one = jnp.zeros((1, *stream.spec["image"].shape[1:]))

    def init(key: jax.Array, previous: Any) -> Bank:
        first, second = jax.random.split(key)
        variables = net.init(first) if previous is None else backbones.variables_of(previous)
        patches = net.patches(variables, one)
        descriptor = net.init_descriptor(second, patches)
        shape = net.describe(descriptor, patches).shape[1:]
        square = jnp.zeros((*shape, shape[-1]) if arm == "gaussian" else ())
        return Bank(variables, descriptor, jnp.zeros(shape), square, jnp.zeros((), jnp.int32))

    def step(bank: Bank, batch: Any, key: jax.Array) -> Any:
        phi = net.describe(bank.descriptor, net.patches(bank.backbone, batch["image"]))
        mean, square, i = running_mean(bank.mean, bank.batches, phi), bank.square, bank.batches
        if arm == "gaussian":
            outer = jnp.einsum("bhwi,bhwj->hwij", phi, phi, precision="highest") / len(phi)
            square = (i * square + outer) / (i + 1)
        return bank._replace(mean=mean, square=square, batches=i + 1), {}

    steps = max(1, config.data.train // config.batch_size)
    return Phase("bank", steps, init, step, stream)


def _optimizer(config: ConfigDict) -> optax.GradientTransformation:
    section, steps = config.optimizer, max(config.num_steps, 1)
    if not config.model.amsgrad:
        return optimizers.make(section, steps)
    schedule = optimizers.make_schedule(section.schedule, section.learning_rate, steps)
    return adamw_amsgrad(schedule, section.args.get("weight_decay", 0.0))


def adapt_phase(config: ConfigDict) -> Phase:
    """Training of descriptor and radius around the memory bank, which stays as it is.

    State: params {"descriptor", "radius"}, model_state {"backbone", "memory_bank", "track"}, with
    radius, L_att and L_rep of every step in `track`. A fixed radius is no parameter: weight decay
    would move it.
    """
    net, m = parts(config), config.model
    tx = _optimizer(config)

    def init(key: jax.Array, previous: Bank) -> state.TrainState:
        fixed = {"backbone": previous.backbone, "radius": jnp.float32(m.radius)}
        if m.arm == "gaussian":
            fixed["mean"], fixed["precision"] = previous.mean, _precision(previous)
        else:
            fixed["memory_bank"] = compress(previous.mean, gamma_c=m.gamma_c, key=key)
        fixed["track"] = jnp.zeros((max(config.num_steps, 1) * config.accumulate, len(TRACK)))
        fixed["count"] = jnp.zeros((), jnp.int32)
        params = {"descriptor": previous.descriptor}
        if m.train_radius:
            params["radius"] = fixed.pop("radius")
        return state.create(params, tx, fixed)

    def loss(params: Any, fixed: Any, batch: Any, key: jax.Array) -> Any:
        phi = net.describe(params["descriptor"], net.patches(fixed["backbone"], batch["image"]))
        radius = params["radius"] if m.train_radius else fixed["radius"]
        attract, repel = attraction_and_repulsion(
            phi,
            fixed["memory_bank"],
            radius,
            num_attract=m.num_attract,
            num_repel=m.num_repel,
            nu=m.nu,
            alpha=m.alpha,
        )
        found = {"radius": radius, "attract": attract.mean(), "repel": repel.mean()}
        row = jnp.stack([found[name] for name in TRACK])
        track = fixed["track"].at[fixed["count"]].set(jax.lax.stop_gradient(row))
        fixed = fixed | {"track": track, "count": fixed["count"] + 1}
        return found["attract"] + found["repel"], (fixed, found)

    def untrained(current: Any, batch: Any, key: jax.Array) -> Any:
        return current, {}

    trains = m.arm == "cfa"
    if not trains and config.num_steps:
        raise ValueError(f"config.num_steps = {config.num_steps}: must be 0 for arm {m.arm!r}")
    step = state.gradient_step(loss, tx, accumulate=config.accumulate, remat=config.remat)
    return Phase(
        "adapt",
        config.num_steps,
        init,
        step if trains else untrained,
        _stream(config),
        _evaluation(config),
    )


def _precision(bank: Bank) -> Float[Array, "height width d d"]:
    """Inverse covariance of each position, regularised as in PaDiM."""
    mean = bank.mean
    covariance = bank.square - mean[..., :, None] * mean[..., None, :]
    return jnp.linalg.inv(covariance + 0.01 * jnp.eye(mean.shape[-1]))


def scores(config: ConfigDict) -> Callable[[state.TrainState, jax.Array], jax.Array]:
    """(final state, images) -> anomaly maps [B, S, S]."""
    net, m = parts(config), config.model

    def score(current: state.TrainState, image: jax.Array) -> jax.Array:
        fixed = current.model_state
        phi = net.describe(current.params["descriptor"], net.patches(fixed["backbone"], image))
        if m.arm == "gaussian":
            away = phi.astype(jnp.float32) - fixed["mean"]
            square = jnp.einsum("bhwi,hwij,bhwj->bhw", away, fixed["precision"], away)
            low = jnp.sqrt(jnp.maximum(square, 0.0))
        else:
            low = coupled_hypersphere_score(phi, fixed["memory_bank"], num_neighbors=m.num_attract)
        return anomaly_map(low, config.data.size, sigma=config.data.sigma)

    return score


def maps_of(
    score: Callable[[Any, jax.Array], jax.Array], image: np.ndarray, batch_size: int
) -> Callable[[Any], np.ndarray]:
    """state -> the maps of all images [N, S, S], on every host; the last batch is padded."""

    @functools.lru_cache(maxsize=1)
    def compiled(mesh: Mesh) -> Any:
        return jax.jit(score, out_shardings=None if mesh.empty else sharding.replicated(mesh))

    def maps(current: Any) -> np.ndarray:
        mesh = jax.sharding.get_mesh()
        devices = 1 if mesh.empty else mesh.size
        size = -(-min(batch_size, len(image)) // devices) * devices
        hosts, host = jax.process_count(), jax.process_index()
        out = []
        for start in range(0, len(image), size):
            index = np.minimum(np.arange(start, start + size), len(image) - 1)
            batch = image[index[host * size // hosts : (host + 1) * size // hosts]]
            if not mesh.empty:
                batch = sharding.put(batch, sharding.batched(mesh))
            out.append(np.asarray(compiled(mesh)(current, batch)))
        return np.concatenate(out)[: len(image)]

    return maps


def _evaluation(config: ConfigDict) -> Callable[[state.TrainState], dict[str, float]]:
    built: dict[str, Any] = {}

    def evaluate(current: state.TrainState) -> dict[str, float]:
        if not built:
            built["test"] = tasks.test_set(config)
            built["maps"] = maps_of(scores(config), built["test"]["image"], 16)
        test, maps = built["test"], built["maps"](current)
        out = {
            "image_auroc": image_auroc(maps.max((1, 2)), test["label"]),
            "pixel_auroc": pixel_auroc(maps, test["mask"]),
            "pro": per_region_overlap(maps, test["mask"]),
        }
        if config.data.ablation and config.model.arm == "cfa":
            fixed = current.model_state
            count = int(fixed["count"])
            recent = np.asarray(fixed["track"])[max(0, count - 25) : max(1, count)]
            out |= dict(zip(TRACK, recent.mean(0).tolist(), strict=True))
        return out

    return evaluate
