"""How good frozen features are, and whether they have collapsed.

features = features_over_set(apply, examples, 256)     # once a phase
train, test = features(state), ...                     # numpy, every example once
knn_accuracy(train, labels, test, test_labels, k=200, temperature=0.1)
linear_probe(train, labels, test, test_labels)
effective_rank(test), collapse_std(test)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def features_over_set(
    apply: Callable[[Any, Any], Any], examples: Any, batch_size: int
) -> Callable[[Any], Any]:
    """Builds a `features(state)` that collects what a network says of a whole data set.

    The last batch is padded with the first example, and its rows are dropped again; batches are
    spread over the devices of the current mesh.

    Args:
      apply: (state, batch) -> pytree of [B, ...]. It must not mix examples of a batch.
      examples: pytree of numpy arrays with one leading axis, or a sequence of dicts of them (a
        `Source`). On several hosts each holds all of it.
      batch_size: examples at a time, over all devices.

    Returns:
      features(state) -> pytree of numpy arrays [N, ...], on every host, in the set's order.

    Raises:
      ValueError: the set is empty.
    """
    is_tree = not hasattr(examples, "arrays")
    count = len(jax.tree.leaves(examples)[0]) if is_tree else len(examples)
    if count == 0:
        raise ValueError("features_over_set: no examples")

    def rows(index: np.ndarray) -> Any:
        if is_tree:
            return jax.tree.map(lambda x: np.asarray(x)[index], examples)
        return jax.tree.map(lambda *xs: np.stack(xs), *(examples[int(i)] for i in index))

    compiled: dict[Any, Any] = {}

    def features(state: Any) -> Any:
        from reprise.common.training import sharding

        mesh = jax.sharding.get_mesh()
        devices = 1 if mesh.empty else mesh.size
        if mesh not in compiled:
            # Whole on every device, so that every host can read it.
            out = None if mesh.empty else sharding.replicated(mesh)
            compiled[mesh] = jax.jit(apply, out_shardings=out)
        size = -(-min(batch_size, count) // devices) * devices
        hosts, host = jax.process_count(), jax.process_index()
        own = slice(host * size // hosts, (host + 1) * size // hosts)
        parts = []
        for start in range(0, count, size):
            index = np.arange(start, start + size)
            batch = rows(np.where(index < count, index, 0)[own])
            if not mesh.empty:
                batch = sharding.put(batch, sharding.batched(mesh))
            parts.append(jax.tree.map(np.asarray, compiled[mesh](state, batch)))
        return jax.tree.map(lambda *xs: np.concatenate(xs)[:count], *parts)

    return features


def _check(name: str, features: Any, labels: Any, other: Any, other_labels: Any) -> None:
    shapes = [np.shape(x) for x in (features, labels, other, other_labels)]
    two = len(shapes[0]) == len(shapes[2]) == 2 and shapes[0][1] == shapes[2][1]
    if not two or shapes[1] != shapes[0][:1] or shapes[3] != shapes[2][:1]:
        raise ValueError(
            f"{name}: features {shapes[0]} and {shapes[2]} must be [N, d] and [M, d], labels "
            f"{shapes[1]} and {shapes[3]} must be [N] and [M]"
        )
    for what, x, y in (("training", features, labels), ("test", other, other_labels)):
        if not len(x):
            raise ValueError(f"{name}: the {what} set is empty")
        bad = ~np.isfinite(np.asarray(x)).all(1)
        if bad.any():
            raise ValueError(f"{name}: {what} features of row {np.argmax(bad)} are not finite")
        if np.min(y) < 0:
            raise ValueError(f"{name}: {what} labels hold {np.min(y)}: must be 0 or more")


def _unit(x: Array) -> Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return wide / jnp.sqrt(jnp.maximum((wide**2).sum(-1, keepdims=True), 1e-24))


def knn_accuracy(
    features: Float[Any, "n d"],
    labels: Int[Any, " n"],
    test_features: Float[Any, "m d"],
    test_labels: Int[Any, " m"],
    *,
    k: int = 5,
    temperature: float | None = None,
    chunk: int = 512,
) -> float:
    """Share of test examples whose k most similar training examples vote for their class.

    Similarity is the cosine. Without a temperature every neighbour has one vote; with one its vote
    weighs exp(cosine / temperature), as Wu et al. (CVPR 2018) have it (k = 200, temperature 0.1 for
    ImageNet and CIFAR). The smaller label wins a tie.

    Args:
      features, labels: of the training set.
      test_features, test_labels: of the set that is judged.
      k: neighbours; all of them where the training set has fewer.
      temperature: of the votes, or None.
      chunk: test examples compared at a time.

    Raises:
      ValueError: shapes that do not fit, an empty set, features that are not finite, a negative
        label, k < 1 or a temperature that is not positive.
    """
    _check("knn_accuracy", features, labels, test_features, test_labels)
    if k < 1 or (temperature is not None and not temperature > 0):
        raise ValueError(f"knn_accuracy: k = {k} >= 1, temperature = {temperature} > 0 or None")
    classes = int(max(np.max(labels), np.max(test_labels))) + 1
    count = min(k, len(features))
    known, known_labels = _unit(jnp.asarray(features)), jnp.asarray(labels)

    @jax.jit
    def vote(known: Array, known_labels: Array, query: Array) -> Array:
        cosine = jnp.matmul(_unit(query), known.T, precision=jax.lax.Precision.HIGHEST)
        near, which = jax.lax.top_k(cosine, count)
        weight = jnp.ones_like(near)
        if temperature is not None:
            # Relative to the nearest: exp(1 / 0.01) would not fit into float32.
            weight = jnp.exp((near - near[:, :1]) / temperature)
        votes = weight[..., None] * jax.nn.one_hot(known_labels[which], classes)
        return jnp.argmax(votes.sum(1), -1)

    asked = np.asarray(test_features)
    found = [
        np.asarray(vote(known, known_labels, asked[start : start + chunk]))
        for start in range(0, len(asked), chunk)
    ]
    return float((np.concatenate(found) == np.asarray(test_labels)).mean())


def few_labels(labels: Int[Any, " n"], per_class: int, seed: int) -> np.ndarray:
    """Positions of `per_class` random examples of every class, sorted by class.

    Raises:
      ValueError: a class has fewer.
    """
    rng, chosen = np.random.default_rng(seed), []
    for label in np.unique(np.asarray(labels)):
        members = np.flatnonzero(np.asarray(labels) == label)
        if len(members) < per_class:
            raise ValueError(
                f"few_labels: class {label} has {len(members)} examples, {per_class} asked for"
            )
        chosen.append(rng.choice(members, per_class, replace=False))
    return np.concatenate(chosen)


def linear_probe(
    features: Float[Any, "n d"],
    labels: Int[Any, " n"],
    test_features: Float[Any, "m d"],
    test_labels: Int[Any, " m"],
    *,
    c: float = 1.0,
    normalize: bool = True,
    standardize: bool = False,
    max_iter: int = 1000,
) -> float:
    """Accuracy of multinomial logistic regression (scikit-learn, LBFGS) on frozen features.

    Args:
      features, labels: of the training set.
      test_features, test_labels: of the set that is judged.
      c: inverse of the weight of the squared norm.
      normalize: features are scaled to unit length first.
      standardize: then every dimension to mean 0 and variance 1 of the training set.
      max_iter: of LBFGS.

    Raises:
      ValueError: shapes that do not fit, an empty set, features that are not finite, or a negative
        label.
    """
    from sklearn.linear_model import LogisticRegression

    _check("linear_probe", features, labels, test_features, test_labels)
    train, test = (np.asarray(x, np.float64) for x in (features, test_features))
    if normalize:
        train, test = (
            x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (train, test)
        )
    if standardize:
        mean, std = train.mean(0), np.maximum(train.std(0), 1e-12)
        train, test = (train - mean) / std, (test - mean) / std
    model = LogisticRegression(C=c, max_iter=max_iter).fit(train, np.asarray(labels))
    return float((model.predict(test) == np.asarray(test_labels)).mean())


def collapse_std(z: Float[Any, "batch d"], *, scaled: bool = False) -> Float[Array, ""]:
    """Standard deviation over the batch of each dimension of z / |z|, averaged over dimensions.

    About 1 / sqrt(d) for directions spread over the whole sphere, 0 for a network that says the
    same of every image (Chen and He, CVPR 2021, figure 2). Divided by B, not B - 1. Batch-level.

    Args:
      z: representations.
      scaled: times sqrt(d): near 1 is healthy, below 0.3 collapse.

    Raises:
      ValueError: z is no [B, d].
    """
    if z.ndim != 2:
        raise ValueError(f"collapse_std: z {z.shape} must be [B, d]")
    value = _unit(jnp.asarray(z)).std(0).mean()
    return value * z.shape[1] ** 0.5 if scaled else value


def effective_rank(z: Float[Any, "batch d"], *, center: bool = True) -> Float[Array, ""]:
    """exp of the entropy of the singular values of z, normalised to sum 1; in [1, min(B, d)].

    Roy and Vetterli, "The effective rank" (EUSIPCO 2007); with `center=False` it is RankMe (Garrido
    et al., ICML 2023). 1 where all rows are the same. Batch-level.

    Args:
      z: representations.
      center: subtract the mean over the batch first.

    Raises:
      ValueError: z is no [B, d].
    """
    if z.ndim != 2:
        raise ValueError(f"effective_rank: z {z.shape} must be [B, d]")
    wide = jnp.asarray(z).astype(jnp.promote_types(z.dtype, jnp.float32))
    wide = wide - wide.mean(0) if center else wide
    values = jnp.linalg.svd(wide, compute_uv=False)
    share = values / jnp.maximum(values.sum(), jnp.finfo(wide.dtype).tiny)
    return jnp.exp(jax.scipy.special.entr(share).sum())
