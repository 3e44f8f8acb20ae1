"""IEP (Lee, Song, AAAI 2021).

    python launch.py --config=configs/embedding_procedure_transfer.py[:variant] [--study]

digits            100 labelled 8x8 digits and a pool of 1200 without labels, embedded: against the
                  student alone and KD-SVD, and with parts of the method
cifar100          WRN-40-4 to WRN-16-4, the paper's settings; needs cifar100
cifar100_tenth    the same for a student that sees 5,000 images

What to expect, and how long it took on which machine, is in
papers/embedding_procedure_transfer/README.md.
"""

from ml_collections import ConfigDict

from reprise.common import config as base
from reprise.configs import _digits_pool

VARIANTS = ("digits", "cifar100", "cifar100_tenth")


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.defaults("embedding_procedure_transfer", variant, VARIANTS)
    config.model = ConfigDict()
    config.model.method = "iep"  # or "kd_svd", "ce"
    # The transfer losses, each clipped by itself; also "black_box".
    config.model.terms = ("interim", "alteration")
    config.model.num_heads = 7  # of the black-box part
    config.model.incremental = True  # principal axes of all batches of phase 1, or of each batch
    config.model.num_iterations = 2  # I, of the message passing
    config.init = ConfigDict()  # phase 1, before there is a student
    (_digits if variant == "digits" else _cifar100)(config)
    return config


def _digits(config: ConfigDict) -> None:
    _digits_pool.fill(config)
    config.init.batch_size, config.init.num_steps = 50, 120
    config.init.optimizer = _digits_pool.sgd(0.1, 120, ())


def _cifar100(config: ConfigDict) -> None:
    config.datasets = ("cifar100",)
    config.data = ConfigDict()
    config.data.name = "cifar100"
    config.data.count = 5_000 if config.variant == "cifar100_tenth" else 50_000
    config.model.teacher, config.model.student = "wrn-40-4", "wrn-16-4"
    per_epoch = config.data.count // 128
    config.batch_size, config.num_steps = 128, 100 * per_epoch
    config.optimizer = _digits_pool.sgd(0.1, config.num_steps, (0.3, 0.6, 0.8), 0.2)
    config.init.batch_size, config.init.num_steps = 128, 20 * per_epoch
    config.init.optimizer = _digits_pool.sgd(0.1, config.init.num_steps, ())
    config.teacher = ConfigDict()
    steps = 100 * (50_000 // 128)
    config.teacher.batch_size, config.teacher.num_steps = 128, steps
    config.teacher.optimizer = _digits_pool.sgd(0.1, steps, (0.3, 0.6, 0.8))
