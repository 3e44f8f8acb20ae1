"""Boundary supporting samples (Heo, Lee, Yun, Choi, AAAI 2019).

    python launch.py --config=configs/boundary_supporting_samples.py[:variant] [--study]

spiral            30 labelled points of three spiral arms in the plane, against KD
digits            100 labelled 8x8 digits, embedded; also against samples moved at random
cifar10           ResNet-26 to ResNet-8, the released script's settings

What to expect, and how long each took on which machine, is in the card,
papers/boundary_supporting_samples/README.md.
"""

from ml_collections import ConfigDict

from reprise.common import config as base

VARIANTS = ("spiral", "digits", "cifar10")


def get_config(variant: str = "spiral") -> ConfigDict:
    config = base.defaults("boundary_supporting_samples", variant, VARIANTS)
    config.model = ConfigDict()
    config.model.method = "bss"  # or "random", "kd", "ce"
    config.model.temperature = 3.0  # T
    config.model.num_samples = 64  # N, the most base samples a batch
    config.model.num_walk = 10  # I, steps of the walk
    config.model.step_size = 0.3  # eta
    config.model.clip = (-2.5, 2.5)  # range of a pixel, in the units that the network sees
    config.model.random_norm = 0.3  # how far `random` moves a sample
    config.model.similarity_images = 200  # test images from which boundaries are compared
    config.data = ConfigDict()
    config.teacher = ConfigDict()
    {"spiral": _spiral, "digits": _digits, "cifar10": _cifar10}[variant](config)
    return config


def _spiral(config: ConfigDict) -> None:
    config.study.seeds = tuple(range(10))
    config.data.name = "spiral"
    config.data.count = 30  # labelled points of the student
    config.model.teacher, config.model.student = "mlp-64", "mlp-16"
    config.model.num_samples = 30
    config.model.num_walk, config.model.step_size = 6, 0.04
    config.batch_size, config.num_steps = 30, 400
    config.optimizer = _adam()
    config.teacher.batch_size, config.teacher.num_steps = 2000, 400
    config.teacher.optimizer = _adam()
    config.steps_per_dispatch = 100


def _adam() -> ConfigDict:
    section = base.optimizer("adam", 1e-2)
    section.schedule.name = "linear_schedule"
    section.schedule.args.end_value = 0.0
    return section


def _sgd(rate: float, num_steps: int, l2: float, nesterov: bool) -> ConfigDict:
    section = base.optimizer("sgd", rate, momentum=0.9, nesterov=nesterov)
    section.l2 = l2
    section.schedule.name = "piecewise_constant_schedule"
    section.schedule.args.boundaries = (num_steps // 2, 3 * num_steps // 4)
    section.schedule.args.scale = 0.1
    return section


def _digits(config: ConfigDict) -> None:
    config.study.seeds = tuple(range(10))
    config.study.over_seeds = "map"  # vmapped convolutions are slow on CPUs
    config.data.name = "digits"
    config.data.count = 100  # labelled examples of the student
    config.model.teacher, config.model.student = "cnn-16", "cnn-4"
    config.model.num_samples = 8
    config.model.random_norm = 1.5
    config.batch_size, config.num_steps = 32, 80 * 3
    config.optimizer = _sgd(0.05, config.num_steps, 5e-4, True)
    config.teacher.batch_size, config.teacher.num_steps = 64, 30 * 14
    config.teacher.optimizer = _sgd(0.1, config.teacher.num_steps, 5e-4, True)
    config.steps_per_dispatch = 60


def _cifar10(config: ConfigDict) -> None:
    config.datasets = ("cifar10",)
    config.data.name = "cifar10"
    config.data.count = 50_000
    config.model.teacher, config.model.student = "resnet-26", "resnet-8"
    per_epoch = 50_000 // 256
    config.batch_size, config.num_steps = 256, 80 * per_epoch
    config.optimizer = _sgd(0.1, config.num_steps, 1e-4, False)
    config.teacher.batch_size, config.teacher.num_steps = 256, 320 * per_epoch
    config.teacher.optimizer = _sgd(0.1, config.teacher.num_steps, 1e-4, False)
