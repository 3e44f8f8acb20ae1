"""Distillation of activation boundaries (Heo, Lee, Yun, Choi, AAAI 2019).

    python launch.py --config=configs/activation_boundary.py[:variant] [--study]

digits            50 labelled 8x8 digits, embedded: boundaries first, then KD, against KD alone
cifar10           WRN-22-4 to WRN-16-2, the released script's settings, one epoch a phase
cifar10_ten       the same with ten epochs a phase

What to expect, and how long each took on which machine, is in papers/activation_boundary/README.md.
"""

from ml_collections import ConfigDict

from reprise.common import config as base

VARIANTS = ("digits", "cifar10", "cifar10_ten")


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.defaults("activation_boundary", variant, VARIANTS)
    config.model = ConfigDict()
    config.model.method = "ab"  # or "fitnet", "kd", "ce"
    config.model.stop_after_init = False  # judge the student right after the first phase
    config.model.margin = 1.0  # mu
    config.model.scale = 3e-3  # c, of the sum over units
    config.model.temperature = 3.0
    config.model.scale_by_t2 = False  # the released code has no T^2
    config.data = ConfigDict()
    config.teacher, config.init = ConfigDict(), ConfigDict()
    (_digits if variant == "digits" else _cifar10)(config)
    return config


def _sgd(rate: float, num_steps: int, drops: tuple[float, ...], scale: float) -> ConfigDict:
    section = base.optimizer("sgd", rate, momentum=0.9, nesterov=True)
    section.l2 = 5e-4
    if drops:
        section.schedule.name = "piecewise_constant_schedule"
        section.schedule.args.boundaries = tuple(round(num_steps * d) for d in drops)
        section.schedule.args.scale = scale
    return section


def _digits(config: ConfigDict) -> None:
    config.study.seeds = (0, 1, 2, 3, 4)
    config.study.over_seeds = "map"  # vmapped convolutions are slow on CPUs
    config.data.name = "digits"
    config.data.count = 50  # labelled examples of the student
    config.model.teacher, config.model.student = "cnn-16", "cnn-4"
    config.model.scale_by_t2 = True
    config.batch_size = 25
    config.teacher.batch_size, config.teacher.num_steps = 64, 30 * 14
    config.teacher.optimizer = _sgd(0.1, 30 * 14, (0.5, 0.75), 0.1)
    config.init.batch_size, config.init.num_steps = 25, 45 * 2
    config.init.optimizer = _sgd(0.05, 45 * 2, (), 0.1)
    config.num_steps = 105 * 2
    config.optimizer = _sgd(0.05, 105 * 2, (0.5, 0.75), 0.1)
    config.steps_per_dispatch = 30


def _cifar10(config: ConfigDict) -> None:
    config.datasets = ("cifar10",)
    config.data.name = "cifar10"
    config.data.count = 50_000
    config.model.teacher, config.model.student = "wrn-22-4", "wrn-16-2"
    epochs, per_epoch = (10 if config.variant == "cifar10_ten" else 1), 50_000 // 128
    config.batch_size = 128
    config.teacher.batch_size, config.teacher.num_steps = 128, 200 * per_epoch
    config.teacher.optimizer = _sgd(0.1, 200 * per_epoch, (0.3, 0.6, 0.8), 0.2)
    config.init.batch_size, config.init.num_steps = 128, epochs * per_epoch
    config.init.optimizer = _sgd(0.1, epochs * per_epoch, (), 0.2)
    config.num_steps = epochs * per_epoch
    config.optimizer = _sgd(0.1, config.num_steps, (0.3, 0.6, 0.8), 0.2)
