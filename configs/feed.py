"""FEED: feature-level ensembles for knowledge distillation (Park, Kwak, 2019).

    python launch.py --config=configs/feed.py[:variant] [--study]

digits            3 teachers, 100 labelled 8x8 digits, embedded: against one teacher, KD, CE alone
cifar100          5 WRN-28-10 teach a sixth, with the constants of factor transfer
cifar100_small    5 WRN-16-2 teach a sixth

What to expect, and how long each took on which machine, is in papers/feed/README.md.
"""

from ml_collections import ConfigDict

from reprise.common import config as base

VARIANTS = ("digits", "cifar100", "cifar100_small")


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.defaults("feed", variant, VARIANTS)
    config.model = ConfigDict()
    config.model.method = "pfeed"  # or "sfeed", "kd", "ce"
    config.model.num_teachers = 5  # trained together from different seeds
    config.model.use_teachers = 0  # learn from the first so many; 0: all; 1: factor transfer
    config.model.tap = "stage3"  # of both networks
    config.model.rate = 0.5  # k: channels of a factor over the teacher's
    config.model.beta = 500.0  # weight of each teacher; scale it with sqrt(h w K)
    config.model.teacher_reduction = "sum"  # over teachers, or "mean"
    config.model.shared_translator = False  # ablation: one translator for all teachers
    config.model.generations = 2  # of sfeed, after the first student
    config.model.sequential_beta = 500.0  # beta of sfeed in the study, whose factors are smaller
    config.model.temperature = 4.0  # of kd
    config.data = ConfigDict()
    config.teacher, config.init = ConfigDict(), ConfigDict()  # init: the paraphrasers
    (_digits if variant == "digits" else _cifar100)(config)
    return config


def _sgd(rate: float, num_steps: int, *, nesterov: bool, drops: tuple[float, ...]) -> ConfigDict:
    section = base.optimizer("sgd", rate, momentum=0.9, nesterov=nesterov)
    section.l2 = 5e-4
    if drops:
        section.schedule.name = "piecewise_constant_schedule"
        section.schedule.args.boundaries = tuple(round(num_steps * d) for d in drops)
        section.schedule.args.scale = 0.1
    return section


def _digits(config: ConfigDict) -> None:
    config.study.seeds = tuple(range(10))
    config.study.over_seeds = "map"  # vmapped convolutions are slow on CPUs
    config.data.name = "digits"
    config.data.count = 100  # labelled examples of the student
    config.model.teacher, config.model.student = "cnn-16", "cnn-4"
    config.model.num_teachers = 3
    config.model.beta = 100.0  # 2 x 2 x 32 elements
    config.model.sequential_beta = 50.0  # 2 x 2 x 8 elements
    config.teacher.batch_size, config.teacher.num_steps = 64, 10 * 14
    config.teacher.optimizer = _sgd(0.1, 10 * 14, nesterov=True, drops=(0.5, 0.75))
    config.init.batch_size, config.init.num_steps = 64, 8 * 14
    config.init.optimizer = base.optimizer("adam", 1e-3)
    config.batch_size, config.num_steps = 25, 60 * 4
    config.optimizer = _sgd(0.05, 60 * 4, nesterov=True, drops=(0.5, 0.75))
    config.steps_per_dispatch = 28


def _cifar100(config: ConfigDict) -> None:
    config.datasets = ("cifar100",)
    config.data.name = "cifar100"
    config.data.count = 50_000
    small = config.variant == "cifar100_small"
    config.model.teacher = config.model.student = "wrn-16-2" if small else "wrn-28-10"
    # 500 for the 8 x 8 x 32 elements of factor transfer; here 8 x 8 x 64, 8 x 8 x 320.
    config.model.beta = config.model.sequential_beta = 707.0 if small else 1581.0
    per_epoch = 50_000 // 128
    for section in (config.teacher, config):
        section.batch_size, section.num_steps = 128, 164 * per_epoch
        section.optimizer = _sgd(0.1, 164 * per_epoch, nesterov=False, drops=(0.5, 0.75))
    config.init.batch_size, config.init.num_steps = 128, 6 * per_epoch
    config.init.optimizer = _sgd(0.1, 6 * per_epoch, nesterov=False, drops=())
