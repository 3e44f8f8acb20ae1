"""Feature fusion learning (Kim, Hyun, Chung, Kwak, ICPR 2020).

    python launch.py --config=configs/feature_fusion_learning.py[:variant] [--study]

digits            two small networks on 150 labelled 8x8 digits, embedded
cifar100          two ResNet-32 that share two stages, the released script's settings
cifar100_short    the same in a third of the epochs

What to expect, and how long each took on which machine, is in the card,
papers/feature_fusion_learning/README.md.
"""

from ml_collections import ConfigDict

from reprise.common import config as base

VARIANTS = ("digits", "cifar100", "cifar100_short")


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.defaults("feature_fusion_learning", variant, VARIANTS)
    config.model = ConfigDict()
    config.model.method = "ffl"  # or "fusion" (w = 0), "dml", "vanilla"
    config.model.num_networks = 2  # M
    config.model.tap = "stage3"  # of each network: its last map, after the ReLU
    config.model.shared_stages = 0  # of `parallel-DEPTH`
    config.model.temperature = 3.0  # T
    config.model.rampup = 80.0  # R, epochs until mutual distillation has its full weight
    config.model.network_l2 = 0.0  # weight decay of the networks beside optimizer.l2
    config.data = ConfigDict()
    (_digits if variant == "digits" else _cifar100)(config)
    return config


def _sgd(rate: float, num_steps: int, l2: float) -> ConfigDict:
    section = base.optimizer("sgd", rate, momentum=0.9, nesterov=True)
    section.l2 = l2
    section.schedule.name = "piecewise_constant_schedule"
    section.schedule.args.boundaries = (num_steps // 2, 3 * num_steps // 4)
    section.schedule.args.scale = 0.1
    return section


def _digits(config: ConfigDict) -> None:
    config.study.seeds = tuple(range(10))
    config.study.over_seeds = "map"  # vmapped convolutions are slow on CPUs
    config.data.name = "digits"
    config.data.count = 150  # labelled examples
    config.model.student = "cnn-4"
    config.model.rampup = 0.27 * 60
    config.batch_size, config.num_steps = 32, 60 * 4
    config.optimizer = _sgd(0.05, config.num_steps, 5e-4)
    config.steps_per_dispatch = 60


def _cifar100(config: ConfigDict) -> None:
    config.datasets = ("cifar100",)
    config.data.name = "cifar100"
    config.data.count = 50_000
    short = config.variant == "cifar100_short"
    config.model.student = "parallel-32"
    config.model.shared_stages = 2
    config.model.rampup = 27.0 if short else 80.0
    config.model.network_l2 = 1e-4 - 1e-5
    config.batch_size = 128
    config.num_steps = (100 if short else 300) * (50_000 // 128)
    config.optimizer = _sgd(0.1, config.num_steps, 1e-5)  # the fusion module's weight decay
