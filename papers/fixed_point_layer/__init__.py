"""Fixed-Point Iteration Layer (Jeon, Lee, Choi, 2021): the limit of an iteration as a layer.

from reprise.papers.fixed_point_layer import fixed_point

x, stats = fixed_point(g, params, y, x0, solver="anderson")   # x = g(params, x, y)
"""

from reprise.papers.fixed_point_layer.fixed_point import (
    FixedPointStats,
    fixed_point,
    gradient_step_map,
    neumann_vjp,
    spectral_radius,
)
from reprise.papers.fixed_point_layer.layers import (
    FPIGD,
    FPINN,
    MLP,
    Denoiser,
    FixedPoint,
    MazeCell,
)
from reprise.papers.fixed_point_layer.metrics import binary_cross_entropy, multilabel_f1
from reprise.papers.fixed_point_layer.solvers import anderson_step

__all__ = [
    "FPIGD",
    "FPINN",
    "MLP",
    "Denoiser",
    "FixedPoint",
    "FixedPointStats",
    "MazeCell",
    "anderson_step",
    "binary_cross_entropy",
    "fixed_point",
    "gradient_step_map",
    "multilabel_f1",
    "neumann_vjp",
    "spectral_radius",
]
