"""Overhaul of feature distillation (Heo, Kim, Yun, Park, Kwak, Choi, ICCV 2019).

    python launch.py --config=configs/overhaul_distillation.py[:variant] [--study]

digits            200 labelled 8x8 digits, embedded: the method, its choices undone, KD, CE alone
cifar100          WRN-28-4 to WRN-16-2, the paper's settings: 24.1 % error, 27.3 % alone
cifar100_short    the same in 60 epochs
cifar100_depth    WRN-28-4 to WRN-16-4: 20.9 % error, 22.7 % alone
cifar100_width    WRN-28-4 to WRN-28-2: 22.0 % error, 24.9 % alone

What to expect, and how long each took on which machine, is in
papers/overhaul_distillation/README.md. The errors above are the paper's.
"""

from ml_collections import ConfigDict

from reprise.common import config as base

VARIANTS = ("digits", "cifar100", "cifar100_short", "cifar100_depth", "cifar100_width")


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.defaults("overhaul_distillation", variant, VARIANTS)
    config.model = ConfigDict()
    config.model.method = "ofd"  # or "l2", "fitnet", "kd", "ce"
    config.model.taps = ("stage1_pre", "stage2_pre", "stage3_pre")  # of both networks, pre-ReLU
    config.model.alpha = 1e-3  # weight of the sum over units
    config.model.more_alphas = ()  # the study also measures ofd, l2 and fitnet with these
    config.model.batch_statistics = True  # the teacher's BatchNorm normalises by the batch
    config.data = ConfigDict()
    config.teacher = ConfigDict()
    (_digits if variant == "digits" else _cifar100)(config)
    return config


def _sgd(rate: float, num_steps: int, drops: tuple[float, ...]) -> ConfigDict:
    section = base.optimizer("sgd", rate, momentum=0.9, nesterov=True)
    section.l2 = 5e-4
    section.schedule.name = "piecewise_constant_schedule"
    section.schedule.args.boundaries = tuple(round(num_steps * d) for d in drops)
    section.schedule.args.scale = 0.1
    return section


def _digits(config: ConfigDict) -> None:
    config.study.seeds = tuple(range(10))
    config.study.over_seeds = "map"  # vmapped convolutions are slow on CPUs
    config.data.name = "digits"
    config.data.count = 200  # labelled examples of the student
    config.model.teacher, config.model.student = "cnn-16", "cnn-4"
    config.model.alpha = 3e-3  # 8x8 maps have far fewer units than 32x32
    config.model.more_alphas = (3e-2,)  # best for ofd on the digits that the student does not see
    config.teacher.batch_size, config.teacher.num_steps = 64, 30 * 14
    config.teacher.optimizer = _sgd(0.1, 30 * 14, (0.5, 0.75))
    config.batch_size, config.num_steps = 32, 100 * 6
    config.optimizer = _sgd(0.05, 100 * 6, (0.5, 0.75))
    config.steps_per_dispatch = 60


def _cifar100(config: ConfigDict) -> None:
    config.datasets = ("cifar100",)
    config.data.name = "cifar100"
    config.data.count = 50_000
    config.model.teacher, config.model.student = {
        "cifar100_depth": ("wrn-28-4", "wrn-16-4"),
        "cifar100_width": ("wrn-28-4", "wrn-28-2"),
    }.get(config.variant, ("wrn-28-4", "wrn-16-2"))
    epochs, per_epoch = (60 if config.variant == "cifar100_short" else 200), 50_000 // 128
    config.teacher.batch_size, config.teacher.num_steps = 128, 200 * per_epoch
    config.teacher.optimizer = _sgd(0.1, 200 * per_epoch, (0.5, 0.75))
    config.batch_size, config.num_steps = 128, epochs * per_epoch
    config.optimizer = _sgd(0.1, config.num_steps, (0.5, 0.75))
