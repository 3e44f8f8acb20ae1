"""What the recipes of clustering and link prediction share: data, operators, networks, losses."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common import data
from reprise.common.data.graphs import Graph, load_graph, make_graph, planted_graph
from reprise.common.ops.graph import Operator, dense
from reprise.papers.gala.losses import edge_link_reconstruction_loss, feature_reconstruction_loss
from reprise.papers.gala.models import GALA, GraphAutoencoder, gaussian_kl, smoothed_features
from reprise.papers.gala.operators import (
    edge_sharpening_weights,
    edge_smoothing_weights,
    knn_edges,
)

ARMS = ("gala", "smoothing_decoder", "gae", "vgae", "smoothed_features", "features")


class Resident(NamedTuple):
    """What every step sees: the whole graph.

    Attributes:
      features: [n, F].
      edges: [2, e], in training.
      smoothing, sharpening: S and P of these edges.
    """

    features: Any
    edges: Any
    smoothing: Operator
    sharpening: Operator


# Share of pairs that are edges above which a matrix product is faster than sums over edges.
DENSE_SHARE = 0.01


def resident(features: Any, edges: Any, weights: Any) -> Resident:
    """Operators of the edges that may be seen: sparse, or dense where there are many edges."""
    n = len(features)
    edges, weights = jnp.asarray(edges), jnp.asarray(weights)
    smoothing: Operator = edge_smoothing_weights(edges, weights, n)
    sharpening: Operator = edge_sharpening_weights(edges, weights, n)
    if edges.shape[1] > DENSE_SHARE * n**2:
        smoothing, sharpening = dense(smoothing), dense(sharpening)
    whole = Resident(jnp.asarray(features), edges, smoothing, sharpening)
    return jax.tree.map(np.asarray, whole)


@functools.lru_cache(maxsize=4)
def graph(name: str, count: int, neighbours: int, seed: int, data_dir: str) -> Graph:
    """The graph of a config's data section; one object, so that seeds share one copy.

    Args:
      name: "planted" (generated), a citation graph, or a set of images: its kNN graph.
      count: nodes a class of a planted graph, or how many images; 0: all.
      neighbours: k of the kNN graph.
      seed: of a planted graph.
      data_dir: where prepared data lie.
    """
    if name == "planted":
        return planted_graph(seed, nodes_per_class=count)
    if data.describe(name).splits.keys() == {"full"}:
        return load_graph(name, data_dir)
    return image_graph(name, count, neighbours, data_dir)


def image_graph(name: str, count: int, neighbours: int, data_dir: str) -> Graph:
    """The kNN graph of images, with pixels in [0, 1] as features (official code).

    The digits are taken whole; of other sets the first `count` test images.
    """
    splits = ("train", "test") if name == "digits" else ("test",)
    parts = [data.load(name, split, data_dir=data_dir or None).arrays() for split in splits]
    images = np.concatenate([part["image"] for part in parts])[: count or None]
    labels = np.concatenate([part["label"] for part in parts])[: count or None]
    features = images.reshape(len(images), -1).astype(np.float32)
    if images.dtype == np.uint8:
        features /= 255
    edges, weights = (np.asarray(x) for x in knn_edges(jnp.asarray(features), neighbours))
    # A mutual pair is listed twice; the sum of both is its weight.
    pairs, where = np.unique(edges, axis=1, return_inverse=True)
    return make_graph(features, pairs, labels, np.bincount(where.reshape(-1), weights))


class Method(NamedTuple):
    """One arm: its network, its loss and its latent.

    Attributes:
      init: (key, resident) -> params.
      loss: (params, resident, key) -> (scalar, latent, {name: scalar}).
      encode: (params, resident) -> latent.
    """

    init: Callable[[jax.Array, Resident], Any]
    loss: Callable[[Any, Resident, jax.Array], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]
    encode: Callable[[Any, Resident], jax.Array]


def method(config: ConfigDict) -> Method:
    """The arm that a config names.

    Raises:
      ValueError: no such arm.
    """
    m = config.model
    if m.arm not in ARMS:
        raise ValueError(f"config.model.arm = {m.arm!r}: allowed are {', '.join(ARMS)}")
    if m.arm in ("features", "smoothed_features"):
        times = 2 if m.arm == "smoothed_features" else 0
        return Method(
            lambda key, r: {},
            lambda params, r, key: (jnp.zeros(()), r.features, {}),
            lambda params, r: smoothed_features(r.features, r.smoothing, times=times),
        )
    return _gae(config) if m.arm in ("gae", "vgae") else _gala(config)


def _gala(config: ConfigDict) -> Method:
    m = config.model
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32
    net = GALA(tuple(m.widths), dtype=dtype)

    def forward(params: Any, r: Resident) -> Any:
        decoder = r.smoothing if m.arm == "smoothing_decoder" else r.sharpening
        return net.apply({"params": params}, r.features, r.smoothing, decoder)

    def loss(params: Any, r: Resident, key: jax.Array) -> Any:
        latent, reconstruction = forward(params, r)
        features = feature_reconstruction_loss(r.features, reconstruction).mean()
        # Output units that the last ReLU keeps at 0 for every node, and gives no gradient.
        dead = (reconstruction.max(0) <= 0).mean()
        metrics = {"feature_loss": features, "dead_outputs": dead}
        total = features
        if m.link_weight:
            metrics["link_loss"] = edge_link_reconstruction_loss(latent, r.edges)
            total += m.link_weight * metrics["link_loss"]
        return total, latent, metrics

    return Method(
        lambda key, r: net.init(key, r.features, r.smoothing, r.sharpening)["params"],
        loss,
        lambda params, r: forward(params, r)[0].astype(jnp.float32),
    )


def _gae(config: ConfigDict) -> Method:
    variational = config.model.arm == "vgae"
    net = GraphAutoencoder(tuple(config.model.gae_widths), variational)

    def forward(params: Any, r: Resident) -> Any:
        return net.apply({"params": params}, r.features, r.smoothing)

    def loss(params: Any, r: Resident, key: jax.Array) -> Any:
        mean, log_std = forward(params, r)
        sample = mean
        if variational:
            sample += jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        links = edge_link_reconstruction_loss(sample, r.edges)
        metrics = {"link_loss": links}
        total = links
        if variational:
            # The scale of Kipf and Welling's code: the mean over nodes, over n.
            metrics["kl"] = gaussian_kl(mean, log_std).mean() / len(mean)
            total += metrics["kl"]
        return total, mean, metrics

    return Method(
        lambda key, r: net.init(key, r.features, r.smoothing)["params"],
        loss,
        lambda params, r: forward(params, r)[0],
    )
