"""CFA: coupled-hypersphere-based feature adaptation (Lee, Lee, Song, 2022).

    python launch.py --config=configs/coupled_hypersphere.py[:variant] [--study]

brick          defects on crops of a bundled photograph, random backbone: CFA against no adaptation
gravel         the same on another texture
brick_long     four times as long: trained radius, fixed radius, no repulsion, large radius
magnetic_tile  real defects, 24 images to train on; backbone pre-trained here on CIFAR-10
mvtec_wrn50    one class of MVTec AD, Wide-ResNet-50-2 of ImageNet; the README reports an average
               image AUROC of 0.993 and pixel AUROC of 0.982, an independent port 0.956 and 0.983
mvtec_resnet18 the same with ResNet-18; the port reports 0.930 and 0.979
rd_mvtec_wrn50 the same, rotated and cropped at random in training and test

Other classes: --config.data.train_split=cable_train --config.data.test_split=cable_test
--config.data.train=224, the number of its training images (tasks.MVTEC_TRAIN), from which the steps
of 30 epochs follow. Uncropped ("R"): --config.data.size=256.

What to expect, and how long each took on which machine, is in
papers/coupled_hypersphere/README.md.
"""

from ml_collections import ConfigDict, FieldReference

from reprise.common import config as base

VARIANTS = (
    "brick",
    "gravel",
    "brick_long",
    "magnetic_tile",
    "mvtec_wrn50",
    "mvtec_resnet18",
    "rd_mvtec_wrn50",
)


def get_config(variant: str = "brick") -> ConfigDict:
    config = base.defaults("coupled_hypersphere", variant, VARIANTS)
    config.batch_size = 4
    # AdamW over every parameter, the radius too.
    config.optimizer = base.optimizer("adamw", 1e-3, weight_decay=5e-4)
    config.study.over_seeds = "map"  # vmapped convolutions are slow on CPUs

    config.model = ConfigDict()
    config.model.arm = "cfa"  # or "untrained", "raw", "gaussian": no adaptation, num_steps = 0
    config.model.amsgrad = True  # AdamW with amsgrad, as PyTorch computes it
    config.model.num_attract = 3  # K; also the neighbours of the score
    config.model.num_repel = 3  # J; 0: no repulsion
    config.model.nu = 1e-3  # divides the loss
    config.model.alpha = 0.1  # margin between the spheres
    config.model.radius = 1e-5  # r at the start
    config.model.train_radius = True
    config.model.gamma_c = 1  # compression of the memory bank
    config.model.gamma_d = 1  # compression of the descriptor
    config.model.gaussian_channels = 550  # of the arm "gaussian", at random; PaDiM's for WRN-50-2
    config.model.backbone = "resnet"  # or "random_pyramid"
    config.model.backbone_classes = 1000  # of the backbone's head, which is not used
    config.model.depth, config.model.width, config.model.widen = 18, 64, 1
    config.model.taps = ("stage1", "stage2", "stage3")  # the maps, the largest first
    # "random", "pretrain" (see below), or the npz of torchvision's weights.
    config.model.weights = "random"

    config.data = ConfigDict()
    config.data.ablation = False  # the study compares radius and repulsion instead of methods
    config.data.gain = 0.0  # pixel AUROC that CFA must gain over the untrained descriptor
    # Images; whatever there are where test is 0. Epochs and memory bank take `train` of them.
    config.data.train, config.data.test = 0, 0
    config.data.train_split, config.data.test_split = "train", "test"
    config.data.resize = 0  # pixels of the shorter side before a crop; 0: all of it to a square
    config.data.unaligned = False  # random rotation and crop, in training and test
    config.data.standardize = False  # every photograph to the same mean and contrast
    config.data.mean, config.data.std = (0.5,) * 3, (0.25,) * 3  # of the channels, in [0, 1]
    config.data.sigma = 4.0  # of the Gaussian over the maps, in pixels

    # A labelled set of the catalog, to train the backbone on where there are no weights.
    config.pretrain = ConfigDict()
    config.pretrain.data = "cifar10_30k"
    config.pretrain.train_split, config.pretrain.test_split = "train", "validation"
    config.pretrain.num_steps, config.pretrain.batch_size = 300, 64
    config.pretrain.optimizer = base.optimizer("adamw", 3e-3, weight_decay=1e-2)
    config.pretrain.optimizer.schedule.name = "cosine_decay_schedule"

    if variant in ("brick", "gravel", "brick_long"):
        _texture(config)
    elif variant == "magnetic_tile":
        _magnetic_tile(config)
    else:
        _mvtec(config)
    return config


def _epochs(config: ConfigDict, images: int, epochs: int) -> None:
    """Steps that follow `data.train` and `batch_size` when they are changed."""
    config.data.train = images

    def epoch() -> FieldReference:
        return config.data.get_ref("train") // config.get_ref("batch_size")

    config.num_steps = epochs * epoch()
    config.eval_every = epoch()
    config.steps_per_dispatch = epoch()


def _texture(config: ConfigDict) -> None:
    config.datasets = ("photos",)
    config.data.name = config.variant.partition("_")[0]
    config.data.size = 48  # pixels a side
    config.data.ablation = config.variant == "brick_long"
    config.data.gain = 0.08
    config.data.test = 80  # every second one with a defect
    config.data.mean, config.data.std = (0.5,), (0.25,)
    config.data.sigma = 2.0
    config.model.backbone = "random_pyramid"
    _epochs(config, 100, 60 if config.data.ablation else 15)
    config.eval_every = 250 if config.data.ablation else 75


def _magnetic_tile(config: ConfigDict) -> None:
    config.datasets = ("magnetic_tile", "cifar10_30k")
    config.data.name = "magnetic_tile"
    config.data.size = 96
    config.data.sigma = 2.0  # about the paper's share of the image
    # Tiles with and without defects were exposed differently; brightness would tell them apart.
    config.data.standardize = True
    config.model.depth, config.model.width = 10, 16
    config.model.backbone_classes = 10
    config.model.weights = "pretrain"
    _epochs(config, 24, 30)
    config.eval_every = 30


def _mvtec(config: ConfigDict) -> None:
    config.datasets = ("mvtec_ad",)
    config.data.name = "mvtec_ad"
    config.data.train_split, config.data.test_split = "bottle_train", "bottle_test"
    config.data.resize, config.data.size = 256, 224  # "R+C"
    config.data.unaligned = config.variant == "rd_mvtec_wrn50"
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.model.weights = "resnet18.npz"
    config.model.gaussian_channels = 100  # PaDiM's for ResNet-18
    if "wrn50" in config.variant:
        config.model.depth, config.model.widen = 50, 2
        config.model.weights = "wide_resnet50_2.npz"
        config.model.gaussian_channels = 550
    _epochs(config, 209, 30)  # bottle
