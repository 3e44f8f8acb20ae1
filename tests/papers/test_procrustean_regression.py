"""papers/procrustean_regression: golden, properties, gradients, devices, recipes."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from reprise.common import config as configs
from reprise.common.training import run
from reprise.papers.procrustean_regression import (
    PRNFCN,
    fit_shapes,
    low_rank,
    normalize_points,
    normalized_error,
    nuclear_norm,
    procrustean_regression_loss,
    procrustes_align,
    reprojection_error,
    tasks,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = dict(np.load(ROOT / "tests/goldens/procrustean_regression.npz"))
WEIGHT = float(GOLDEN["reg_weight"])
EXACT = {"num_iters": 30, "tol": 0.0}


def golden(dtype=jnp.float32):
    return tuple(jnp.asarray(GOLDEN[name], dtype) for name in ("shapes", "points2d", "mask"))


@functools.partial(jax.jit, static_argnames=("num_iters", "tol", "rotation_gradient"))
def cost_and_slope(shapes, points2d, mask, **options):
    return jax.value_and_grad(procrustean_regression_loss)(
        shapes, points2d, mask, WEIGHT, **options
    )


align = jax.jit(procrustes_align, static_argnames=("num_iters", "tol", "rotation_gradient"))


@functools.partial(jax.jit, static_argnames="num_iters")
def nuclear_of_aligned(shapes, num_iters=30):
    aligned, _ = procrustes_align(shapes, num_iters=num_iters, tol=0.0)
    return nuclear_norm(aligned.reshape(len(aligned), -1))


def turned(shapes, seed=0):
    rotations = Rotation.random(len(shapes), random_state=seed).as_matrix()
    return jnp.einsum("fij,fpj->fpi", jnp.asarray(rotations, shapes.dtype), shapes)


def close(found, name, tolerance):
    expected = GOLDEN[name]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=tolerance * scale, rtol=0, err_msg=name)


def compare_with_golden(dtype, tolerance):
    shapes, points2d, mask = golden(dtype)
    value, slope = cost_and_slope(shapes, points2d, mask, **EXACT)
    close(value, "expected", tolerance)
    close(slope, "grad_shapes", tolerance)
    _, detached = cost_and_slope(shapes, points2d, mask, rotation_gradient=False, **EXACT)
    close(detached, "grad_shapes_detached", tolerance)
    close(reprojection_error(shapes, points2d, mask).sum(), "reprojection", tolerance)
    aligned, rotations = align(shapes, **EXACT)
    close(nuclear_norm(aligned.reshape(8, -1)), "nuclear", tolerance)
    close(rotations, "rotations", tolerance)
    centre = GOLDEN["aligned"].mean(1, keepdims=True)
    np.testing.assert_allclose(aligned, GOLDEN["aligned"] - centre, atol=tolerance)
    # The released code's gradient is another one: an index of a cross product.
    official = np.abs(slope - GOLDEN["grad_shapes_official"]).max()
    assert official > 0.003 * np.abs(GOLDEN["grad_shapes"]).max()


def test_golden_float32():
    compare_with_golden(jnp.float32, 1e-5)


def test_golden_float64():
    with jax.enable_x64(True):
        compare_with_golden(jnp.float64, 1e-9)


def test_the_adaptive_alignment_stops_at_the_same_place():
    shapes, points2d, mask = golden()
    fixed = cost_and_slope(shapes, points2d, mask, **EXACT)
    found = cost_and_slope(shapes, points2d, mask, num_iters=100, tol=1e-12)
    np.testing.assert_allclose(found[0], fixed[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], fixed[1], atol=1e-5)


def test_gradients_in_float64_against_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        base = rng.normal(size=(1, 6, 3)) + 0.3 * rng.normal(size=(5, 6, 3))
        shapes = turned(jnp.asarray(base))
        points2d, mask = (
            jnp.asarray(rng.normal(size=(5, 6, 2))),
            jnp.asarray(rng.random((5, 6)) > 0.3),
        )
        options = {"num_iters": 200, "tol": 0.0}
        check_grads(
            jax.jit(lambda x: procrustean_regression_loss(x, points2d, mask, 0.7, **options)),
            (shapes,),
            order=1,
            modes=["rev"],
            atol=1e-6,
            rtol=1e-6,
        )
        check_grads(nuclear_norm, (points2d[..., 0],), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_gradients_beside_frames_on_lines_in_float64():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        shapes = turned(jnp.asarray(rng.normal(size=(1, 6, 3)) + 0.3 * rng.normal(size=(6, 6, 3))))
        along, lines = rng.normal(size=(3, 6, 1)), rng.normal(size=(3, 1, 3))

        @jax.jit
        def total(others, along):
            return nuclear_of_aligned(jnp.concatenate([along * lines, others]), num_iters=300)

        check_grads(total, (shapes[3:], along), 1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_alignment_sees_no_rotation_and_no_place():
    shapes, _, _ = golden()
    value = nuclear_of_aligned(shapes)
    moved = turned(shapes) + jnp.arange(8.0)[:, None, None]
    np.testing.assert_allclose(nuclear_of_aligned(moved), value, rtol=1e-4)
    aligned, rotations = align(moved, **EXACT)
    np.testing.assert_allclose(jnp.linalg.det(rotations), 1, atol=1e-5)
    np.testing.assert_allclose(aligned.mean(1), 0, atol=1e-5)
    # Stationary: sum_p A_i[p] x S[p] = 0.
    np.testing.assert_allclose(jnp.cross(aligned, aligned.sum(0)[None]).sum(1), 0, atol=1e-3)
    slope = jax.grad(nuclear_of_aligned)(shapes)
    np.testing.assert_allclose(slope.sum(1), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.cross(shapes, slope).sum(1), 0, atol=1e-4)


def test_one_rigid_shape_has_rank_one():
    one = golden()[0][:1]
    group = turned(jnp.broadcast_to(one, (6, *one.shape[1:])))
    aligned, _ = procrustes_align(group, **EXACT)
    np.testing.assert_allclose(aligned, jnp.broadcast_to(aligned[:1], aligned.shape), atol=1e-4)
    norm = float(jnp.linalg.norm(one))
    assert float(nuclear_norm(aligned.reshape(6, -1))) == pytest.approx(6**0.5 * norm, rel=1e-4)
    unaligned = float(nuclear_of_aligned(group, num_iters=0))
    assert unaligned > 1.3 * 6**0.5 * norm


def degenerate():
    shapes = np.array(golden()[0])
    flat, line, mirrored, empty = (shapes.copy() for _ in range(4))
    flat[..., 2] = 0
    line[:] = np.linspace(-1, 1, 13)[:, None] * [1.0, 2.0, 0.5]
    one_line = shapes.copy()
    one_line[3] = line[0]
    mirrored[1::2] = mirrored[0] * [1, 1, -1]
    mirrored[::2] = mirrored[0]
    cross = np.zeros((13, 3))  # its mirror image ties with it: two equal axes
    cross[:6] = np.concatenate([np.eye(3), -np.eye(3)])
    tied = np.stack([cross, cross * [1, 1, -1]] * 4)
    empty[2] = 0
    first = shapes.copy()
    first[0] = 0
    point = np.ones_like(shapes)
    same = {"flat": flat, "line": line, "one_line": one_line, "mirrored": mirrored, "tied": tied}
    return same | {"empty": empty, "first": first, "point": point, "near": flat + 1e-7 * shapes}


@pytest.mark.parametrize("name", list(degenerate()))
def test_degenerate_and_mirrored_groups_stay_finite(name):
    shapes = jnp.asarray(degenerate()[name], jnp.float32)
    _, points2d, mask = golden()
    value, slope = cost_and_slope(shapes, points2d, mask, num_iters=100, tol=1e-12)
    assert np.isfinite(value) and np.isfinite(slope).all()
    assert float(jnp.abs(slope).max()) < 1e3
    _, rotations = align(shapes, **EXACT)
    np.testing.assert_allclose(jnp.linalg.det(rotations), 1, atol=1e-4)


def test_groups_of_one_frame_and_missing_frames():
    shapes, points2d, mask = golden()
    aligned, rotations = procrustes_align(shapes[:1], **EXACT)
    np.testing.assert_allclose(rotations[0], np.eye(3), atol=1e-5)
    slope = jax.grad(nuclear_of_aligned)(shapes[:1])
    np.testing.assert_allclose(slope, aligned / jnp.linalg.norm(aligned), atol=1e-5)
    # A frame without a seen point: NaN there is ignored, and only the low rank pulls at it.
    mask = mask.at[2].set(0)
    points2d = points2d.at[2].set(jnp.nan)
    error = reprojection_error(shapes, points2d, mask)
    assert float(error[2]) == 0 and np.isfinite(error).all()
    value, slope = cost_and_slope(shapes, points2d, mask, **EXACT)
    assert np.isfinite(value) and np.isfinite(slope).all()
    broken = shapes.at[1, 1, 1].set(jnp.nan)
    assert not np.isfinite(cost_and_slope(broken, points2d, mask, **EXACT)[0])
    assert np.isnan(align(broken, num_iters=100, tol=1e-12)[0]).all()


def test_normalized_points():
    rng = np.random.default_rng(0)
    points, mask = rng.normal(size=(4, 6, 2)), np.ones((4, 6))
    mask[0, :3], mask[1] = 0, 0
    points[0, 0] = np.nan
    found, scale = jax.jit(normalize_points)(points, mask)
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=(1, 2)), [1, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-5)
    np.testing.assert_allclose(found[0, :3], 0)
    back = found[2] * scale[2] + points[2].mean(0)
    np.testing.assert_allclose(back, points[2], atol=1e-5)
    solid = rng.normal(size=(5, 6, 3))
    _, of_solid = normalize_points(solid)
    np.testing.assert_allclose(of_solid, normalize_points(solid[..., :2])[1], rtol=1e-6)
    slope = jax.grad(lambda x: normalize_points(x)[0].sum())(jnp.zeros((3, 2)))
    assert np.isfinite(slope).all()
    same = np.full((1, 17, 2), 123.4)  # whose mean is rounded
    solid = np.concatenate([same, np.arange(17.0)[None, :, None]], -1)
    for found, scale in (
        normalize_points(same),
        tasks._normalized(same, np.ones((1, 17), bool)),
        normalize_points(solid),
    ):
        np.testing.assert_array_equal(scale, 1)
        np.testing.assert_array_equal(found[..., :2], 0)
    np.testing.assert_allclose(normalize_points(solid)[0][0, :, 2], np.arange(17) - 8)


def test_nuclear_norm_of_low_rank():
    low = jnp.outer(jnp.arange(1.0, 5), jnp.arange(1.0, 8))
    slope = jax.grad(nuclear_norm)(low)
    np.testing.assert_allclose(nuclear_norm(low), jnp.linalg.norm(low), rtol=1e-5)
    np.testing.assert_allclose(slope, low / jnp.linalg.norm(low), atol=1e-5)
    np.testing.assert_allclose(jax.grad(nuclear_norm)(jnp.zeros((3, 4))), 0)


def test_bfloat16_stays_finite():
    shapes, points2d, mask = golden(jnp.bfloat16)
    value, slope = cost_and_slope(shapes, points2d, mask, **EXACT)
    assert value.dtype == jnp.float32 and slope.dtype == jnp.bfloat16
    assert float(value) == pytest.approx(float(GOLDEN["expected"]), rel=0.02)
    assert np.isfinite(slope.astype(np.float32)).all()


def groups(count=8):
    shapes, points2d, mask = golden()
    several = jnp.stack([turned(shapes, seed) for seed in range(count)])
    return several, jnp.stack([points2d] * count), jnp.stack([mask] * count)


def total(shapes, points2d, mask):
    one = functools.partial(procrustean_regression_loss, num_iters=30, tol=1e-12)
    return jax.vmap(one)(shapes, points2d, mask).sum()


def test_groups_do_not_see_each_other():
    several = groups(3)
    value, slope = jax.jit(jax.value_and_grad(total))(*several)
    one = jax.jit(jax.value_and_grad(total))
    each = [one(*(x[i : i + 1] for x in several)) for i in range(3)]
    np.testing.assert_allclose(value, sum(v for v, _ in each), rtol=1e-5)
    for i in range(3):
        np.testing.assert_allclose(slope[i], each[i][1][0], atol=1e-4)


def test_8_devices_give_what_1_gives():
    code = """
import sys; sys.path.insert(0, "tests/papers")
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P, AxisType
import test_procrustean_regression as t
several = t.groups(8)
f = jax.jit(jax.value_and_grad(t.total))
plain = f(*several)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
spread = jax.device_put(several, NamedSharding(mesh, P("data")))
found = f(*spread)
assert len(found[1].sharding.device_set) == 8
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, plain)
print("ok")
"""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


def rigid_sequence(frames=24):
    rng = np.random.default_rng(0)
    shape = rng.normal(size=(12, 3))
    shape -= shape.mean(0)
    turns = Rotation.random(frames, random_state=0).as_matrix()
    target = np.einsum("fij,pj->fpi", turns, shape) / np.linalg.norm(shape)
    return target


def test_fits_lift_a_rigid_sequence():
    target = rigid_sequence()
    mask = np.random.default_rng(1).random(target.shape[:2]) > 0.1
    for seen in (None, mask):
        found = low_rank.low_rank_shapes(target[..., :2], seen, num_bases=1, num_iters=50)
        error = normalized_error(found, target - target.mean(1, keepdims=True), reflection="global")
        assert float(error.mean()) < 0.05
    found = fit_shapes(
        target[..., :2], num_steps=150, learning_rate=0.03, key=jax.random.key(0), num_iters=10
    )
    found = found - found.mean(1, keepdims=True)
    lifted = normalized_error(found, target, reflection="per_example").mean()
    flat = normalized_error(target * [1, 1, 0], target).mean()
    assert float(lifted) < 0.5 * float(flat)


def test_the_network_lifts_and_counts():
    net = PRNFCN(num_points=17)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((2, 17, 2)))
    count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    assert 6.3e6 < count < 6.5e6
    small = PRNFCN(num_points=5, width=8, dtype=jnp.bfloat16)
    points = jax.random.normal(jax.random.key(1), (4, 5, 2))
    variables = jax.jit(small.init)(jax.random.key(0), points)
    train = jax.jit(lambda v, x: small.apply(v, x, train=True, mutable=["batch_stats"]))
    out, updated = train(variables, points)
    assert out.shape == (4, 5, 3) and out.dtype == jnp.float32 and np.isfinite(out).all()
    assert float(jnp.abs(updated["batch_stats"]["in_norm"]["mean"]).max()) > 0
    with pytest.raises(ValueError, match=r"points2d \(4, 5, 3\) must be \[B, 5, 2\]"):
        small.init(jax.random.key(0), jnp.zeros((4, 5, 3)))


def test_generated_frames_are_views_of_their_targets():
    frames = tasks.generated("test", 20)
    np.testing.assert_allclose(frames["points2d"], frames["target"][..., :2], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(frames["points2d"], axis=(2, 3)), 1, rtol=1e-5)
    far = tasks.generated("test", 20, distance=1e4)
    np.testing.assert_allclose(far["points2d"], frames["points2d"], atol=1e-3)
    holes = tasks.generated("test", 20, missing=0.4)
    assert 0.3 < 1 - holes["mask"].mean() < 0.5 and not holes["points2d"][holes["mask"] == 0].any()
    assert np.linalg.matrix_rank(tasks.class_of_shapes(12, 3)[1].reshape(3, -1)) == 3
    assert tasks.skeleton(12, 3).shape == (11, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: procrustes_align(jnp.ones((4, 5, 2))), r"shapes \(4, 5, 2\) must be \[F, P, 3\]"),
        (lambda: procrustes_align(jnp.ones((0, 5, 3))), r"shapes \(0, 5, 3\)"),
        (lambda: procrustes_align(jnp.ones((4, 5, 3)), tol=-1.0), "tol = -1.0: must not be neg"),
        (lambda: nuclear_norm(jnp.ones(3)), r"nuclear_norm: matrix \(3,\)"),
        (
            lambda: procrustean_regression_loss(jnp.ones((4, 5, 3)), jnp.ones((4, 4, 2))),
            r"shapes \(4, 5, 3\) must be \[F, P, 3\] and points2d \(4, 4, 2\)",
        ),
        (
            lambda: reprojection_error(jnp.ones((4, 5, 3)), jnp.ones((4, 5, 2)), jnp.ones(4)),
            r"mask \(4,\) must be \[F, P\] = \(4, 5\)",
        ),
        (lambda: normalize_points(jnp.ones((5, 4))), r"points \(5, 4\) must be"),
        (
            lambda: fit_shapes(jnp.ones((1, 5, 2)), None, key=jax.random.key(0)),
            "fit_shapes: 1 frame: alignment needs 2 or more",
        ),
        (
            lambda: fit_shapes(jnp.ones((3, 5, 2)).at[2, 0].set(jnp.nan), key=jax.random.key(0)),
            "points2d of frame 2 is not finite",
        ),
        (lambda: low_rank.low_rank_shapes(np.full((9, 5, 2), np.nan)), "is not finite"),
        (lambda: low_rank.low_rank_shapes(np.ones((9, 5, 2))), "num_bases = 3 needs 9 points"),
    ],
)
def test_wrong_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.alignment", "both", "allowed are exact, detached, none"),
        ("model.group", 1, "alignment needs 2 frames or more"),
        ("model.group", 24, "must divide by model.group = 24"),
        ("data.missing", 1.0, r"must be in \[0, 1\)"),
    ],
)
def test_wrong_config_is_refused_by_name(field, value, message):
    config = configs.apply_overrides(run.load_config("procrustean_regression"), {field: value})
    with pytest.raises(ValueError, match=message):
        run.recipe(config).phases(config)


def test_missing_points_change_no_arm_of_the_claim():
    arms = []
    for variant in ("sequences", "sequences_20", "sequences_40"):
        config = run.load_config(f"procrustean_regression:{variant}")
        arms.append(list(run.recipe(config).study(config).arms))
    assert arms[0] == arms[1] == arms[2] and {"prn_no_alignment", "prn_detached"} <= set(arms[0])


@pytest.mark.parametrize(("array", "what"), [("observed", "seen points"), ("shape", "shapes")])
def test_sequences_that_are_not_finite_are_refused_by_name(array, what, monkeypatch):
    rng = np.random.default_rng(0)
    sizes = {"shape": (9, 3, 5), "observed": (9, 2, 5), "camera": (9, 2, 3)}
    example = {name: rng.normal(size=size) for name, size in sizes.items()}
    example[array][6, 0, 2] = np.nan
    monkeypatch.setattr(tasks.data, "load", lambda *a, **k: [example])
    with pytest.raises(ValueError, match=f"sequence yoga: {what} of frame 6 are not finite"):
        tasks.sequences(("yoga",), 5, missing=0.0, seed=0, data_dir=f"with NaN in {array}")


TINY = {
    "num_steps": 4,
    "batch_size": 8,
    "model.group": 4,
    "model.width": 8,
    "model.num_iters": 4,
    "checkpoint.every": 2,
    "steps_per_dispatch": 2,
    "log.every": 1,
    "cache_dir": "",
    "compilation_cache": "",
}


def test_the_embedded_recipe_trains_evaluates_checkpoints_and_resumes(tmp_path):
    small = TINY | {"data.train": 30, "data.test": 10, "model.frozen_steps": 2}
    config = configs.apply_overrides(run.load_config("procrustean_regression"), small)
    whole = run.run(config, tmp_path)
    assert all(np.isfinite(v) for v in whole.metrics[0].values())
    before = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "1-frozen" / "2")
    assert run.run(config, tmp_path).metrics == whole.metrics
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def motion(names, frames, *, missing, seed, data_dir):
    """Stands in for the data set: three-point-per-basis shapes seen by turning cameras."""
    target = np.stack([rigid_sequence(frames)] * len(names)).astype(np.float32)
    seen = np.random.default_rng(seed).random(target.shape[:3]) >= missing
    points2d = np.where(seen[..., None], target[..., :2], 0)
    camera = np.broadcast_to(np.eye(3, dtype=np.float32), (*target.shape[:2], 3, 3))
    return {
        "points2d": points2d,
        "mask": seen.astype(np.float32),
        "target": target,
        "camera": camera,
    }


@pytest.mark.parametrize(
    ("method", "seeds"), [("prn", (0,)), ("fit", (0, 1)), ("low_rank", (0, 1))]
)
def test_sequences_train_by_every_method(method, seeds, monkeypatch):
    monkeypatch.setattr(tasks, "sequences", motion)
    small = {"data.frames": 10, "model.method": method, "model.low_rank_iters": 5}
    small |= {"data.sequences": ("drink", "yoga"), "steps_per_dispatch": 1}
    config = configs.apply_overrides(
        run.load_config("procrustean_regression:sequences_20"), TINY | small
    )
    done = run.run(config, seeds=seeds)
    assert {"drink", "yoga_global", "error"} <= done.metrics[0].keys()
    assert all(np.isfinite(v) for seed in done.metrics for v in seed.values())


@pytest.mark.parametrize(
    "variant",
    ["generated", "sequences", "sequences_40", "human36m_like", "human36m_like_perspective"],
)
def test_every_variant_builds_its_real_model(variant, monkeypatch):
    from reprise.common.training import program, sharding

    monkeypatch.setattr(tasks, "sequences", motion)
    config = run.load_config(f"procrustean_regression:{variant}")
    small = {"data.train": 50, "data.test": 10} if "train" in config.data else {}
    config = configs.apply_overrides(config, small)
    previous = None
    for phase in run.recipe(config).phases(config):
        built = program.build(
            phase, sharding.make_mesh(config.mesh, jax.devices()[:1]), previous=previous
        )
        assert "loss" in built.metrics
        previous = built.state
