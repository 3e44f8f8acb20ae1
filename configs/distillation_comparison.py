"""Eight distillation papers, CE, KD, FitNets, attention transfer and FSP in one table.

    python launch.py --config=configs/distillation_comparison.py[:variant] [--study]

digits                50 labelled 8x8 digits, embedded: a pass over everything in minutes
cifar10_30k           4000 images of CIFAR-10 at 16 x 16, WRN-16-1 to WRN-10-1, five epochs
cifar10_30k_tuning    the tries among which validation accuracy chose, one seed
cifar100              the same at full size for one GPU: WRN-40-2 to WRN-16-2, 240 epochs

What to expect, and how long it took on which machine, is in the card,
papers/distillation_comparison/README.md.
"""

from ml_collections import ConfigDict

from reprise.common import config as base

VARIANTS = ("digits", "cifar10_30k", "cifar10_30k_tuning", "cifar100")


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.defaults("distillation_comparison", variant, VARIANTS)
    config.model = ConfigDict()
    config.model.method = "kd"  # one of recipe.ENTRIES
    config.model.value = 1.0  # of the field that is tuned for this method
    config.model.tuning = False  # the study runs every try instead of the chosen values
    config.data = ConfigDict()
    config.teacher, config.init = ConfigDict(), ConfigDict()
    if variant == "digits":
        _digits(config)
    elif variant == "cifar100":
        _cifar100(config)
    else:
        _cifar10_30k(config)
    return config


def _sgd(rate: float, num_steps: int, drops: tuple[float, ...], scale: float) -> ConfigDict:
    section = base.optimizer("sgd", rate, momentum=0.9, nesterov=True)
    section.l2 = 5e-4
    section.schedule.name = "piecewise_constant_schedule"
    section.schedule.args.boundaries = tuple(round(num_steps * d) for d in drops)
    section.schedule.args.scale = scale
    return section


def _budget(config: ConfigDict, batch_size: int, teacher: int, student: int) -> None:
    drops, scale = (0.6, 0.8), 0.2
    config.batch_size = batch_size
    config.teacher.batch_size, config.teacher.num_steps = batch_size, teacher
    config.teacher.optimizer = _sgd(0.1, teacher, drops, scale)
    config.num_steps = student
    config.optimizer = _sgd(0.05, student, drops, scale)
    # Of methods that initialise the student, from its updates; of others, on their own networks.
    config.init.batch_size, config.init.num_steps = batch_size, 3 * student // 10
    config.init.optimizer = _sgd(0.05, config.init.num_steps, (1.0,), 1.0)


def _digits(config: ConfigDict) -> None:
    config.data.name, config.data.count = "digits", 100
    config.model.teacher, config.model.student = "cnn-8", "cnn-8"
    _budget(config, 25, 30 * 35, 240)
    config.steps_per_dispatch = 24
    config.study.over_seeds = "map"


def _cifar10_30k(config: ConfigDict) -> None:
    config.datasets = ("cifar10_30k",)
    config.data.name, config.data.count = "cifar10_30k", 4000
    config.data.half = True  # 16 x 16
    config.model.teacher, config.model.student = "wrn-16-1", "wrn-10-1"
    _budget(config, 64, 3 * 281, 5 * 62)
    config.steps_per_dispatch = 31
    config.study.columns = ("accuracy", "official_accuracy", "val_accuracy")
    config.study.over_seeds = "map"
    if config.variant.endswith("tuning"):
        config.model.tuning = True
        config.study.seeds = (100,)  # none of the study's
    else:
        config.study.columns += ("ensemble_accuracy", "fused_accuracy")


def _cifar100(config: ConfigDict) -> None:
    config.datasets = ("cifar100",)
    config.data.name, config.data.count = "cifar100", 50_000
    config.model.teacher, config.model.student = "wrn-40-2", "wrn-16-2"
    _budget(config, 64, 240 * 781, 240 * 781)
    config.eval_every = 20 * 781
    config.checkpoint.every = 20 * 781
    config.precision = "bfloat16"
