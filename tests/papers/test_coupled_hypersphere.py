"""papers/coupled_hypersphere: golden, properties, gradients, memory bank, devices, recipes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.test_util import check_grads

from reprise.common import config as configs
from reprise.common.training import run
from reprise.papers.coupled_hypersphere import (
    PatchDescriptor,
    add_coords,
    anomaly_map,
    attraction_and_repulsion,
    build_memory_bank,
    compress,
    coupled_hypersphere_loss,
    coupled_hypersphere_score,
    patch_features,
    running_mean,
    squared_distances,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = dict(np.load(ROOT / "tests/goldens/coupled_hypersphere.npz"))
PHI, BANK, RADIUS = (jnp.asarray(GOLDEN[k]) for k in ("phi", "memory_bank", "radius"))
CONSTANTS = {k: GOLDEN[k].item() for k in ("nu", "alpha", "num_attract", "num_repel")}


def close(found, expected, tolerance=1e-4):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


def test_golden_loss_and_gradients():
    def total(phi, radius):
        each = coupled_hypersphere_loss(phi, BANK, radius, **CONSTANTS)
        return each.sum(), each

    gradient = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    (_, each), (d_phi, d_radius) = gradient(PHI, RADIUS)
    close(each, GOLDEN["expected"])
    close(d_phi, GOLDEN["grad_phi"])
    close(d_radius[None], GOLDEN["grad_radius"])
    attract, repel = attraction_and_repulsion(PHI, BANK, RADIUS, **CONSTANTS)
    close(attract, GOLDEN["expected_attract"])
    close(repel, GOLDEN["expected_repel"])


def test_golden_score():
    close(coupled_hypersphere_score(PHI, BANK), GOLDEN["expected_score"])


def test_golden_descriptor():
    maps = [jnp.asarray(GOLDEN[f"descriptor_feature_{i}"]) for i in range(3)]
    params = {"kernel": GOLDEN["descriptor_kernel"], "bias": GOLDEN["descriptor_bias"]}
    found = PatchDescriptor(features=5).apply({"params": params}, patch_features(maps))
    close(found, GOLDEN["expected_descriptor"])


def test_patch_features_pool_and_resize_as_scipy_does():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(1, n, n, 1)).astype(np.float32) for n in (8, 4)]
    found = patch_features(maps)
    box = np.ones((3, 3)) / 9
    pooled = [scipy.ndimage.convolve(m[0, ..., 0], box, mode="constant") for m in maps]
    np.testing.assert_allclose(found[0, ..., 0], pooled[0], atol=1e-6)
    where = (np.arange(8) + 0.5) / 2 - 0.5
    grid = np.meshgrid(where, where, indexing="ij")
    expected = scipy.ndimage.map_coordinates(pooled[1], grid, order=1, mode="nearest")
    np.testing.assert_allclose(found[0, ..., 1], expected, atol=1e-6)


def test_coordinates_are_the_row_then_the_column():
    x = add_coords(jnp.zeros((2, 3, 5, 4)))
    assert x.shape == (2, 3, 5, 6)
    np.testing.assert_allclose(x[1, :, 2, 4], [-1, 0, 1])
    np.testing.assert_allclose(x[0, 1, :, 5], [-1, -0.5, 0, 0.5, 1])


def test_a_descriptor_starts_as_pytorchs_convolution_does():
    made = PatchDescriptor(64).init(jax.random.key(0), jnp.zeros((1, 2, 2, 62)))["params"]
    assert made["kernel"].shape == (64, 64) and made["bias"].shape == (64,)
    for leaf in made.values():
        assert 0.9 / 8 < float(jnp.abs(leaf).max()) <= 1 / 8


def slow_loss(phi, bank, radius, k, j, nu, alpha):
    out = []
    for image in np.asarray(phi, np.float64):
        attract, repel = [], []
        for x in image.reshape(-1, image.shape[-1]):
            d = np.sort(((x - np.asarray(bank, np.float64)) ** 2).sum(-1))
            attract += [max(0, v - radius**2) for v in d[:k]]
            repel += [max(0, radius**2 - v - alpha) for v in d[k : k + j]]
        out.append((np.mean(attract) + (np.mean(repel) if j else 0)) / nu)
    return np.array(out)


@pytest.mark.parametrize(("k", "j"), [(1, 0), (2, 4), (5, 1)])
def test_repelled_neighbours_are_those_after_the_attracted_ones(k, j):
    found = coupled_hypersphere_loss(PHI, BANK, 2.4, num_attract=k, num_repel=j, nu=0.5, alpha=0.3)
    close(found, slow_loss(PHI, BANK, 2.4, k, j, 0.5, 0.3), 1e-5)


def test_the_repulsion_is_dead_below_the_root_of_alpha():
    @jax.jit
    @jax.value_and_grad
    def repulsion(radius, phi):
        return attraction_and_repulsion(phi, BANK, radius)[1].sum()

    near = BANK[jnp.arange(49) % 40].reshape(1, 7, 7, 24)  # every descriptor is a memory entry
    for radius in (1e-5, 0.316):
        value, slope = repulsion(radius, near)
        assert float(value) == 0 and float(slope) == 0
    twice = jnp.concatenate([BANK, BANK, BANK, BANK])  # and so are its next neighbours
    assert float(attraction_and_repulsion(near, twice, 0.32)[1].sum()) > 0


def test_a_radius_of_zero_never_moves():
    slope = jax.grad(lambda r: coupled_hypersphere_loss(PHI, BANK, r).sum())
    assert float(slope(0.0)) == 0
    assert float(slope(2e-5)) == pytest.approx(2 * float(slope(1e-5)), rel=1e-4) and slope(0.1) < 0


def test_images_do_not_mix_and_the_order_of_the_memory_does_not_matter():
    each = coupled_hypersphere_loss(PHI, BANK, RADIUS)
    alone = jnp.concatenate(
        [coupled_hypersphere_loss(PHI[i : i + 1], BANK, RADIUS) for i in (0, 1)]
    )
    close(alone, each, 1e-6)
    shuffled = BANK[jax.random.permutation(jax.random.key(0), 40)]
    close(coupled_hypersphere_loss(PHI, shuffled, RADIUS), each, 1e-5)
    moved = PHI + 1.0
    close(coupled_hypersphere_loss(moved, BANK + 1.0, RADIUS), each, 1e-4)
    one = jax.vmap(lambda p: coupled_hypersphere_loss(p[None], BANK, RADIUS)[0])(PHI)
    close(one, each, 1e-6)


def test_the_score_weighs_the_nearest_distance_by_a_softmin():
    phi = jnp.zeros((1, 1, 1, 2))
    bank = jnp.array([[3.0, 4.0], [0.0, 6.0], [10.0, 0.0], [90.0, 0.0]])
    weight = np.exp(-5) / np.exp([-5, -6, -10]).sum()
    assert float(coupled_hypersphere_score(phi, bank)[0, 0, 0]) == pytest.approx(5 * weight)
    assert float(coupled_hypersphere_score(phi, bank, num_neighbors=1)[0, 0, 0]) == 5.0
    far = coupled_hypersphere_score(1e4 * PHI, BANK)  # exp(-distance) underflows
    assert np.isfinite(far).all() and (far > 0).all()


def test_a_descriptor_on_a_memory_entry_is_no_anomaly_and_has_a_slope():
    phi = BANK[:4].reshape(1, 2, 2, 24) * 100  # cancellation leaves distances below 0
    assert float(squared_distances(phi, 100 * BANK).min()) < 1e-2
    score = coupled_hypersphere_score(phi, 100 * BANK)
    assert np.isfinite(score).all() and float(jnp.abs(score).max()) < 1.0
    slope = jax.grad(lambda p: coupled_hypersphere_score(p, 100 * BANK).sum())(phi)
    assert np.isfinite(slope).all()


def test_maps_are_resized_and_smoothed():
    score = np.random.default_rng(0).random((2, 6, 6)).astype(np.float32)
    found = anomaly_map(score, 24, sigma=2.0)
    where = np.clip((np.arange(24) + 0.5) / 4 - 0.5, 0, 5)
    grid = np.meshgrid(where, where, indexing="ij")
    for one, out in zip(score, found, strict=True):
        large = scipy.ndimage.map_coordinates(one, grid, order=1)
        np.testing.assert_allclose(out, scipy.ndimage.gaussian_filter(large, 2.0), atol=1e-5)


def test_gradients_in_float64():
    with jax.enable_x64(True):
        phi, bank = (jnp.asarray(GOLDEN[k], jnp.float64) for k in ("phi", "memory_bank"))
        maps = [jnp.asarray(GOLDEN[f"descriptor_feature_{i}"], jnp.float64) for i in range(3)]

        @jax.jit
        def everything(phi, radius, maps):
            loss = coupled_hypersphere_loss(phi, bank, radius, nu=1.0)
            score = anomaly_map(coupled_hypersphere_score(phi, bank), 6)
            return loss.sum(), (score * radius).sum(), patch_features(maps).sum(0)

        arguments = (phi[:, :3, :3], jnp.asarray(2.1), maps)
        assert all(out.dtype == jnp.float64 for out in everything(*arguments))
        described, _ = PatchDescriptor(2).init_with_output(jax.random.key(0), phi)
        assert described.dtype == jnp.float64
        check_grads(everything, arguments, 1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_bfloat16_stays_finite():
    phi, bank = PHI.astype(jnp.bfloat16), BANK.astype(jnp.bfloat16)
    loss, slope = jax.value_and_grad(lambda p: coupled_hypersphere_loss(p, bank, 2.1).sum())(phi)
    assert loss.dtype == jnp.float32 and np.isfinite(loss)
    assert slope.dtype == jnp.bfloat16 and np.isfinite(slope.astype(np.float32)).all()
    score = anomaly_map(coupled_hypersphere_score(phi, bank), 14)
    assert np.isfinite(score).all()
    described, _ = PatchDescriptor(2, jnp.bfloat16).init_with_output(jax.random.key(0), PHI)
    assert described.dtype == jnp.bfloat16


def test_the_memory_bank_is_the_mean_over_batches_of_each_position():
    batches = [PHI + i for i in range(3)]
    bank = build_memory_bank(lambda b: b, batches, key=jax.random.key(0))
    assert bank.shape == (49, 24)
    close(bank, (PHI.mean(0) + 1).reshape(49, 24), 1e-5)
    unequal = build_memory_bank(lambda b: b, [PHI, PHI[:1]], key=jax.random.key(0))
    close(unequal, ((PHI.mean(0) + PHI[0]) / 2).reshape(49, 24), 1e-5)
    traced = jax.jit(lambda b: build_memory_bank(lambda x: x, b, key=jax.random.key(0)))(batches)
    close(traced, bank, 1e-6)


def test_its_size_does_not_depend_on_the_images_and_compression_shrinks_it():
    for count in (1, 4):
        bank = build_memory_bank(lambda b: b, [PHI] * count, gamma_c=4, key=jax.random.key(1))
        assert bank.shape == (12, 24)
    # Entries that repeat are found exactly, whatever the seeding.
    tiled = jnp.tile(BANK[:4].reshape(2, 2, 24), (2, 2, 1))
    centres = compress(tiled, gamma_c=4, key=jax.random.key(0))
    distance = squared_distances(centres, BANK[:4])
    assert float(distance.min(0).max()) < 1e-4 and float(distance.min(1).max()) < 1e-4


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"phi \(2, 7, 7, 24\) and memory_bank \(40, 23\)"):
        squared_distances(PHI, BANK[:, :23])
    with pytest.raises(ValueError, match=r"memory_bank \(5, 24\) has fewer entries than the 6"):
        coupled_hypersphere_loss(PHI, BANK[:5], RADIUS)
    with pytest.raises(ValueError, match=r"coupled_hypersphere_score: memory_bank \(2, 24\)"):
        coupled_hypersphere_score(PHI, BANK[:2])
    with pytest.raises(ValueError, match=r"radius \(1,\) must be a scalar"):
        coupled_hypersphere_loss(PHI, BANK, RADIUS[None])
    with pytest.raises(ValueError, match="num_attract = 0"):
        coupled_hypersphere_loss(PHI, BANK, RADIUS, num_attract=0)
    with pytest.raises(ValueError, match="num_neighbors = 0"):
        coupled_hypersphere_score(PHI, BANK, num_neighbors=0)
    with pytest.raises(ValueError, match=r"phi \(7, 7, 24\) must be \[B, H, W, D\]"):
        coupled_hypersphere_loss(PHI[0], BANK, RADIUS)
    with pytest.raises(ValueError, match=r"of one batch size"):
        patch_features([jnp.zeros((2, 4, 4, 1)), jnp.zeros((3, 2, 2, 1))])
    with pytest.raises(ValueError, match="the first must be the largest"):
        patch_features([jnp.zeros((2, 2, 2, 1)), jnp.zeros((2, 4, 4, 1))])
    with pytest.raises(ValueError, match=r"add_coords: x \(4, 4, 1\)"):
        add_coords(jnp.zeros((4, 4, 1)))
    with pytest.raises(ValueError, match="of square images"):
        anomaly_map(jnp.zeros((1, 4, 5)), 8)
    with pytest.raises(ValueError, match="of square images"):
        build_memory_bank(lambda b: b, [PHI[:, :, :6]], key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"gamma_c = 50: must be in 1..49"):
        build_memory_bank(lambda b: b, [PHI], gamma_c=50, key=jax.random.key(0))
    with pytest.raises(ValueError, match="no batches"):
        build_memory_bank(lambda b: b, [], key=jax.random.key(0))
    with pytest.raises(ValueError, match="batch 1 has descriptors that are not finite"):
        bad = PHI.at[1, 2, 3, 4].set(jnp.nan)
        build_memory_bank(lambda b: b, [PHI, bad], key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"running_mean: phi \(2, 7, 7, 24\)"):
        running_mean(jnp.zeros((6, 7, 24)), 0, PHI)


def test_images_with_nan_and_non_square_ones_are_refused_by_name():
    from reprise.papers.coupled_hypersphere import tasks

    image = np.zeros((3, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match=r"tiles: images \(3, 8, 7, 1\) must be"):
        tasks.check_images("tiles", image[:, :, :7])
    image[2, 0, 0] = np.nan
    with pytest.raises(ValueError, match="tiles: image 2 has pixels that are not finite"):
        tasks.check_images("tiles", image)


def test_textures_share_no_pixel_between_training_and_test():
    from reprise.papers.coupled_hypersphere import tasks

    made = tasks.textures("gravel", 6, 0, part="lower", defects=True)
    assert made["image"].shape == (6, 48, 48, 1) and made["label"].tolist() == [0, 1] * 3
    area = made["mask"].sum((1, 2))
    assert (area[::2] == 0).all() and (abs(area[1::2] - 18 * np.pi) < 8).all()
    np.testing.assert_array_equal(
        made["image"], tasks.textures("gravel", 6, 0, part="lower", defects=True)["image"]
    )
    with pytest.raises(ValueError, match=r"config.data.name = 'wood': textures are brick"):
        tasks.textures("wood", 1, 0, part="upper", defects=False)


def test_photographs_are_resized_cropped_and_turned_with_their_masks():
    from reprise.papers.coupled_hypersphere import tasks

    config = run.load_config("coupled_hypersphere:rd_mvtec_wrn50")
    image = np.zeros((300, 400, 1), np.uint8)
    image[100:200, 150:250] = 200
    example = {"image": image, "mask": (image > 0).astype(np.uint8), "label": 1}
    turned = [tasks.photographed(example, np.random.default_rng(i), config) for i in (0, 0, 1)]
    np.testing.assert_array_equal(turned[0]["image"], turned[1]["image"])
    assert (turned[0]["image"] != turned[2]["image"]).any()
    for one in turned:
        assert one["image"].shape == (224, 224, 3) and one["mask"].shape == (224, 224)
        agree = (one["image"][..., 0] > 0.4) == one["mask"]
        assert agree.mean() > 0.98 and 0.1 < one["mask"].mean() < 0.2
    tiles = run.load_config("coupled_hypersphere:magnetic_tile")
    whole = tasks.photographed(example, np.random.default_rng(0), tiles)["image"]
    assert whole.shape == (96, 96, 3)
    assert whole.mean() == pytest.approx(0.5, abs=1e-3) and whole.std() == pytest.approx(0.25)


def test_amsgrad_is_pytorchs():
    from reprise.papers.coupled_hypersphere.optimizer import adamw_amsgrad

    # torch.optim.AdamW(lr=0.03, weight_decay=0.2, amsgrad=True) in float64
    expected = [
        [0.964, -1.958],
        [0.93208408, -1.94450825],
        [0.90512109, -1.92854999],
        [0.88164299, -1.92112095],
    ]
    tx, ours = adamw_amsgrad(0.03, 0.2), jnp.array([1.0, -2.0])
    state = tx.init(ours)
    slopes = jnp.array([[3.0, -0.5], [1.0, 0.4], [0.2, -0.1], [0.1, 0.3]])
    for slope, after in zip(slopes, expected, strict=True):
        updates, state = tx.update(slope, state, ours)
        ours = ours + updates
        np.testing.assert_allclose(ours, after, rtol=1e-5)


def test_the_radius_rises_by_the_learning_rate_a_step():
    from reprise.papers.coupled_hypersphere.optimizer import adamw_amsgrad

    tx = adamw_amsgrad(1e-3, 5e-4)

    def step(carry, _):
        radius, state = carry
        slope = jax.grad(lambda r: coupled_hypersphere_loss(PHI, BANK, r).mean())(radius)
        updates, state = tx.update(slope, state, radius)
        return (radius + updates, state), radius

    start = jnp.float32(1e-5)
    _, radii = jax.lax.scan(step, (start, tx.init(start)), None, length=60)
    # Not exactly: the slope grows with the radius, and its averages lag behind it.
    assert (np.diff(radii) > 0.5e-3).all() and (np.diff(radii) < 2e-3).all()


def test_8_devices_give_what_1_gives():
    code = """
import sys; sys.path.insert(0, "tests/papers")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P, AxisType
import test_coupled_hypersphere as t
phi = jnp.concatenate([t.PHI, t.PHI + 0.1, t.PHI - 0.2, 2 * t.PHI])
def whole(phi, radius):
    bank = t.build_memory_bank(lambda p: p, [phi, phi + 0.5], key=jax.random.key(0))
    loss = t.coupled_hypersphere_loss(phi, jax.lax.stop_gradient(bank), radius).mean()
    return loss, (bank, t.anomaly_map(t.coupled_hypersphere_score(phi, bank), 14))
run = jax.jit(jax.value_and_grad(whole, (0, 1), has_aux=True))
plain = run(phi, t.RADIUS)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
found = run(jax.device_put(phi, NamedSharding(mesh, P("data"))), t.RADIUS)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, plain)
print("ok")
"""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


def tiny(variant, **changes):
    return configs.apply_overrides(
        run.load_config(f"coupled_hypersphere:{variant}"),
        {
            "num_steps": 4,
            "eval_every": 2,
            "checkpoint.every": 2,
            "steps_per_dispatch": 2,
            "log.every": 1,
            "cache_dir": "",
            "compilation_cache": "",
            "data.train": 8,
            "data.test": 4,
        }
        | changes,
    )


def test_the_recipe_trains_evaluates_checkpoints_and_resumes(tmp_path):
    config = tiny("brick")
    whole = run.run(config, tmp_path)
    assert set(whole.metrics[0]) == {"image_auroc", "pixel_auroc", "pro"}
    assert len(whole.figures) == 1 and whole.figures[0].is_file()
    trained, fixed = whole.state.params, whole.state.model_state
    assert fixed["memory_bank"].shape == (576, 112) and int(fixed["count"]) == 4
    np.testing.assert_allclose(trained["radius"], fixed["track"][-1, 0], atol=1.5e-3)
    losses = [r["loss"] for r in whole.history if r["phase"] == "adapt" and r["kind"] == "train"]
    assert losses[-1] < losses[0]
    before = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "1-adapt" / "4")
    assert run.run(config, tmp_path).metrics == whole.metrics
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_the_memory_bank_of_the_phase_is_that_of_the_function():
    from reprise.papers.coupled_hypersphere import adaptation

    config = tiny("brick", num_steps=0, **{"model.arm": "untrained"})
    state = run.run(config).state
    net = adaptation.parts(config)
    stream = adaptation.bank_phase(config).batches
    images = [stream.batch(i)["image"] for i in range(2)]
    bank = build_memory_bank(
        lambda image: net.describe(
            state.params["descriptor"], net.patches(state.model_state["backbone"], image)
        ),
        images,
        key=jax.random.key(0),
    )
    close(state.model_state["memory_bank"], bank, 1e-5)


@pytest.mark.parametrize("arm", ["raw", "gaussian"])
def test_methods_without_adaptation_are_measured_too(arm):
    with pytest.raises(ValueError, match="num_steps = 4: must be 0 for arm"):
        run.run(tiny("brick", **{"model.arm": arm}))
    done = run.run(tiny("brick", num_steps=0, **{"model.arm": arm}))
    assert 0 <= done.metrics[0]["pixel_auroc"] <= 1


VARIANTS = run.config_module(ROOT / "configs/coupled_hypersphere.py").VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_builds_its_real_model(variant):
    from reprise.common.training import program, sharding

    config = run.load_config(f"coupled_hypersphere:{variant}")
    if config.model.weights.endswith(".npz"):
        with pytest.raises(ValueError, match=r"config.model.weights = .*no such file"):
            run.recipe(config).phases(config)
        config.model.weights = "random"
    previous, mesh = None, sharding.make_mesh(config.mesh, jax.devices()[:1])
    for phase in run.recipe(config).phases(config):
        built = program.build(phase, mesh, previous=previous)
        previous = built.state
    assert {"attract", "repel", "radius", "loss"} <= set(built.metrics)
    if variant == "mvtec_wrn50":
        assert previous.model_state["memory_bank"].shape == (3136, 1792)
        assert previous.params["descriptor"]["kernel"].shape == (1794, 1792)
    if variant == "mvtec_resnet18":
        assert previous.params["descriptor"]["kernel"].shape == (450, 448)


def test_epochs_follow_the_images_of_a_class():
    from reprise.papers.coupled_hypersphere import adaptation

    config = run.load_config("coupled_hypersphere:mvtec_resnet18")
    config.model.weights = "random"
    assert (config.num_steps, config.eval_every) == (30 * 52, 52)
    config.data.train_split = "cable_train"
    with pytest.raises(ValueError, match=r"data.train = 209: cable_train has 224 images"):
        adaptation.bank_phase(config)
    config.data.train = 224
    assert (config.num_steps, config.eval_every) == (30 * 56, 56)
    assert adaptation.bank_phase(config).num_steps == 56


def test_the_gaussian_takes_a_fixed_part_of_many_channels():
    from reprise.papers.coupled_hypersphere import adaptation

    p = jax.random.normal(jax.random.key(0), (1, 2, 2, 448))
    config = run.load_config("coupled_hypersphere:mvtec_resnet18")
    config.model.arm = "gaussian"
    found = adaptation.parts(config).describe({}, p)
    assert found.shape == (1, 2, 2, 100) and jnp.isin(found, p).all()
    np.testing.assert_array_equal(found, adaptation.parts(config).describe({}, p))
    few = p[..., :100]
    np.testing.assert_array_equal(adaptation.parts(config).describe({}, few), few)


def test_a_radius_above_the_root_of_alpha_repels_from_the_start():
    config = tiny("brick_long", num_steps=1, **{"model.radius": 0.5})
    arms = run.recipe(config).study(config).arms
    assert {"large_radius", "large_radius_no_repulsion"} <= set(arms)
    track = run.run(config).state.model_state["track"]
    assert track[0, 0] == 0.5 and track[0, 2] > 0


@pytest.mark.parametrize("change", [{"model.num_repel": 0}, {"model.train_radius": False}])
def test_the_ablation_builds_its_arms(change):
    from reprise.common.training import program, sharding

    config = tiny("brick_long", **change)
    previous, mesh = None, sharding.make_mesh(config.mesh, jax.devices()[:1])
    for phase in run.recipe(config).phases(config):
        previous = program.build(phase, mesh, previous=previous).state
    assert ("radius" in previous.params) == config.model.train_radius


def test_torchvision_weights_become_the_backbone(tmp_path):
    golden = np.load(ROOT / "tests/goldens/torchvision_layout.npz")
    own = {k.split("/")[2]: v for k, v in golden.items() if k.startswith("basic/state/")}
    np.savez(tmp_path / "small.npz", **own)
    config = tiny(
        "magnetic_tile",
        **{
            "model.weights": str(tmp_path / "small.npz"),
            "model.width": 4,
            "model.backbone_classes": 7,
        },
    )
    from reprise.papers.coupled_hypersphere import backbones

    phase = backbones.phase(config)
    state, _ = phase.step(phase.init(jax.random.key(0), None), phase.batches, jax.random.key(0))
    kernel = backbones.variables_of(state)["params"]["stem"]["kernel"]
    np.testing.assert_array_equal(kernel, own["conv1.weight"].transpose(2, 3, 1, 0))


def test_pretraining_learns_and_hands_its_weights_on():
    from reprise.common.training import state as states
    from reprise.papers.coupled_hypersphere import adaptation, backbones

    config = tiny("magnetic_tile", **{"model.width": 4, "pretrain.batch_size": 4})
    phase = backbones.phase(config)
    assert phase.reuse["pretrain"].num_steps == 300 and phase.reuse["network"]["width"] == 4
    state = jax.eval_shape(lambda: phase.init(jax.random.key(0), None))
    assert isinstance(state, states.TrainState)
    batch = {
        "image": jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((4,), jnp.int32),
    }
    after, metrics = jax.eval_shape(phase.step, state, batch, jax.random.key(1))
    assert metrics["accuracy"].shape == () and jax.tree.structure(after) == jax.tree.structure(
        state
    )
    bank = jax.eval_shape(adaptation.bank_phase(config).init, jax.random.key(0), state)
    assert bank.mean.shape == (24, 24, 28)
