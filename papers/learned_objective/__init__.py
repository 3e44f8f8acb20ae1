"""Neuro-Optimization (Jeon, Lee, Choi, 2019): a network as the objective of an inner process.

from reprise.papers.learned_objective import inner_minimize

x = inner_minimize(objective, params, x0, context, num_steps=10, step_size=0.1)
"""

from reprise.common.ops.warp import warp_bilinear, warp_linear_1d
from reprise.papers.learned_objective.inner import inner_minimize
from reprise.papers.learned_objective.losses import end_point_error, learned_objective_loss
from reprise.papers.learned_objective.models import FlowObjective, ObjectiveMLP

__all__ = [
    "FlowObjective",
    "ObjectiveMLP",
    "end_point_error",
    "inner_minimize",
    "learned_objective_loss",
    "warp_bilinear",
    "warp_linear_1d",
]
