"""papers/contextual_gradient_scaling: golden, properties, gradients, devices, recipes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from reprise.common import config as configs
from reprise.common.training import run
from reprise.papers.contextual_gradient_scaling import (
    ConvNet,
    context_gradient_scales,
    cxgrad_adapt,
    cxgrad_query_loss,
    init_generator,
    maml_adapt,
    maml_query_loss,
    rescale_to_norm,
    tasks,
)
from reprise.papers.contextual_gradient_scaling.diagnostics import linear_cka
from reprise.papers.contextual_gradient_scaling.glyphs import glyphs
from reprise.papers.contextual_gradient_scaling.inner import cross_entropy
from reprise.papers.contextual_gradient_scaling.models import BatchNorm, conv3x3, max_pool2x2

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = dict(np.load(ROOT / "tests/goldens/contextual_gradient_scaling.npz"))
NETWORK = "contextual_gradient_scaling"


def golden(prefix, dtype):
    tree = {}
    for key, value in GOLDEN.items():
        if key.startswith(f"{prefix}/"):
            _, layer, leaf = key.split("/")
            tree.setdefault(layer, {})[leaf] = jnp.asarray(value, dtype)
    return tree


def compare_with_golden(dtype, rtol, atol, contexts, checkpoint):
    net = ConvNet(3, (6, 6, 6, 6))

    def apply_fn(params, images):
        return net.apply({"params": params}, images)[0]

    params, generator = golden("params", dtype), golden("generator", dtype)
    support, query = (jnp.asarray(GOLDEN[f"{k}_images"], dtype) for k in ("support", "query"))

    def loss(params, generator):
        adapted, stats = cxgrad_adapt(
            apply_fn,
            params,
            generator,
            support,
            jnp.asarray(GOLDEN["support_labels"]),
            num_steps=int(GOLDEN["num_steps"]),
            inner_learning_rate=float(GOLDEN["inner_learning_rate"]),
            context_learning_rate=float(GOLDEN["context_learning_rate"]),
            context_size=int(GOLDEN["context_size"]),
            scaled_paths=net.scaled_paths(),
            checkpoint=checkpoint,
        )
        logits = apply_fn(adapted, query)
        value = cross_entropy(logits, jnp.asarray(GOLDEN["query_labels"])).mean()
        return value, (logits, stats)

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, (logits, stats)), slopes = step(params, generator)
    for name, found, margin in (
        ("expected", value, atol),
        ("expected_query_logits", logits, atol),
        ("expected_contexts", stats["contexts"], contexts),
        ("expected_gammas", stats["gammas"], atol),
    ):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, GOLDEN[name], rtol=rtol, atol=margin, err_msg=name)
    for name, found in zip(("params", "generator"), slopes, strict=True):
        expected = golden(f"grad_{name}", dtype)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected
        )


def test_golden_float32():
    compare_with_golden(jnp.float32, 2e-3, 1e-4, 1e-3, checkpoint=False)


def test_golden_float64_with_recomputed_steps():
    with jax.enable_x64(True):
        compare_with_golden(jnp.float64, 1e-5, 1e-6, 1e-7, checkpoint=True)


# A network small enough to differentiate by eye. Normalised it is indifferent to ||W||: only
# without that has the context a gradient worth the name.


def small(params, x, normalised=True):
    h = x @ params["body"]["kernel"]
    if normalised:
        h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)
    h = jnp.tanh(h * params["norm"]["scale"] + params["norm"]["bias"])
    return h @ params["head"]["kernel"] + params["head"]["bias"]


def plain(params, x):
    return small(params, x, normalised=False)


def problem(seed=0, dtype=jnp.float32, n=6, m=9):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    params = {
        "body": {"kernel": draw(4, 5)},
        "norm": {"scale": 1 + 0.1 * draw(5), "bias": 0.1 * draw(5)},
        "head": {"kernel": draw(5, 3), "bias": 0.1 * draw(3)},
    }
    generator = {
        "dense0": {"kernel": draw(7, 7), "bias": draw(7)},
        "dense1": {"kernel": draw(7, 1), "bias": draw(1)},
    }
    task = (draw(n, 4), jnp.arange(n) % 3, draw(m, 4), jnp.arange(m) % 3)
    return params, generator, task


SCALED = dict(context_size=7, scaled_paths=("body/kernel",))


def close(found, expected, **tolerance):
    tolerance = tolerance or dict(rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def by_hand(params, generator, xs, ys, num_steps, rate, context_rate, second_order=True):
    """The paper's algorithm for one kernel, line by line."""

    def keep(x):
        return x if second_order else jax.lax.stop_gradient(x)

    def scaled(kernel, phi):
        return context_gradient_scales(phi, generator)[0] * kernel / jnp.linalg.norm(kernel)

    def loss(kernel, head):
        logits = plain({"body": {"kernel": kernel}, "norm": params["norm"], "head": head}, xs)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(ys)), ys].mean()

    kernel, head, phi = params["body"]["kernel"], params["head"], jnp.zeros(7)
    slope = jax.grad(lambda phi: loss(scaled(kernel, phi), head))(phi)
    phi = phi - context_rate * jax.lax.stop_gradient(slope)
    for _ in range(num_steps):
        for_phi = keep(jax.grad(lambda phi: loss(scaled(kernel, phi), head))(phi))
        kernel = scaled(kernel, phi)
        for_kernel, for_head = keep(jax.grad(loss, (0, 1))(kernel, head))
        kernel = kernel - rate * for_kernel
        head = jax.tree.map(lambda h, g: h - rate * g, head, for_head)
        phi = phi - context_rate * for_phi
    return params | {"body": {"kernel": kernel}, "head": head}


@pytest.mark.parametrize("second_order", [True, False])
def test_the_algorithm_line_by_line_and_its_gradients(second_order):
    with jax.enable_x64(True):
        params, generator, (xs, ys, xq, yq) = problem(dtype=jnp.float64)

        def ours(params, generator):
            return cxgrad_query_loss(
                plain, params, generator, xs, ys, xq, yq,
                num_steps=2, inner_learning_rate=0.3, context_learning_rate=0.7,
                second_order=second_order, **SCALED,
            )  # fmt: skip

        def reference(params, generator):
            adapted = by_hand(params, generator, xs, ys, 2, 0.3, 0.7, second_order)
            return cross_entropy(plain(adapted, xq), yq).mean()

        found = jax.jit(jax.value_and_grad(ours, (0, 1)))(params, generator)
        expected = jax.jit(jax.value_and_grad(reference, (0, 1)))(params, generator)
        close(found, expected, rtol=1e-9, atol=1e-12)


def test_gradients_in_float64_against_finite_differences():
    with jax.enable_x64(True):
        params, generator, (xs, ys, xq, yq) = problem(dtype=jnp.float64)

        @jax.jit
        def scaled(params, generator, rate):
            # Without the context, whose first update is a constant by definition.
            return cxgrad_query_loss(
                small, params, generator, xs, ys, xq, yq,
                num_steps=2, inner_learning_rate=rate, context_learning_rate=0.0, **SCALED,
            )  # fmt: skip

        rate = jnp.asarray([0.3, 0.1])
        args = (params, generator, rate)
        check_grads(scaled, args, 1, modes=["rev"], atol=1e-5, rtol=1e-5, eps=1e-5)
        kernels, gammas = [params["body"]["kernel"], params["head"]["kernel"]], rate
        check_grads(rescale_to_norm, (kernels, gammas), 1, modes=["rev"], atol=1e-6, rtol=1e-6)
        context = jnp.linspace(-1, 1, 7)
        check_grads(context_gradient_scales, (context, generator), 1, modes=["rev"], eps=1e-5)


def test_the_first_context_update_is_a_constant():
    params, generator, (xs, ys, _, _) = problem()

    def second_context(kernel):
        changed = params | {"body": {"kernel": kernel}}
        _, stats = cxgrad_adapt(plain, changed, generator, xs, ys, num_steps=2, **SCALED)
        return stats["contexts"]

    slopes = jax.jit(jax.jacrev(second_context))(params["body"]["kernel"])
    assert slopes.shape[:2] == (3, 7)
    assert float(jnp.abs(slopes[:2]).max()) == 0 and float(jnp.abs(slopes[2]).max()) > 0


def test_maml_is_gradient_descent():
    params, _, (xs, ys, _, _) = problem()
    moving = {"body": params["body"], "head": params["head"]}
    for _ in range(3):
        slopes = jax.grad(lambda p: cross_entropy(small(params | p, xs), ys).mean())(moving)
        moving = jax.tree.map(lambda p, g: p - 0.2 * g, moving, slopes)
    found = maml_adapt(small, params, xs, ys, num_steps=3, inner_learning_rate=0.2)
    close(found, params | moving)
    close(found["norm"], params["norm"], atol=0)


def test_a_kernel_that_has_the_norm_gamma_already_makes_cxgrad_maml():
    params, generator, (xs, ys, _, _) = problem()
    norm = jnp.linalg.norm(params["body"]["kernel"])
    constant = jax.tree.map(jnp.zeros_like, generator)
    constant["dense1"]["bias"] = jnp.log(jnp.expm1(norm))[None]
    found, stats = cxgrad_adapt(small, params, constant, xs, ys, num_steps=1, **SCALED)
    close(found, maml_adapt(small, params, xs, ys, num_steps=1))
    close(stats["gammas"], jnp.full((2, 1), norm))


def test_scaling_keeps_the_function_and_scales_the_gradient():
    params, _, (xs, ys, _, _) = problem()

    def with_norm(gamma):
        (kernel,) = rescale_to_norm([params["body"]["kernel"]], jnp.asarray([gamma]))
        loss = lambda k: cross_entropy(small(params | {"body": {"kernel": k}}, xs), ys).sum()  # noqa: E731
        return jax.value_and_grad(loss)(kernel)

    (one, slope), (other, half) = with_norm(2.0), with_norm(4.0)
    np.testing.assert_allclose(one, other, rtol=1e-4)
    np.testing.assert_allclose(slope, 2 * half, rtol=1e-2, atol=1e-4)


def test_rescaling_sets_the_norm_alone():
    kernels = [jnp.arange(1.0, 7.0).reshape(2, 3), -jnp.ones((3, 3, 1, 2))]
    found = rescale_to_norm(kernels, jnp.asarray([0.5, 3.0]))
    for before, after, gamma in zip(kernels, found, (0.5, 3.0), strict=True):
        np.testing.assert_allclose(jnp.linalg.norm(after), gamma, rtol=1e-6)
        np.testing.assert_allclose(after / gamma, before / jnp.linalg.norm(before), rtol=1e-6)
    close(rescale_to_norm([10 * k for k in kernels], jnp.asarray([0.5, 3.0])), found)


def test_scales_are_positive_and_those_of_the_formula():
    generator = init_generator(jax.random.key(0), context_size=6, num_scales=3)
    context = jnp.linspace(-2, 2, 6)
    hidden = np.maximum(context @ generator["dense0"]["kernel"] + generator["dense0"]["bias"], 0)
    raw = hidden @ generator["dense1"]["kernel"] + generator["dense1"]["bias"]
    np.testing.assert_allclose(
        context_gradient_scales(context, generator), np.log1p(np.exp(raw)), rtol=1e-6
    )
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(generator)) <= 6**-0.5
    extreme = jax.tree.map(lambda x: 1e4 * x, generator)
    assert np.isfinite(context_gradient_scales(context, extreme)).all()


def test_first_order_is_the_gradient_at_the_adapted_parameters():
    params, _, (xs, ys, xq, yq) = problem()
    loss = lambda p: maml_query_loss(small, p, xs, ys, xq, yq, num_steps=2, second_order=False)  # noqa: E731
    found = jax.jit(jax.grad(loss))(params)

    @jax.jit
    def at_the_end(params):
        adapted = maml_adapt(small, params, xs, ys, num_steps=2)
        return jax.grad(lambda p: cross_entropy(small(p, xq), yq).mean())(adapted)

    close(found, at_the_end(params))


def test_one_rate_a_step():
    params, generator, (xs, ys, _, _) = problem()
    rates = jnp.asarray([0.3, 0.0, 0.1])
    once = maml_adapt(small, params, xs, ys, num_steps=3, inner_learning_rate=rates)
    chained = maml_adapt(small, params, xs, ys, num_steps=1, inner_learning_rate=0.3)
    chained = maml_adapt(small, chained, xs, ys, num_steps=1, inner_learning_rate=0.1)
    close(once, chained)
    scalar = cxgrad_adapt(small, params, generator, xs, ys, num_steps=2, **SCALED)
    each = cxgrad_adapt(
        small, params, generator, xs, ys,
        num_steps=2, inner_learning_rate=jnp.full(2, 0.01), **SCALED,
    )  # fmt: skip
    close(each, scalar)


def test_anil_moves_the_head_alone():
    params, _, (xs, ys, _, _) = problem()
    found = maml_adapt(small, params, xs, ys, num_steps=2, adapted_paths=("head",))
    close({k: found[k] for k in ("body", "norm")}, {k: params[k] for k in ("body", "norm")}, atol=0)
    assert float(jnp.abs(found["head"]["bias"] - params["head"]["bias"]).max()) > 0


def test_paths_are_strings_or_tuples_and_tasks_may_be_vmapped():
    params, generator, _ = problem()
    each = [problem(seed)[2][:2] for seed in range(3)]

    def adapted(xs, ys, paths):
        options = SCALED | {"scaled_paths": paths}
        return cxgrad_adapt(small, params, generator, xs, ys, num_steps=1, **options)

    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *each)
    together = jax.jit(jax.vmap(lambda xs, ys: adapted(xs, ys, [("body", "kernel")])))(*stacked)
    one = jax.jit(lambda xs, ys: adapted(xs, ys, ("body/kernel",)))
    alone = [one(*task) for task in each]
    close(together, jax.tree.map(lambda *xs: jnp.stack(xs), *alone))
    # Every task starts from the same context.
    assert float(jnp.abs(together[1]["contexts"][:, 0]).max()) == 0


def test_bfloat16_stays_finite():
    params, generator, (xs, ys, xq, yq) = problem(dtype=jnp.bfloat16)
    step = jax.value_and_grad(
        lambda p: cxgrad_query_loss(small, p, generator, xs, ys, xq, yq, num_steps=1, **SCALED)
    )
    value, slopes = jax.jit(step)(params)
    assert value.dtype == jnp.float32
    assert all(np.isfinite(x.astype(np.float32)).all() for x in jax.tree.leaves(slopes))


def meta_loss(params, generator, *batch):
    def one(*task):
        return cxgrad_query_loss(small, params, generator, *task, num_steps=1, **SCALED)

    return jax.vmap(one)(*batch).mean()


def test_8_devices_give_what_1_gives():
    code = """
import sys; sys.path.insert(0, "tests/papers")
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P, AxisType
import test_contextual_gradient_scaling as t
params, generator, _ = t.problem()
each = [t.problem(seed)[2] for seed in range(8)]
batch = jax.tree.map(lambda *xs: jnp.stack(xs), *each)
step = jax.jit(jax.value_and_grad(t.meta_loss, (0, 1)))
plain = step(params, generator, *batch)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
spread = jax.device_put(batch, NamedSharding(mesh, P("data")))
t.close(step(params, generator, *spread), plain, rtol=1e-4, atol=1e-6)
print("ok")
"""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


# The network.


def test_layers_are_the_ordinary_ones():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 5, 7, 3))
    kernel = jax.random.normal(keys[1], (3, 3, 3, 4))
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(conv3x3(x, kernel), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(max_pool2x2(x), nn.max_pool(x, (2, 2), (2, 2)))
    own = {"scale": jax.random.normal(keys[2], (3,)), "bias": jnp.arange(3.0)}
    theirs = nn.BatchNorm(use_running_average=False, epsilon=1e-5)
    state = theirs.init(keys[0], x)["batch_stats"]
    expected, _ = theirs.apply({"params": own, "batch_stats": state}, x, mutable=["batch_stats"])
    close(BatchNorm().apply({"params": own}, x), expected, rtol=1e-4, atol=1e-5)


def test_the_network_has_the_papers_size():
    net = ConvNet(5)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 84, 84, 3)))["params"]
    assert params["linear"]["kernel"].shape == (1200, 5)
    assert params["conv0"] == {"kernel": jax.ShapeDtypeStruct((3, 3, 3, 48), jnp.float32)}
    assert net.scaled_paths() == tuple(f"conv{i}/kernel" for i in range(4))
    half = ConvNet(5, (4, 4), jnp.bfloat16)
    (logits, taps), _ = jax.eval_shape(
        half.init_with_output, jax.random.key(0), jnp.zeros((2, 8, 8, 1))
    )
    assert logits.dtype == taps["block1"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"ConvNet: images \(1, 8, 8, 1\) .* at least 16"):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


# Data and diagnostics.


def test_glyphs_are_a_function_of_the_seed():
    one, again, other = (glyphs(3, seed=seed, per_class=4) for seed in (1, 1, 2))
    assert one["image"].shape == (12, 16, 16, 1) and one["image"].dtype == np.float32
    np.testing.assert_array_equal(one["image"], again["image"])
    assert (one["image"] != other["image"]).any()
    assert one["label"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    means = one["image"].reshape(3, 4, 16, 16).mean(1)
    within = np.abs(one["image"].reshape(3, 4, 16, 16) - means[:, None]).mean()
    between = np.mean([np.abs(means[i] - means[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))])
    assert between > within and 0.8 < one["image"].max() < 1.6


def test_no_class_is_trained_and_tested_on():
    for split, total in ((tasks.CIFAR_FS, 100), (tasks.DIGITS, 10)):
        drawn = [label for part in tasks.PARTS for label in split[part]]
        assert sorted(drawn) == list(range(total))
    assert [len(tasks.CIFAR_FS[part]) for part in tasks.PARTS] == [64, 16, 20]
    omniglot = tasks.OMNIGLOT
    assert sorted(omniglot["train"] + omniglot["validation"]) == list(range(136))
    # The rows of small2 that are neither Greek (0-23) nor Latin (71-96).
    assert len(omniglot["test"]) == 106
    assert not set(omniglot["test"]) & {*range(24), *range(71, 97)}


def test_images_are_the_same_in_training_and_test_unless_asked_otherwise():
    config = run.load_config(f"{NETWORK}:mini_imagenet_1shot")
    images = jnp.full((1, 2, 2, 3), 255, jnp.uint8)
    train, test = (tasks.prepared(config, images, training=t) for t in (True, False))
    np.testing.assert_array_equal(train, test)
    np.testing.assert_allclose(train[0, 0, 0], (1 - np.array([0.485, 0.456, 0.406])) / [
        0.229, 0.224, 0.225], rtol=1e-5)  # fmt: skip
    config.data.reference_preprocessing = True
    np.testing.assert_array_equal(
        tasks.prepared(config, images, training=False), jnp.ones_like(train)
    )


def test_alignment_ignores_rotation_and_scale():
    x = jax.random.normal(jax.random.key(0), (10, 6))
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (6, 6)))[0]
    assert float(linear_cka(x, 3 * x @ turn + 1)) == pytest.approx(1, abs=1e-4)
    y = jax.random.normal(jax.random.key(2), (10, 9))
    one, two = (v - v.mean(0) for v in (x, y))
    expected = jnp.linalg.norm(two.T @ one) ** 2
    expected /= jnp.linalg.norm(one.T @ one) * jnp.linalg.norm(two.T @ two)
    assert float(linear_cka(x, y)) == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(ValueError, match="linear_cka"):
        linear_cka(x, y[:3])


# Bad input.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(scaled_paths=("body/weight",)), "params have no 'body/weight'; they have body/ker"),
        (dict(scaled_paths=()), "must name one kernel or more, each once"),
        (dict(scaled_paths=("body/kernel",) * 2), "must name one kernel or more, each once"),
        (dict(scaled_paths=("body/kernel", "head/kernel")), r"makes \(1,\) scales"),
        (dict(context_size=100), r"context_size = 100: the generator takes contexts \(7,\)"),
        (dict(num_steps=0), "num_steps = 0: must be 1 or more"),
        (dict(inner_learning_rate=jnp.ones(3)), r"inner_learning_rate \(3,\): must be a scalar or"),
        (dict(adapted_paths=("tail",)), "adapted_paths: params have nothing at 'tail'"),
        (dict(adapted_paths=()), "nothing to adapt"),
    ],
)
def test_wrong_options_are_named(change, message):
    params, generator, (xs, ys, _, _) = problem()
    with pytest.raises(ValueError, match=message):
        cxgrad_adapt(small, params, generator, xs, ys, **(dict(num_steps=2) | SCALED | change))


def test_wrong_shapes_are_named():
    params, generator, (xs, ys, xq, yq) = problem()
    with pytest.raises(ValueError, match=r"support_images \(6, 4\) and support_labels int32\(4,\)"):
        maml_adapt(small, params, xs, ys[:4])
    with pytest.raises(ValueError, match=r"support_labels float32\(6,\)"):
        maml_adapt(small, params, xs, ys.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"logits \(9, 3\) and labels \(6,\)"):
        maml_query_loss(small, params, xs, ys, xq, ys)
    with pytest.raises(ValueError, match="generator has no dense1/bias"):
        context_gradient_scales(jnp.zeros(7), generator | {"dense1": {"kernel": jnp.ones((7, 1))}})
    with pytest.raises(ValueError, match=r"context \(3,\) must be \[c\]"):
        context_gradient_scales(jnp.zeros(3), generator)
    with pytest.raises(ValueError, match=r"gammas \(2,\) must be \[1\]"):
        rescale_to_norm([jnp.ones((2, 2))], jnp.ones(2))
    with pytest.raises(ValueError, match="context_size = 0"):
        init_generator(jax.random.key(0), context_size=0)


def test_a_label_that_is_no_class_of_the_task_is_not_silent():
    params, _, (xs, ys, xq, yq) = problem()
    value = maml_query_loss(small, params, xs, ys.at[0].set(3), xq, yq, num_steps=1)
    assert np.isnan(value)


# Recipes.

TINY = {
    "num_steps": 4,
    "batch_size": 2,
    "checkpoint.every": 2,
    "log.every": 1,
    "steps_per_dispatch": 1,
    "cache_dir": "",
    "compilation_cache": "",
    "model.filters": (3, 3),
    "model.num_steps": 1,
    "model.context_size": 4,
    "data.queries": 1,
    "data.val_tasks": 4,
    "data.test_tasks": 4,
    "data.eval_batch": 4,
    "data.diagnosed": 5,
}


@pytest.fixture(scope="module")
def tiny():
    return configs.apply_overrides(run.load_config(f"{NETWORK}:digits"), TINY)


def test_the_recipe_trains_evaluates_checkpoints_and_resumes(tiny, tmp_path):
    whole = run.run(tiny, tmp_path)
    names = {"accuracy", "accuracy_ci95", "val_accuracy", "conv_to_head", "representation_change"}
    assert whole.metrics[0].keys() == names | {"gamma", "gamma_std_over_tasks"}
    assert all(np.isfinite(v) for v in whole.metrics[0].values())
    assert [path.name for path in whole.figures] == ["layers.png"]
    before = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "0-train" / "4")
    assert run.run(tiny, tmp_path).metrics == whole.metrics
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_the_embedded_variant_draws_glyphs():
    config = run.load_config(NETWORK)
    assert config.variant == "glyphs" and not config.datasets
    task = tasks.stream(config, "test").episode(0)
    assert task["support_images"].shape == (5, 16, 16, 1)
    assert task["query_labels"].tolist() == np.repeat(np.arange(5), 5).tolist()


def test_unknown_methods_are_named(tiny):
    config = configs.apply_overrides(tiny, {"model.method": "protonet"})
    with pytest.raises(ValueError, match="method = 'protonet': allowed are cxgrad, maml, anil"):
        run.recipe(config).phases(config)


def test_the_claim_chooses_the_baselines_rate_on_validation(tiny):
    study = run.recipe(tiny).study(tiny)
    assert list(study.arms)[:2] == ["cxgrad", "no_context"]
    row = dict(conv_to_head=1.0, representation_change=0.1, accuracy=0.5, val_accuracy=0.5)
    results = {
        name: {
            k: np.asarray([v, v])
            for k, v in ({**row, "accuracy": 0.5, "val_accuracy": 0.5}).items()
        }
        for name in study.arms
    }
    results["cxgrad"] = {k: 1.1 * v for k, v in results["cxgrad"].items()}
    results["maml_0.1"]["accuracy"] = np.asarray([0.4, 0.4])
    results["maml_0.1"]["val_accuracy"] = np.asarray([0.6, 0.6])
    text, holds = study.claim(results)
    assert holds and "maml_0.1, by validation" in text and "+15.0" in text
    results["cxgrad"]["conv_to_head"] = np.asarray([2.0, 0.5])
    assert not study.claim(results)[1]


def variants():
    return run.config_module(run.config_path(NETWORK)).VARIANTS


@pytest.mark.parametrize("variant", variants())
def test_every_variant_builds_its_real_model(variant):
    from reprise.common.training import program, sharding

    config = run.load_config(f"{NETWORK}:{variant}")
    config.data_dir = "/nowhere"
    configs.validate(config, 1)
    (phase,) = run.recipe(config).phases(config)
    if variant.endswith("5shot") or variant.startswith("tiered"):
        # The network and step of its 1-shot or mini relative: what differs is built alone.
        state = jax.eval_shape(phase.init, jax.random.key(0), None)
        assert phase.batches.spec["support_images"].shape[1] == 5 * config.data.shots
    else:
        built = program.build(phase, sharding.make_mesh(config.mesh, jax.devices()[:1]))
        assert built.metrics == ("accuracy", "grad_norm", "loss", "nonfinite")
        state = built.state
    assert state.params["generator"]["dense1"]["bias"].shape == (len(config.model.filters),)
