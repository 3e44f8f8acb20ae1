"""Procrustean Regression Networks: 3D shapes learnt from 2D points alone (Park, Lee, Kwak, 2020).

    python launch.py --config=configs/procrustean_regression.py[:variant] [--study]

generated                 a class of 12 points, K = 3, seen from all around
sequences                 four motion-capture sequences (data set nrsfm), every point seen
sequences_20              the same with 20 % of the points missing
sequences_40              the same with 40 % of the points missing
human36m_like             the paper's Human3.6M settings on generated shapes of 17 points, K = 10
human36m_like_perspective the same, seen by a pinhole camera

Human3.6M itself may not be passed on: who has it brings it. What to expect, and how long each took
on which machine, is in papers/procrustean_regression/README.md.
"""

from ml_collections import ConfigDict

from reprise.common import config as base

VARIANTS = (
    "generated",
    "sequences",
    "sequences_20",
    "sequences_40",
    "human36m_like",
    "human36m_like_perspective",
)


def get_config(variant: str = "generated") -> ConfigDict:
    config = base.defaults("procrustean_regression", variant, VARIANTS)
    model = config.model = ConfigDict()
    model.method = "prn"  # sequences also: "fit", no network; "low_rank", the baseline
    model.alignment = "exact"  # or "detached": rotations constant in the gradient; "none": R = I
    model.reg_weight = 0.05  # lambda, of the nuclear norm
    model.group = 32  # F, frames that are aligned to each other; batch_size must divide by it
    model.num_iters = 30  # most iterations of the alignment
    model.tol = 1e-12  # mean square change of the mean shape that ends it; 0: never
    model.width = 256  # of the network's hidden layers
    model.momentum = 0.99  # share of BatchNorm's running statistics kept each step
    model.frozen_steps = 0  # updates after num_steps with BatchNorm's statistics frozen
    config.data = ConfigDict()
    config.data.missing = 0.0  # share of the points that are not seen
    config.batch_size = 128  # frames a step, of each sequence
    if variant.startswith("sequences"):
        _sequences(config)
    else:
        _generated(config)
    return config


def _staircase(num_steps: int, every: int) -> ConfigDict:
    """Adam whose rate falls to 0.8 of itself every so many steps."""
    section = base.optimizer("adam", 1e-3)
    section.schedule.name = "piecewise_constant_schedule"
    section.schedule.args.boundaries = tuple(range(every, num_steps, every))
    section.schedule.args.scale = 0.8
    return section


def _generated(config: ConfigDict) -> None:
    config.num_steps = 1500
    config.steps_per_dispatch = 50
    config.optimizer = _staircase(1500, 150)
    config.data.name = "generated"
    config.data.points = 12  # P
    config.data.bases = 3  # K
    config.data.train = 4000  # frames
    config.data.test = 1000  # other frames of the class
    config.data.distance = 0.0  # of a pinhole camera, in units of the shape; 0: orthographic
    if config.variant.startswith("human36m_like"):
        # The paper's: 50 000 updates, then 70 000 with frozen statistics from those weights.
        config.num_steps = 50_000
        config.model.frozen_steps = 70_000
        config.model.width = 1024
        config.model.momentum = 0.999
        config.model.tol = 0.0  # loops of fixed length suit accelerators
        config.optimizer = _staircase(70_000, 5000)
        config.optimizer.learning_rate = 1e-4
        config.optimizer.l2 = 1e-4
        config.steps_per_dispatch = 100
        config.data.points = 17
        config.data.bases = 10
        config.data.train = 200_000
        config.data.test = 10_000
        if config.variant.endswith("perspective"):
            config.data.distance = 10.0


def _sequences(config: ConfigDict) -> None:
    config.datasets = ("nrsfm",)
    config.data.missing = {"sequences_20": 0.2, "sequences_40": 0.4}.get(config.variant, 0.0)
    config.num_steps = 1000
    config.batch_size = 32
    config.steps_per_dispatch = 50
    config.optimizer = base.optimizer("adam", 1e-3)
    config.optimizer.schedule.name = "cosine_decay_schedule"
    config.model.width = 128
    config.model.fit_steps = 200  # updates of the shapes, where there is no network
    config.model.fit_learning_rate = 3e-2
    # K of the baseline's cameras, chosen on a sequence that is not among these.
    config.model.num_bases = {0.0: 6, 0.2: 3, 0.4: 2}[config.data.missing]
    config.model.low_rank_iters = 300  # of the baseline's ADMM
    config.data.name = "nrsfm"
    config.data.sequences = ("drink", "pickup", "yoga", "stretch")
    config.data.frames = 64  # of each, at equal distances
    config.data.animated = "yoga"  # the sequence that the study makes move
