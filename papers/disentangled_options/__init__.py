"""Disentangling options by a Hellinger-distance regulariser (Hyun, Choi, Kwak, 2019).

from reprise.papers.disentangled_options import hellinger_regularizer

loss = option_critic_loss - 0.05 * hellinger_regularizer(option_logits).mean()
"""

from reprise.papers.disentangled_options.environments import (
    breakout_reset,
    breakout_step,
    fourrooms_reset,
    fourrooms_step,
    point_mass_reset,
    point_mass_step,
)
from reprise.papers.disentangled_options.gaussian import (
    gaussian_hellinger_distance,
    gaussian_hellinger_regularizer,
    gaussian_intra_option_policy_loss,
)
from reprise.papers.disentangled_options.indicators import (
    gaussian_option_indicators,
    option_indicators,
)
from reprise.papers.disentangled_options.losses import (
    hellinger_distance,
    hellinger_regularizer,
    intra_option_policy_loss,
    option_critic_value_loss,
    option_value_target,
    termination_loss,
)
from reprise.papers.disentangled_options.models import OptionNetwork

__all__ = [
    "OptionNetwork",
    "breakout_reset",
    "breakout_step",
    "fourrooms_reset",
    "fourrooms_step",
    "gaussian_hellinger_distance",
    "gaussian_hellinger_regularizer",
    "gaussian_intra_option_policy_loss",
    "gaussian_option_indicators",
    "hellinger_distance",
    "hellinger_regularizer",
    "intra_option_policy_loss",
    "option_critic_value_loss",
    "option_indicators",
    "option_value_target",
    "point_mass_reset",
    "point_mass_step",
    "termination_loss",
]
