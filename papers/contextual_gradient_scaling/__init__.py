"""CxGrad (Lee, Lee, Song, WACV 2022): contextual gradient scaling for few-shot learning.

from reprise.papers.contextual_gradient_scaling import ConvNet, cxgrad_adapt, maml_adapt

adapted, stats = cxgrad_adapt(apply_fn, params, generator, images, labels, scaled_paths=paths)
"""

from reprise.papers.contextual_gradient_scaling.inner import cxgrad_adapt, maml_adapt
from reprise.papers.contextual_gradient_scaling.losses import cxgrad_query_loss, maml_query_loss
from reprise.papers.contextual_gradient_scaling.models import ConvNet
from reprise.papers.contextual_gradient_scaling.scaling import (
    context_gradient_scales,
    init_generator,
    rescale_to_norm,
)

__all__ = [
    "ConvNet",
    "context_gradient_scales",
    "cxgrad_adapt",
    "cxgrad_query_loss",
    "init_generator",
    "maml_adapt",
    "maml_query_loss",
    "rescale_to_norm",
]
