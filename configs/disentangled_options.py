"""Disentangling options with a Hellinger-distance regulariser (Hyun, Choi, Kwak, 2019).

    python launch.py --config=configs/disentangled_options.py[:variant] [--study]

fourrooms            tables in the four rooms, the goal moves after half of the steps
fourrooms_reference  the same with the moves of option-critic's code instead of its text
pointmass            Gaussian policies: a point mass among four goals, a small network
breakout             a MinAtar-style board, convolutions, 8 options, 5M steps, for one GPU

The paper's environments, weights and numbers could not be read; four rooms is option-critic's, the
weights are ours. What to expect, and how long each took on which machine, is in
papers/disentangled_options/README.md.
"""

from ml_collections import ConfigDict

from reprise.common import config as base

VARIANTS = ("fourrooms", "fourrooms_reference", "pointmass", "breakout")


def get_config(variant: str = "fourrooms") -> ConfigDict:
    config = base.defaults("disentangled_options", variant, VARIANTS)
    config.study.seeds = tuple(range(10))
    config.model = ConfigDict()
    config.model.regularizer = 0.05  # lambda, weight of the regulariser
    (_fourrooms if variant.startswith("fourrooms") else _network)(config)
    return config


def _fourrooms(config: ConfigDict) -> None:
    m = config.model
    config.num_steps = 192  # rollouts
    config.steps_per_dispatch = 8
    m.task = "fourrooms"
    m.num_envs = 1  # environments that share the tables
    m.unroll = 500  # steps of each in a rollout; every one is followed by an update
    m.num_options = 4  # O
    m.discount = 0.99
    m.epsilon = 0.01  # share of random choices of the policy over options
    m.temperature = 1.0  # of the option policies
    m.logits_std = 0.01  # of the noise in their logits at the start
    m.value_rate = 0.5  # of both critics
    m.policy_rate = 0.25  # of the option policies and the regulariser
    m.termination_rate = 0.25
    m.entropy_weight = 0.0
    m.termination_reg = 0.0  # xi
    m.slip_mode = "reference" if config.variant == "fourrooms_reference" else "replace"
    m.goal_moves_after = 48_000  # environment steps
    moved = ("hellinger_all_moved", "information_all_moved", "steps_moved")
    config.study.columns = ("hellinger_all", "information_all", "steps", *moved, "usage_entropy")
    m.test_envs = 16  # of the rollout that measures the indicators
    m.test_steps = 500


def _network(config: ConfigDict) -> None:
    board = config.variant == "breakout"
    m = config.model
    config.num_steps = 2500 if board else 800  # rollouts, each followed by an update
    config.steps_per_dispatch = 50
    config.optimizer = base.optimizer("adam", 1e-3)
    config.optimizer.clip_norm = 1.0
    m.task = config.variant
    m.num_envs = 128 if board else 32
    m.unroll = 16 if board else 8  # steps of each environment in a rollout
    m.num_options = 8 if board else 4  # O
    m.channels = (16, 32) if board else ()  # of 3x3 convolutions
    m.widths = (128,) if board else (32, 64)  # of dense layers
    m.discount = 0.99
    m.epsilon_start = 1.0  # share of random choices of the policy over options at the start,
    m.epsilon = 0.1  # and at the end
    m.epsilon_steps = config.num_steps // 10  # rollouts in between
    m.temperature = 1.0  # of discrete option policies
    m.entropy_weight = 0.01
    m.termination_reg = 0.01  # xi
    m.target_every = 50  # updates between copies into the target network
    m.test_envs = 64  # of the rollout that measures return and indicators
    m.test_steps = 1000 if board else 400
    if board:
        config.study.seeds = tuple(range(5))
