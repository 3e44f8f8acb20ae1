"""EnSiam: self-supervised learning with ensemble representations (Han, Lee, 2023).

    python launch.py --config=configs/ensiam.py[:variant] [--study]

digits            8x8 digits: accuracy, target variance, collapse; with SimSiam of 2 and of K views
digits_stability  the same over learning rates and strengths of augmentation
cifar_small       2000 images of CIFAR-10 at 16 x 16, a small network, over the same
cifar10           ResNet-18, 800 epochs: SimSiam's setting, K = 4
cifar100          the same for CIFAR-100
imagenet          ResNet-50, 100 epochs, then a linear probe of 90

What to expect, and how long each took on which machine, is in papers/ensiam/README.md.
"""

from ml_collections import ConfigDict

from reprise.common import config as base

VARIANTS = ("digits", "digits_stability", "cifar_small", "cifar10", "cifar100", "imagenet")


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.defaults("ensiam", variant, VARIANTS)
    config.model = ConfigDict()
    # Or "simsiam", or "no_stop_gradient": a control, which in digits' 150 steps does not collapse.
    config.model.loss = "ensiam"
    config.model.num_views = 4  # K; the paper's is not known
    config.model.constant_predictor_rate = False  # the schedule is not the predictor's
    config.data = ConfigDict()
    config.data.strength = 1.0  # factor on the augmentation
    config.data.crops_on_host = False  # photographs of any size are cropped while they are read
    config.judge = ConfigDict()
    config.judge.features = True  # evaluate by kNN and a probe on features of the whole set
    config.judge.batch_size = 500
    config.judge.labels_per_class = 0  # of the probe; 0: all
    config.judge.draws = 1  # choices of these labels, averaged
    config.judge.redraws = 0  # targets drawn an image for their variance; 0: not measured
    config.judge.views = 4  # of the ensemble whose variance is measured, in every arm
    config.judge.images = 200  # test images it is measured on
    config.probe = ConfigDict()
    config.probe.num_steps = 0  # of the probe trained on the stream; 0: none
    config.sweep = ConfigDict()
    config.sweep.learning_rates = ()  # of the stability study
    config.sweep.strengths = ()  # likewise, at the default learning rate
    if variant.startswith("digits"):
        _digits(config)
    elif variant == "imagenet":
        _imagenet(config)
    else:
        _cifar(config)
    return config


def _sgd(config: ConfigDict, learning_rate: float, weight_decay: float) -> None:
    config.optimizer = base.optimizer("sgd", learning_rate, momentum=0.9)
    config.optimizer.schedule.name = "cosine_decay_schedule"
    config.optimizer.l2 = weight_decay  # on every parameter, BatchNorm's too


def _sweep_columns(config: ConfigDict) -> None:
    rates = [f"knn_lr_{rate:g}" for rate in config.sweep.learning_rates]
    strengths = [f"knn_strength_{strength:g}" for strength in config.sweep.strengths]
    config.study.columns = ("knn_mean", "knn_range", *rates, *strengths)


def _digits(config: ConfigDict) -> None:
    config.num_steps = 150  # 15 epochs of 10 batches
    config.batch_size = 128
    config.log.every = 10
    config.study.seeds = (0, 1, 2, 3)
    _sgd(config, 0.1, 5e-4)
    config.model.backbone = "conv"
    config.model.widths = (24, 48)
    config.model.flatten = True
    config.model.projector = 64  # width of every layer of the projector
    config.model.projector_layers = 2
    config.model.predictor = 16  # width of the predictor's hidden layer
    config.data.name = "digits"
    config.data.size, config.data.channels = 8, 1
    config.judge.k = 5  # neighbours
    config.judge.temperature = 0.0  # of their votes; 0: one vote each
    config.judge.labels_per_class = 5
    config.judge.draws = 5
    config.judge.c = 10.0  # inverse regularisation of the probe
    if config.variant == "digits":
        config.judge.redraws = 64
    else:
        config.num_steps = 80  # 8 epochs
        config.study.seeds = (0, 1, 2)
        config.sweep.learning_rates = (0.01, 0.03, 0.1, 0.3)
        config.sweep.strengths = (0.5, 2.0)
        _sweep_columns(config)


def _cifar(config: ConfigDict) -> None:
    small = config.variant == "cifar_small"
    name = "cifar10_30k" if small else config.variant
    config.datasets = (name,)
    config.data.name = name
    config.data.train = "train[:2000]" if small else "train"
    config.data.test = "test[:2000]" if small else "test"
    config.data.size, config.data.channels = (16 if small else 32), 3
    config.data.crop = (0.2, 1.0)  # share of the area that a view keeps
    config.data.blur = False
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2023, 0.1994, 0.2010)
    config.judge.k = 200
    config.judge.temperature = 0.1
    config.judge.c = 10.0
    if small:
        config.batch_size = 128
        config.num_steps = 120  # 8 epochs
        _sgd(config, 0.1, 5e-4)
        config.model.backbone = "conv"
        config.model.widths = (16, 32, 64)
        config.model.flatten = False
        config.model.projector, config.model.projector_layers = 64, 2
        config.model.predictor = 16
        config.sweep.learning_rates = (0.03, 0.1, 0.3)
        config.sweep.strengths = (0.5, 2.0)
        _sweep_columns(config)
        return
    config.batch_size = 512
    config.num_steps = 800 * 97  # 800 epochs
    config.eval_every = 50 * 97
    config.checkpoint.every = 10 * 97
    config.precision = "bfloat16"
    _sgd(config, 0.03 * 512 / 256, 5e-4)
    config.model.backbone = "resnet"
    config.model.depth = 18
    config.model.small_images = True  # a stem of stride 1, no max-pooling
    config.model.projector, config.model.projector_layers = 2048, 2
    config.model.predictor = 512


def _imagenet(config: ConfigDict) -> None:
    config.datasets = ("imagenet2012",)
    config.batch_size = 512
    config.num_steps = 100 * 2502  # 100 epochs
    config.checkpoint.every = 2500
    config.precision = "bfloat16"
    config.judge.features = False
    _sgd(config, 0.05 * 512 / 256, 1e-4)
    config.model.constant_predictor_rate = True
    config.model.backbone = "resnet"
    config.model.depth = 50
    config.model.small_images = False
    config.model.projector, config.model.projector_layers = 2048, 3
    config.model.predictor = 512
    config.data.name = "imagenet2012"
    config.data.train, config.data.test = "train", "validation"
    config.data.size, config.data.channels = 224, 3
    config.data.crops_on_host = True
    config.data.crop = (0.2, 1.0)
    config.data.blur = True
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.probe.num_steps = 90 * 312  # 90 epochs
    config.probe.batch_size = 4096
    config.probe.learning_rate = 0.1 * 4096 / 256
    config.probe.num_classes = 1000
    config.probe.schedule = ConfigDict({"name": "cosine_decay_schedule", "args": ConfigDict()})
