"""Backbones of the distillation papers: sizes as published, stages, a step of the smallest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reprise.common.models.cifar_resnet import CifarResNet
from reprise.common.models.mobilenet import MobileNet
from reprise.common.models.pyramidnet import PyramidNet
from reprise.common.models.resnet import ResNet
from reprise.common.models.size import multiply_adds, parameters
from reprise.common.models.small_cnn import SmallCNN
from reprise.common.models.vgg import VGG
from reprise.common.models.wrn import WRN
from reprise.common.training.distillation_setting import network

CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)


# He et al. state 0.27 M, 0.46 M, 0.66 M, 0.85 M, 1.7 M at 10 classes, by which these are the exact
# counts of shortcut A; ResNet-56 and ResNet-110 have 125.49 M and 252.89 M multiply-adds (Lin et
# al., HRank, CVPR 2020). Of B: github.com/osmr/imgclsmob, pytorch/README.md, CIFAR-10, CIFAR-100.
@pytest.mark.parametrize(
    ("model", "count"),
    [
        (CifarResNet(20), 269_722),
        (CifarResNet(32), 464_154),
        (CifarResNet(44), 658_586),
        (CifarResNet(56), 853_018),
        (CifarResNet(110), 1_727_962),
        (CifarResNet(20, 1, "B"), 272_474),
        (CifarResNet(56, 1, "B"), 855_770),
        (CifarResNet(20, 1, "B", 100), 278_324),
        (CifarResNet(56, 1, "B", 100), 861_620),
        (CifarResNet(110, 1, "B", 100), 1_736_564),
        (CifarResNet(32, 4, "B", 100), 7_433_860),  # teacher of Tian et al., ICLR 2020
    ],
)
def test_parameters_of_cifar_resnets(model, count):
    assert parameters(model, CIFAR) == count


def test_multiply_adds_of_cifar_resnets():
    assert multiply_adds(CifarResNet(56), CIFAR) / 1e6 == pytest.approx(125.49, abs=0.005)
    assert multiply_adds(CifarResNet(110), CIFAR) / 1e6 == pytest.approx(252.89, abs=0.005)


# Layer by layer: 3x3 convolutions with bias, two numbers a channel of BatchNorm, the head.
@pytest.mark.parametrize(
    ("depth", "channels"),
    [
        (8, [64, 128, 256, 512, 512]),
        (13, [64, 64, 128, 128, 256, 256, 512, 512, 512, 512]),
        (16, [64, 64, 128, 128, *[256] * 3, *[512] * 6]),
    ],
)
def test_parameters_of_normalised_vggs(depth, channels):
    layers = zip([3, *channels], channels, strict=False)
    count = sum(9 * a * b + 3 * b for a, b in layers) + 512 * 100 + 100
    assert parameters(VGG(depth), CIFAR) == count
    assert (depth, count) in {(8, 3_965_028), (13, 9_462_180), (16, 14_774_436)}


# The poster of KD-SVD (ECCV 2018): 10.9 M parameters and 576.3 M FLOPs, 3.8 M and 121.3 M, two to a
# multiply-add.
@pytest.mark.parametrize(("depth", "millions", "flops"), [(13, "10.9", 576.3), (6, "3.8", 121.3)])
def test_size_of_plain_vggs(depth, millions, flops):
    model = VGG(depth, plain=True)
    assert f"{parameters(model, CIFAR) / 1e6:.1f}" == millions
    assert 2 * multiply_adds(model, CIFAR) / 1e6 == pytest.approx(flops, rel=2e-3)


# Howard et al., 2017, tables 6 and 8: 569, 325, 149 and 41 M multiply-adds and 4.2, 2.6, 1.3 and
# 0.5 M parameters; exact counts: github.com/osmr/imgclsmob, pytorch/README.md.
@pytest.mark.parametrize(
    ("width", "count", "millions"),
    [
        (1.0, 4_231_976, 569),
        (0.75, 2_585_560, 325),
        (0.5, 1_331_592, 149),
        (0.25, 470_072, 41),
    ],
)
def test_size_of_mobilenets(width, count, millions):
    model = MobileNet(width)
    assert parameters(model, IMAGENET) == count
    assert round(multiply_adds(model, IMAGENET) / 1e6) == millions


# github.com/osmr/imgclsmob, pytorch/README.md, CIFAR-10 (its 778.15 M multiply-adds count
# BatchNorm, too); the overhaul of feature distillation has 26.84 M at 100 classes for the deep one.
def test_size_of_pyramidnets():
    basic, deep = PyramidNet(110, 84), PyramidNet(200, 240, bottleneck=True)
    assert parameters(basic, CIFAR) == 3_904_446
    assert multiply_adds(basic, CIFAR) / 1e6 == pytest.approx(778.15, rel=1e-2)
    count = parameters(deep, CIFAR)
    assert count == 26_752_702
    assert (count + 90 * (1024 + 1)) // 10_000 == 2684


# The README of the overhaul of feature distillation, at 100 classes, cut after two digits.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("wrn-28-4", 5.87),
        ("wrn-16-4", 2.77),
        ("wrn-28-2", 1.47),
        ("wrn-16-2", 0.70),
        ("resnetb-56", 0.86),
        ("pyramidnet-110-84", 3.91),
    ],
)
def test_sizes_in_the_overhaul_of_feature_distillation(name, millions):
    assert parameters(network(name, 100), CIFAR) // 10_000 == round(100 * millions)


def test_multiply_adds_are_those_of_a_layer():
    # WRN-10-1 at 32x32: the stem and stage 1 at 32x32, stages 2 and 3 with shortcuts of 1x1.
    first = 9 * 16 * (3 + 16 + 16) * 32**2
    second = (16 * 32 + 9 * 32 * (16 + 32)) * 16**2
    third = (32 * 64 + 9 * 64 * (32 + 64)) * 8**2
    assert multiply_adds(WRN(10, 1), CIFAR) == first + second + third + 640


def tap_shapes(model, shape):
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    def taps(image):
        return model.init_with_output(jax.random.key(0), image, train=False)[0][1]

    return {name: tap.shape[1:] for name, tap in jax.eval_shape(taps, image).items()}


@pytest.mark.parametrize(
    ("model", "image", "stages", "embed"),
    [
        (CifarResNet(8), CIFAR, [(32, 32, 16), (16, 16, 32), (8, 8, 64)], 64),
        (CifarResNet(8, 4, "B"), CIFAR, [(32, 32, 64), (16, 16, 128), (8, 8, 256)], 256),
        (
            VGG(8),
            CIFAR,
            [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512), (4, 4, 512)],
            512,
        ),
        (
            VGG(6, plain=True),
            CIFAR,
            [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)],
            1024,
        ),
        (
            MobileNet(),
            IMAGENET,
            [(56, 56, 128), (28, 28, 256), (14, 14, 512), (7, 7, 1024)],
            1024,
        ),
        (MobileNet(1.0, 4), CIFAR, [(16, 16, 128), (8, 8, 256), (4, 4, 512)], 512),
        (PyramidNet(14, 12), CIFAR, [(32, 32, 20), (16, 16, 24), (8, 8, 28)], 28),
        (PyramidNet(20, 12, True), CIFAR, [(32, 32, 22), (16, 16, 26), (8, 8, 112)], 112),
    ],
    ids=lambda x: type(x).__name__ if hasattr(x, "depth") or hasattr(x, "blocks") else "",
)
def test_stages(model, image, stages, embed):
    taps = tap_shapes(model, image)
    for i, stage in enumerate(stages, 1):
        assert taps[f"stage{i}"] == taps[f"stage{i}_pre"] == stage
    assert f"stage{len(stages) + 1}" not in taps and taps["embed"] == (embed,)
    if isinstance(model, VGG):
        assert taps["stage3_pool"] == (4, 4, 256) and ("stage4_pool" in taps) == model.plain
    if isinstance(model, PyramidNet):  # what the stage returns, four times as wide in bottlenecks
        assert taps["stage3_sum"] == (8, 8, 112 if model.bottleneck else 28)


@pytest.mark.parametrize(
    ("model", "pixels"),
    [
        (CifarResNet(8, 1, "B", 5), 8),
        (VGG(6, True, 0.5, 5), 16),
        (MobileNet(0.125, 4, 5), 8),
        (PyramidNet(11, 6, True, 5), 8),
    ],
    ids=["resnet", "vgg", "mobilenet", "pyramidnet"],
)
def test_a_step(model, pixels):
    image = jax.random.normal(jax.random.key(1), (2, pixels, pixels, 3))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(  # drawn here: compiling `init` takes longer than all the rest
        lambda leaf: np.float32(rng.normal(0.1, 0.3, leaf.shape)),
        jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False)),
    )
    rest = {"batch_stats": variables["batch_stats"]} if "batch_stats" in variables else {}

    @jax.jit
    def step(params):
        def loss(params):
            keys = {"dropout": jax.random.key(2)}
            both = {"params": params, **rest}
            (logits, taps), new = model.apply(
                both, image, train=True, mutable=["batch_stats"], rngs=keys
            )
            return jax.nn.logsumexp(logits, -1).sum(), (taps, new)

        return jax.grad(loss, has_aux=True)(params)

    grads, (taps, new) = step(variables["params"])
    assert all(jnp.isfinite(grad).all() for grad in jax.tree.leaves(grads))
    assert (grads["head"]["kernel"] != 0).any()
    first = "stem" if "stem" in grads else "stage1_conv0"
    assert (grads[first]["kernel"] != 0).any()
    stages = [name for name in taps if f"{name}_pre" in taps]
    assert len(stages) >= 3 and (taps["stage1_pre"] < 0).any()
    for name in stages:
        np.testing.assert_allclose(taps[name], jax.nn.relu(taps[f"{name}_pre"]), rtol=1e-5)
    assert jax.tree.structure(new) == jax.tree.structure(rest)


@pytest.mark.parametrize("name", ["resnet-8", "vgg-8", "mobilenet-1-4", "pyramidnet-8-6"])
def test_bfloat16_keeps_parameters_statistics_and_logits_wide(name):
    model = network(name, 5, jnp.bfloat16)

    def both(image):
        variables = model.init(jax.random.key(0), image, train=False)
        return variables, model.apply(variables, image, train=True, mutable=["batch_stats"])

    image = jax.ShapeDtypeStruct((2, *CIFAR), jnp.float32)
    variables, ((logits, taps), new) = jax.eval_shape(both, image)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, logits, new))} == {
        jnp.dtype("float32")
    }
    assert {tap.dtype for tap in taps.values()} == {jnp.dtype("bfloat16")}


def test_shortcut_a_skips_pixels_and_appends_zeros():
    model = CifarResNet(8)
    image = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    variables = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape),
        jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False)),
    )
    for stage in (1, 2, 3):  # blocks return their shortcut
        last = variables["params"][f"stage{stage}_block0_conv1_bn"]
        last["scale"], last["bias"] = 0 * last["scale"], 0 * last["bias"]
    taps = jax.jit(lambda v, x: model.apply(v, x, train=False)[1])(variables, image)
    np.testing.assert_array_equal(taps["stage2"][..., :16], taps["stage1"][:, ::2, ::2])
    assert (taps["stage2"][..., 16:] == 0).all() and (taps["stage1"] > 0).any()


def test_networks_by_name():
    expected = {
        "resnet-20": CifarResNet(20, num_classes=7),
        "resnetb-56": CifarResNet(56, 1, "B", 7),
        "resnetb-8-4": CifarResNet(8, 4, "B", 7),
        "resnet-50": ResNet(50, 7),
        "vgg-13": VGG(13, num_classes=7),
        "plainvgg-6": VGG(6, True, num_classes=7),
        "mobilenet-0.5": MobileNet(0.5, num_classes=7),
        "mobilenet-1-4": MobileNet(1, 4, 7),
        "pyramidnet-110-84": PyramidNet(110, 84, False, 7),
        "pyramidnet-200-240": PyramidNet(200, 240, True, 7),
        "cnn-4": SmallCNN(4, num_classes=7),
        "wrn-16-2": WRN(16, 2, 7),
    }
    for name, model in expected.items():
        assert network(name, 7) == model
    for name in ("resnet", "resnet-x", "vgg-13-bn", "cnn-0.5", "mobilenet-1-4-2", "wrn--16-2"):
        with pytest.raises(ValueError, match=rf"network '{name}': allowed are cnn-WIDTH, pooled-"):
            network(name, 7)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (CifarResNet(21), r"depth = 21: must be 6 n \+ 2"),
        (CifarResNet(20, 1, "C"), "shortcut = 'C': allowed are A, B"),
        (CifarResNet(20, 4), "width = 4: needs shortcut B"),
        (VGG(9), "depth = 9, plain = False: allowed are 8, 11, 13, 16, 19"),
        (MobileNet(1.0, 5), "blocks = 5: allowed are 13, 7, 4"),
        (PyramidNet(111, 84, True), r"bottleneck = True: must be 9 n \+ 2"),
    ],
)
def test_sizes_that_do_not_exist_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        tap_shapes(model, CIFAR)
