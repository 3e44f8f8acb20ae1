"""Neuro-Optimization: learned objective functions (Jeon, Lee, Choi, 2019).

    python launch.py --config=configs/learned_objective.py[:variant] [--study]

registration      1-D registration under illumination change, fresh pairs every step
registration_300  the same from 300 training pairs, where the built-in warp pays off
flow              dense optical flow of generated textured motion, against SSD + smoothness
flow_medium       the same, larger, for one GPU

The paper's networks and numbers are not known; all settings are ours. What to expect, and how long
each took on which machine, is in papers/learned_objective/README.md.
"""

from ml_collections import ConfigDict

from reprise.common import config as base

VARIANTS = ("registration", "registration_300", "flow", "flow_medium")


def get_config(variant: str = "registration") -> ConfigDict:
    config = base.defaults("learned_objective", variant, VARIANTS)
    config.model = ConfigDict()
    config.data = ConfigDict()
    config.model.arm = "learned"  # or "ssd", "znssd", "regression"; for flow "handmade"
    (_flow if variant.startswith("flow") else _registration)(config)
    return config


def _registration(config: ConfigDict) -> None:
    few = config.variant == "registration_300"
    config.num_steps = 600 if few else 1500
    config.batch_size = 64
    config.steps_per_dispatch = 50
    config.optimizer = base.optimizer("adam", 2e-3)
    config.optimizer.schedule.name = "cosine_decay_schedule"
    config.optimizer.clip_norm = 1.0
    config.model.task = "registration"
    config.model.num_inner = 8  # T, steps of the inner process in training; test also runs 2T
    config.model.step_size = 1.0  # alpha
    config.model.clip = 1.0  # largest inner step, in samples
    config.model.step_sizes = (0.3, 1.0, 3.0, 10.0, 30.0)  # of hand-crafted ones, by validation
    config.data.pairs = 300 if few else 0  # training pairs; 0: fresh ones every step


def _flow(config: ConfigDict) -> None:
    medium = config.variant == "flow_medium"
    config.num_steps = 20_000 if medium else 400
    config.batch_size = 16 if medium else 4
    config.log.every = 20
    config.study.over_seeds = "map"  # vmapped convolutions are slow on CPUs
    config.optimizer = base.optimizer("adamw", 5e-4 if medium else 2e-3, weight_decay=1e-4)
    config.optimizer.schedule.name = "cosine_decay_schedule"
    config.optimizer.clip_norm = 1.0
    config.model.task = "flow"
    config.model.features = (32, 32, 16) if medium else (8, 8, 8)
    config.model.levels = 3 if medium else 2  # of the pyramid
    config.model.num_inner = 20 if medium else 12  # T at each level
    config.model.step_size = 0.02  # alpha at the start; it is learned
    config.model.momentum = 0.8  # of the inner process, for every arm
    config.model.clip = 1.0  # largest velocity, in pixels of the level
    config.model.test_factors = (1, 2, 4, 8)  # times T at test, for every arm, by validation
    config.model.handmade_weights = (0.01, 0.03, 0.1, 0.3)  # of the smoothness, by validation
    config.model.handmade_step_sizes = (0.03, 0.1, 0.3, 1.0)  # by validation
    config.data.size = 64 if medium else 24  # pixels a side
    config.data.test = 64
