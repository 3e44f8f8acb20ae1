"""KD-SVD (Lee, Kim, Song, ECCV 2018).

    python launch.py --config=configs/svd_distillation.py[:variant] [--study]

digits            100 labelled 8x8 digits and a pool of 1200 without labels, embedded: against the
                  student alone and FSP, in two stages and in one
cifar100          ResNet-32x4 to ResNet-8x4, the authors' later benchmark; needs cifar100

What to expect, and how long it took on which machine, is in papers/svd_distillation/README.md.
"""

from ml_collections import ConfigDict

from reprise.common import config as base
from reprise.configs import _digits_pool

VARIANTS = ("digits", "cifar100")


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.defaults("svd_distillation", variant, VARIANTS)
    config.model = ConfigDict()
    config.model.method = "kd_svd"  # or "fsp" (two stages), "fsp_clipped" (one), "ce",
    # "ce_pool": no transfer, but the pool's images pass through the student's BatchNorm
    config.model.num_vectors = 1  # K, the teacher's singular vectors a tap
    config.model.num_extra = 3  # further candidates of the student for the alignment
    config.model.beta = 8.0  # width of the RBF
    config.model.pool_statistics = True  # the pool moves BatchNorm's running statistics, too
    config.model.fsp_weight = (
        10.0  # on FSP's loss in its first stage: of 1, 10, 100 it fell most with 10
    )
    config.init = ConfigDict()  # FSP's first stage
    (_digits if variant == "digits" else _cifar100)(config)
    return config


def _digits(config: ConfigDict) -> None:
    _digits_pool.fill(config)
    config.init.batch_size, config.init.num_steps = 50, 120
    config.init.optimizer = _digits_pool.sgd(0.05, 120, ())


def _cifar100(config: ConfigDict) -> None:
    config.datasets = ("cifar100",)
    config.data = ConfigDict()
    config.data.name, config.data.count = "cifar100", 50_000
    config.model.teacher, config.model.student = "resnetb-32-4", "resnetb-8-4"
    per_epoch = 50_000 // 128
    config.batch_size, config.num_steps = 128, 100 * per_epoch
    config.optimizer = _digits_pool.sgd(0.1, config.num_steps, (0.3, 0.6, 0.8))
    config.teacher = ConfigDict()
    config.teacher.batch_size, config.teacher.num_steps = 128, 100 * per_epoch
    config.teacher.optimizer = _digits_pool.sgd(0.1, 100 * per_epoch, (0.3, 0.6, 0.8))
    config.init.batch_size, config.init.num_steps = 128, 20 * per_epoch
    config.init.optimizer = _digits_pool.sgd(0.1, 20 * per_epoch, ())
