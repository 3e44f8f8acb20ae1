"""MHGD (Lee, Song, BMVC 2019).

    python launch.py --config=configs/multi_head_graph_distillation.py[:variant] [--study]

digits            100 labelled 8x8 digits and a pool of 1200 without labels, embedded: how close the
                  student's graphs come to the teacher's, and its accuracy, against it alone
cifar100          ResNet-32x4 to ResNet-8x4, the authors' benchmark; needs cifar100

What to expect, and how long it took on which machine, is in
papers/multi_head_graph_distillation/README.md.
"""

from ml_collections import ConfigDict

from reprise.common import config as base
from reprise.configs import _digits_pool

VARIANTS = ("digits", "cifar100")


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.defaults("multi_head_graph_distillation", variant, VARIANTS)
    config.model = ConfigDict()
    config.model.method = "mhgd"  # or "kd_svd", "ce", "ce_pool" (no transfer, but the pool's images
    # pass through the student's BatchNorm); all train the attention networks first
    config.model.num_heads = 8  # A
    config.model.attention_l2 = 5e-4  # times the sum of squares of the attention networks
    config.init = ConfigDict()  # the attention networks' phase
    (_digits if variant == "digits" else _cifar100)(config)
    config.init.optimizer.l2 = 0.0  # the student passes through that phase untouched
    return config


def _digits(config: ConfigDict) -> None:
    _digits_pool.fill(config)
    config.init.batch_size, config.init.num_steps = 50, 240
    config.init.optimizer = _digits_pool.sgd(0.1, 240, ())


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
    config.init.batch_size, config.init.num_steps = 128, 40 * per_epoch
    config.init.optimizer = _digits_pool.sgd(0.1, 40 * per_epoch, ())
