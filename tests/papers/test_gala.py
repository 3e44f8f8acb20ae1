"""papers/gala: golden, properties, gradients, memory, devices, bad input, recipes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from reprise.common import config as configs
from reprise.common.data.graphs import planted_graph
from reprise.common.ops.graph import clean_edges, dense
from reprise.common.training import program, run, sharding
from reprise.papers.gala import (
    GALA,
    GraphAutoencoder,
    clustering_accuracy,
    edge_link_reconstruction_loss,
    edge_sharpening_weights,
    edge_smoothing_weights,
    feature_reconstruction_loss,
    gaussian_kl,
    knn_affinity,
    knn_edges,
    latent_affinity,
    link_reconstruction_loss,
    parts,
    sharpening_operator,
    smoothed_features,
    smoothing_operator,
    subspace_clustering_cost,
)
from reprise.papers.gala.links import split_of
from reprise.papers.gala.readout import READOUTS, read_out, spectral_assignment, unit_rows

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = dict(np.load(ROOT / "tests/goldens/gala.npz"))
LAYERS = 2 * int(GOLDEN["num_encoder_layers"])


def golden(dtype=jnp.float32):
    a = {key: jnp.asarray(value, dtype) for key, value in GOLDEN.items()}
    params = {f"layer{i}": {k: a[f"{k}_{i}"] for k in ("kernel", "bias")} for i in range(LAYERS)}
    return params, a["features"], a["adjacency"], a["latent"]


def edges_of(adjacency):
    """(edges, weights, n) of a dense adjacency."""
    pairs = np.stack(np.nonzero(np.asarray(adjacency)))
    return *clean_edges(pairs, len(adjacency), np.asarray(adjacency)[tuple(pairs)]), len(adjacency)


def close(found, expected, tolerance, name=""):
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        found, expected, atol=tolerance * np.abs(expected).max(), rtol=0, err_msg=name
    )


def compare_with_golden(dtype, tolerance, sparse):
    params, x, adjacency, latent = golden(dtype)
    smoothing, sharpening = smoothing_operator(adjacency), sharpening_operator(adjacency)
    close(smoothing, GOLDEN["expected_smoothing"], tolerance)
    close(sharpening, GOLDEN["expected_sharpening"], tolerance)
    if sparse:
        edges, weights, n = edges_of(adjacency)
        weights = jnp.asarray(weights, dtype)
        smoothing = edge_smoothing_weights(jnp.asarray(edges), weights, n)
        sharpening = edge_sharpening_weights(jnp.asarray(edges), weights, n)

    def loss(params):
        code, reconstruction = GALA((10, 6)).apply({"params": params}, x, smoothing, sharpening)
        each = feature_reconstruction_loss(x, reconstruction)
        return each.mean(), (code, reconstruction, each)

    grads, (code, reconstruction, each) = jax.jit(jax.grad(loss, has_aux=True))(params)
    close(code, GOLDEN["expected_latent"], tolerance)
    close(reconstruction, GOLDEN["expected_reconstruction"], tolerance)
    close(each, GOLDEN["expected"], tolerance)
    for i in range(LAYERS):
        for kind in ("kernel", "bias"):
            name = f"grad_{kind}_{i}"
            close(grads[f"layer{i}"][kind], GOLDEN[name], tolerance, name)

    options = dict(mu=float(GOLDEN["mu"]), lam=float(GOLDEN["lam"]))
    cost, slope = jax.jit(jax.value_and_grad(lambda h: subspace_clustering_cost(h, **options)))(
        latent
    )
    close(cost, GOLDEN["expected_clustering_cost"], tolerance)
    close(slope, GOLDEN["grad_latent"], tolerance)
    close(latent_affinity(latent, **options), GOLDEN["expected_affinity"], tolerance)


@pytest.mark.parametrize("sparse", [False, True])
def test_golden_float32(sparse):
    compare_with_golden(jnp.float32, 1e-4, sparse)


def test_golden_float64():
    with jax.enable_x64(True):
        compare_with_golden(jnp.float64, 1e-6, True)


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_eigenvalues_are_bounded_where_plain_sharpening_grows(seed):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((12, 12)) < 0.3, 1) * rng.uniform(0.2, 3, (12, 12))
    adjacency = (upper + upper.T).astype(np.float32)
    for operator, low in ((smoothing_operator, -1), (sharpening_operator, -1)):
        values = np.linalg.eigvalsh(np.asarray(operator(adjacency), np.float64))
        assert low - 1e-5 <= values.min() and values.max() <= 1 + 1e-5
    degree = adjacency.sum(1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1e-9)), 0)
    plain = 2 * np.eye(12) - scale[:, None] * adjacency * scale
    values = np.linalg.eigvalsh(plain)
    assert values.min() >= 1 - 1e-5 and values.max() <= 3 + 1e-5


def test_isolated_nodes_keep_their_features_and_self_loops_do_not_count():
    _, x, adjacency, _ = golden()
    assert adjacency[0].sum() == 0
    for operator in (smoothing_operator, sharpening_operator):
        close(operator(adjacency)[0], jnp.eye(24)[0], 1e-6)
        close(operator(adjacency + 3 * jnp.eye(24)), operator(adjacency), 1e-6)
        close(operator(jnp.zeros((5, 5))), jnp.eye(5), 1e-6)
    edges = np.zeros((2, 0), np.int32)
    nothing = edge_smoothing_weights(edges, np.zeros(0, np.float32), 24)
    sharp = edge_sharpening_weights(edges, np.zeros(0, np.float32), 24)
    params = golden()[0]
    apply = jax.jit(GALA((10, 6)).apply)
    empty, _ = apply({"params": params}, x, nothing, sharp)
    whole, _ = apply({"params": params}, x, jnp.eye(24), jnp.eye(24))
    close(empty, whole, 1e-6)


def test_duplicate_edges_in_any_direction_count_once():
    _, _, adjacency, _ = golden()
    edges, weights, n = edges_of(adjacency)
    doubled = np.concatenate([edges, edges[::-1], edges[:, :5], [[3], [3]]], 1)
    found, ones = clean_edges(doubled, n)
    close(dense(edge_sharpening_weights(found, ones, n)), sharpening_operator(adjacency), 1e-6)


def test_renumbering_the_nodes_renumbers_the_latent():
    params, x, adjacency, _ = golden()
    order = np.random.default_rng(0).permutation(24)

    def run_(x, a):
        return GALA((10, 6)).apply(
            {"params": params}, x, smoothing_operator(a), sharpening_operator(a)
        )

    plain, moved = run_(x, adjacency), run_(x[order], adjacency[order][:, order])
    for a, b in zip(plain, moved, strict=True):
        close(a[order], b, 1e-5)


def test_the_cost_is_the_minimum_of_its_two_terms():
    with jax.enable_x64(True):
        latent = jnp.asarray(np.random.default_rng(0).normal(size=(24, 6)))
        mu, lam = 0.7, 3.0

        def two_terms(affinity):
            miss = latent - affinity @ latent
            return lam / 2 * (miss**2).sum() + mu / 2 * (affinity**2).sum()

        best = latent_affinity(latent, mu=mu, lam=lam)
        cost = subspace_clustering_cost(latent, mu=mu, lam=lam)
        np.testing.assert_allclose(two_terms(best), cost, rtol=1e-10)
        np.testing.assert_allclose(jax.grad(two_terms)(best), 0, atol=1e-9)
        assert cost < mu * 6 / 2
        large = subspace_clustering_cost(1e4 * latent, mu=mu, lam=lam)
        np.testing.assert_allclose(large, mu * 6 / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("n", "k", "rank", "norm"), [(200, 32, 5, 8.0), (200, 32, 5, 75.0), (100, 128, 20, 8.0)]
)
def test_latents_of_low_rank_cost_what_their_singular_values_say(n, k, rank, norm):
    rng = np.random.default_rng(0)
    exact = np.abs(rng.normal(size=(n, rank))) @ np.abs(rng.normal(size=(rank, k)))
    exact *= norm / np.linalg.norm(exact, axis=1, keepdims=True)
    left, values, right = np.linalg.svd(exact, full_matrices=False)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    weights = 1 / (1 + 50 * values**2)
    latent = jnp.asarray(exact, jnp.float32)
    cost, slope = jax.jit(jax.value_and_grad(subspace_clustering_cost))(latent)
    np.testing.assert_allclose(cost, (50 * values**2 * weights).sum() / 2, rtol=1e-5)
    close(slope, left * (50 * values * weights**2) @ right, 1e-4)
    close(latent_affinity(latent), left * (50 * values**2 * weights) @ left.T, 1e-5)


def test_every_derivative_of_the_cost_is_finite_for_latents_without_full_rank():
    latents = jnp.stack([jnp.ones((4, 6)), jnp.zeros((4, 6)), jnp.eye(4, 6)])

    def both(h):
        return subspace_clustering_cost(h) + (latent_affinity(h) ** 3).sum()

    for each in jax.jit(jax.vmap(lambda h: (jax.grad(both)(h), jax.hessian(both)(h))))(latents):
        assert np.isfinite(each).all()


def test_the_affinity_of_full_rank_is_that_without_truncation():
    latent = jnp.asarray(GOLDEN["latent"])
    whole = latent_affinity(latent)
    close(latent_affinity(latent, rank=6), whole, 1e-4)
    low = latent_affinity(latent, rank=2)
    close(low, low.T, 1e-5)
    assert np.linalg.matrix_rank(np.asarray(low), tol=1e-4) == 2
    turned = latent @ jnp.linalg.qr(jax.random.normal(jax.random.key(0), (6, 6)))[0]
    close(latent_affinity(turned), whole, 1e-4)


def test_links_weigh_as_much_as_non_links_and_the_sparse_path_agrees():
    _, _, adjacency, latent = golden()
    edges, _, n = edges_of(adjacency)
    for weight in (None, 2.0):

        def sparse(h, weight=weight):
            return edge_link_reconstruction_loss(h, edges, pos_weight=weight, block=7)

        def full(h, weight=weight):
            return link_reconstruction_loss(h, adjacency, pos_weight=weight)

        found, expected = (jax.jit(jax.value_and_grad(f))(latent) for f in (sparse, full))
        close(found[0], expected[0], 1e-5)
        close(found[1], expected[1], 1e-4)
    # Without a signal every pair costs log 2, and both halves together weigh one.
    close(link_reconstruction_loss(0 * latent, adjacency), np.log(2), 1e-5)
    complete = 1 - jnp.eye(5)
    assert np.isfinite(link_reconstruction_loss(latent[:5], complete))
    several = link_reconstruction_loss(latent, 3 * adjacency + jnp.eye(n))
    close(several, link_reconstruction_loss(latent, adjacency), 1e-6)


def test_gradients_in_float64():
    with jax.enable_x64(True):
        params, x, adjacency, latent = golden(jnp.float64)
        edges, weights, n = edges_of(adjacency)
        smoothing = edge_smoothing_weights(edges, weights, n)
        sharpening = edge_sharpening_weights(edges, weights, n)

        def reconstruction(kernel, x):
            moved = params | {"layer1": params["layer1"] | {"kernel": kernel}}
            out = GALA((10, 6)).apply({"params": moved}, x, smoothing, sharpening)[1]
            return feature_reconstruction_loss(x, out).mean()

        def others(h, mu, lam):
            links = edge_link_reconstruction_loss(h, edges)
            affinity = latent_affinity(h, mu=mu, lam=lam)
            return links + (affinity**3).sum() + subspace_clustering_cost(h, mu=mu, lam=lam)

        kernel = params["layer1"]["kernel"]
        check_grads(jax.jit(reconstruction), (kernel, x), 1, modes=["rev"], rtol=1e-5)
        check_grads(jax.jit(others), (latent, 0.7, 3.0), 1, modes=["rev"], rtol=1e-5)
        check_grads(jax.jit(subspace_clustering_cost), (latent,), 2, modes=["rev"], rtol=1e-4)


def test_bfloat16_stays_finite():
    params, x, adjacency, latent = golden(jnp.bfloat16)
    smoothing, sharpening = smoothing_operator(adjacency), sharpening_operator(adjacency)
    assert smoothing.dtype == jnp.float32

    def loss(params):
        out = GALA((10, 6), dtype=jnp.bfloat16).apply({"params": params}, x, smoothing, sharpening)
        links = link_reconstruction_loss(out[0], adjacency)
        return feature_reconstruction_loss(x, out[1]).mean() + links

    value, slope = jax.jit(jax.value_and_grad(loss))(params)
    assert value.dtype == jnp.float32 and jnp.isfinite(value)
    assert all(np.isfinite(v.astype(np.float32)).all() for v in jax.tree.leaves(slope))
    cost, slope = jax.jit(jax.value_and_grad(lambda h: subspace_clustering_cost(1e3 * h)))(latent)
    assert cost.dtype == jnp.float32 and np.isfinite(slope.astype(np.float32)).all()


def test_neighbours_are_scikit_learns_and_both_forms_agree():
    from sklearn.neighbors import NearestNeighbors

    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    found = knn_affinity(x, k=6)
    nearest = NearestNeighbors(n_neighbors=6).fit(x).kneighbors(return_distance=False)
    graph = np.zeros((40, 40))
    graph[np.repeat(np.arange(40), 6), nearest.reshape(-1)] = np.exp(-1)
    close(found, graph + graph.T, 1e-6)
    edges, weights = knn_edges(x, k=6)
    close(dense(edge_smoothing_weights(edges, weights, 40)), smoothing_operator(found), 1e-5)
    assert float(jnp.diag(knn_affinity(np.ones((40, 5), np.float32), k=6)).max()) == 0


def test_neighbours_do_not_depend_on_where_the_origin_is():
    # Multiples of 1/64, which stay what they are at any of these distances.
    x = np.round(64 * np.random.default_rng(0).normal(size=(60, 20))).astype(np.float32) / 64
    near = np.asarray(knn_edges(x, k=5)[0])
    for offset in (100, 1000):
        np.testing.assert_array_equal(knn_edges(x + np.float32(offset), k=5)[0], near)


def test_a_graph_of_images_gives_mutual_neighbours_twice_the_weight():
    graph = parts.image_graph("digits", 0, 20, "")
    assert graph.features.shape == (1797, 64) and graph.features.max() == 1
    weights = np.unique(graph.weights)
    np.testing.assert_allclose(weights, [np.exp(-1), 2 * np.exp(-1)], rtol=1e-6)
    np.testing.assert_allclose(graph.weights.sum(), 2 * 1797 * 20 * np.exp(-1), rtol=1e-5)


def test_twenty_thousand_nodes_never_become_a_matrix():
    n, e, width = 20_000, 90_000, 4
    shapes = dict(
        x=jax.ShapeDtypeStruct((n, 8), jnp.float32),
        edges=jax.ShapeDtypeStruct((2, e), jnp.int32),
        weights=jax.ShapeDtypeStruct((e,), jnp.float32),
    )
    net = GALA((width, 2))

    def loss(params, x, edges, weights):
        smoothing = edge_smoothing_weights(edges, weights, n)
        sharpening = edge_sharpening_weights(edges, weights, n)
        latent, out = net.apply({"params": params}, x, smoothing, sharpening)
        links = edge_link_reconstruction_loss(latent, edges)
        return feature_reconstruction_loss(x, out).mean() + links + subspace_clustering_cost(latent)

    small = jnp.eye(3)
    params = net.init(jax.random.key(0), jnp.ones((3, 8)), small, small)["params"]
    compiled = jax.jit(jax.grad(loss)).lower(params, *shapes.values()).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * n * 4 / 8


def test_a_linear_output_and_the_control_are_other_functions():
    params, x, adjacency, _ = golden()
    smoothing, sharpening = smoothing_operator(adjacency), sharpening_operator(adjacency)

    def out(net, decoder):
        return net.apply({"params": params}, x, smoothing, decoder)[1]

    plain, linear = (
        out(GALA((10, 6), final_activation=f), sharpening) for f in (jax.nn.relu, None)
    )
    close(jax.nn.relu(linear), plain, 1e-6)
    assert float(linear.min()) < 0 <= float(plain.min())
    assert float(jnp.abs(out(GALA((10, 6)), smoothing) - plain).max()) > 0.01


def test_baselines():
    _, x, adjacency, _ = golden()
    smoothing = smoothing_operator(adjacency)
    net = GraphAutoencoder((5, 3), variational=True)
    params = net.init(jax.random.key(0), x, smoothing)["params"]
    mean, log_std = net.apply({"params": params}, x, smoothing)
    hidden = jax.nn.relu(smoothing @ x @ params["hidden"]["kernel"])
    close(mean, smoothing @ hidden @ params["mean"]["kernel"], 1e-5)
    assert (gaussian_kl(mean, log_std) >= 0).all()
    np.testing.assert_allclose(gaussian_kl(0 * mean, 0 * log_std), 0)
    assert (
        float(jnp.abs(GraphAutoencoder((5, 3)).apply({"params": params}, x, smoothing)[1]).max())
        == 0
    )
    close(smoothed_features(x, smoothing), smoothing @ (smoothing @ x), 1e-5)


def test_about_a_third_of_the_outputs_start_dead():
    graph = planted_graph(0)
    whole = jax.tree.map(jnp.asarray, parts.resident(graph.features, graph.edges, graph.weights))
    shares = []
    for widths in ((64, 32), (200, 150)):
        config = run.load_config("gala:planted")
        config.model.widths = widths
        arm = parts.method(config)
        params = jax.jit(arm.init)(jax.random.key(0), whole)
        metrics = jax.jit(arm.loss)(params, whole, jax.random.key(1))[2]
        shares.append(float(metrics["dead_outputs"]))
    assert all(0.2 < share < 0.6 for share in shares)


@pytest.mark.parametrize("name", READOUTS)
def test_every_readout_finds_separate_subspaces(name):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    points = np.zeros((60, 6), np.float32)
    for c in range(3):
        points[labels == c, 2 * c : 2 * c + 2] = rng.uniform(0.9, 1.1, (20, 2))
    points[0] = 0  # a node without anything
    found = read_out(name, jnp.asarray(points), 3, jax.random.key(0), restarts=5)
    assert clustering_accuracy(labels, found) >= 0.98
    assert np.isfinite(unit_rows(jnp.asarray(points))).all()


def test_8_devices_give_what_1_gives():
    code = """
import sys; sys.path.insert(0, "tests/papers")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P, AxisType
import test_gala as t
params, x, adjacency, _ = t.golden()
edges, weights, n = t.edges_of(adjacency)
def loss(p, x, edges, weights):
    s = t.edge_smoothing_weights(edges, weights, n)
    p_ = t.edge_sharpening_weights(edges, weights, n)
    h, out = t.GALA((10, 6)).apply({"params": p}, x, s, p_)
    rec = t.feature_reconstruction_loss(x, out).mean() + t.subspace_clustering_cost(h)
    return rec + t.edge_link_reconstruction_loss(h, edges)
plain = jax.jit(jax.value_and_grad(loss))(params, x, edges, weights)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
spread = jax.device_put(x, NamedSharding(mesh, P("data")))
found = jax.jit(jax.value_and_grad(loss))(params, spread, edges, weights)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, plain)
print("ok")
"""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smoothing_operator(jnp.ones((3, 4))), r"adjacency \(3, 4\) must be \[n, n\]"),
        (lambda: feature_reconstruction_loss(jnp.ones((3, 2)), jnp.ones((3, 1))), "the same"),
        (lambda: subspace_clustering_cost(jnp.ones((3, 2)), mu=0.0), "mu = 0.0: must be above 0"),
        (lambda: subspace_clustering_cost(jnp.ones(3)), r"latent \(3,\) must be \[n, k\]"),
        (lambda: latent_affinity(jnp.ones((3, 2)), rank=3), r"rank = 3: must be in 1..2"),
        (lambda: link_reconstruction_loss(jnp.ones((3, 2)), jnp.ones((2, 2))), r"\(2, 2\)"),
        (lambda: edge_link_reconstruction_loss(jnp.ones((3, 2)), jnp.ones(3, int)), r"\(3,\)"),
        (lambda: knn_affinity(jnp.ones((3, 2)), k=3), r"k = 3: must be in 1..2 for 3 rows"),
        (
            lambda: read_out("spectral_raw", jnp.ones((3, 2)).at[1, 0].set(jnp.nan), 2, None),
            "spectral_raw: latent has 1 of 6 values that are not finite, the first in row 1",
        ),
        (
            lambda: spectral_assignment(np.full((3, 3), np.nan), 2, None),
            "affinity has 9 of 9 values that are not finite",
        ),
        (lambda: spectral_assignment(np.ones((3, 2)), 2, None), r"\(3, 2\) must be \[n, n\]"),
        (lambda: read_out("ward", jnp.ones((3, 2)), 2, None), "'ward': allowed are kmeans_l2"),
        (lambda: GALA(()).init(jax.random.key(0), jnp.ones((3, 2)), 0, 0), "widths must name"),
        (
            lambda: GALA((2,)).init(jax.random.key(0), jnp.ones((3, 2)), jnp.eye(4), jnp.eye(4)),
            "with the operator's 4 nodes",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


TINY = {
    "num_steps": 4,
    "checkpoint.every": 2,
    "log.every": 1,
    "cache_dir": "",
    "compilation_cache": "",
    "steps_per_dispatch": 2,
    "data.name": "planted",
    "data.count": 10,
    "model.widths": (8, 4),
}
CLUSTERING = TINY | {"model.snapshots": (0, 2), "model.restarts": 2}
CASES = {
    "planted": CLUSTERING,
    "digits": CLUSTERING | {"model.finetune_steps": 2},
    "cora_links": TINY | {"eval_every": 2},
}


@pytest.mark.parametrize("variant", CASES)
def test_recipes_train_evaluate_checkpoint_and_resume(variant, tmp_path):
    config = configs.apply_overrides(run.load_config(f"gala:{variant}"), CASES[variant])
    whole = run.run(config, tmp_path)
    assert all(np.isfinite(v) for v in whole.metrics[0].values())
    before = (tmp_path / "metrics.jsonl").read_bytes()
    (last,) = sorted((tmp_path / "checkpoints").glob("*"))[-1:]
    shutil.rmtree(max(last.glob("*/"), key=lambda p: int(p.name)))
    assert run.run(config, tmp_path).metrics == whole.metrics
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_held_out_edges_are_in_no_operator():
    config = configs.apply_overrides(run.load_config("gala:cora_links"), CASES["cora_links"])
    (phase,) = run.recipe(config).phases(config)
    _, split = split_of(config)
    seen = dense(jax.tree.map(jnp.asarray, phase.batches.sharpening))
    for pairs in (split.validation, split.test):
        assert float(jnp.abs(seen[pairs[0], pairs[1]]).max()) == 0
        assert float(jnp.abs(seen[pairs[1], pairs[0]]).max()) == 0
    assert (np.asarray(phase.batches.edges) == split.train).all()


SIZES = {
    "cora": (2708, 1433, 10556, 7),
    "citeseer": (3327, 3703, 9104, 6),
    "mnist": (10_000, 784, 330_000, 10),
    "digits": (1797, 64, 50_000, 10),
    "planted": (240, 100, 1546, 4),
}


VARIANTS = run.config_module(run.config_path("gala")).VARIANTS


@pytest.mark.parametrize(("variant", "arm"), [*((v, "gala") for v in VARIANTS), ("cora", "vgae")])
def test_every_variant_builds_its_real_model(variant, arm, monkeypatch):
    config = run.load_config(f"gala:{variant}")
    config.model.arm = arm
    n, channels, e, classes = SIZES[config.data.name]

    def shapes(*_):
        rng = np.random.default_rng(0)
        edges, weights = clean_edges(rng.integers(0, n, (2, e // 2)), n)
        # A broadcast zero takes no memory.
        features = np.broadcast_to(np.float32(0), (n, channels))
        labels = np.arange(n) % classes
        return parts.Graph(features, edges, weights, labels)

    from reprise.papers.gala import clustering, links

    monkeypatch.setattr(clustering, "graph", shapes)
    monkeypatch.setattr(links, "graph", shapes)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    previous = None
    for phase in run.recipe(config).phases(config):
        built = program.build(phase, mesh, previous=previous)
        assert "loss" in built.metrics
        previous = built.state
    run.recipe(config).study(config)


def test_the_grid_prints_the_best_mean_of_each_network():
    config = run.load_config("gala:cora_grid")
    study = run.recipe(config).study(config)
    assert len(study.arms) == 12
    results = {
        arm: {"acc_kmeans_l2": np.array([0.5, 0.5]), "acc_spectral_raw@5": np.array([0.9, 0.0])}
        for arm in study.arms
    }
    results["gala 256-128 0.001"]["acc_kmeans_l2@20"] = np.array([0.7, 0.78])
    text, holds = study.claim(results)
    assert "gala 0.740 (256-128 0.001 kmeans_l2@20); smoothing_decoder 0.500" in text and holds
    results["vgae 32-16"]["acc_kmeans_l2"] = np.array([0.73, 0.73])
    assert not study.claim(results)[1]
