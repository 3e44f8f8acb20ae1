"""The black-box part: attention graphs after MHGD, of points instead of singular vectors."""

from typing import Any

import jax
from jaxtyping import Array, Float

from reprise.papers.embedding_procedure_transfer.layers import Params
from reprise.papers.multi_head_graph_distillation import (
    attention_graph_loss,
    attention_logits,
    estimate_back_vectors,
    init_params,
)


def black_box_init(
    key: jax.Array, back_width: int, front_width: int, num_heads: int = 7
) -> dict[str, Array]:
    """Parameters and statistics of the attention heads of one pair of taps.

    They are `multi_head_graph_distillation.init_params` with room for one given graph.
    """
    return init_params(key, front_width, back_width, num_heads, num_given=1)


def black_box_estimation_loss(
    params: Params,
    back: Float[Array, "batch db"],
    front: Float[Array, "batch df"],
    messages: Float[Array, "batch batch d"],
    keep_mask: Float[Array, "heads batch 1"],
    *,
    num_iterations: int = 2,
    num_heads: int = 7,
) -> tuple[Float[Array, " batch"], dict[str, Array]]:
    """What trains the heads: 1 - estimate . back, where their graphs carry the front points: [B].

    Beside the heads' graphs the estimator has X_ij = I mean_d messages_ij, as it is: what the
    message passing explains, the heads need not. `back` is not normalised, so a loss may be below
    0. No gradient passes to the points or the messages.

    Args:
      params: see `black_box_init`.
      back, front: the teacher's points at the two taps.
      messages: [B, B, I D], of `message_passing` for the same points.
      keep_mask: of `multi_head_graph_distillation.sample_head_mask` with num_heads + 1 heads.
      num_iterations: I.
      num_heads: A.

    Returns:
      (loss, new running statistics by the names of `params`).

    Raises:
      ValueError: shapes that do not fit.

    Source: Lee, Song, AAAI 2021, as coded.
    """
    back, front, messages = jax.lax.stop_gradient((back, front, messages))
    logits, statistics = attention_logits(params, back, front, num_heads=num_heads, train=True)
    known = num_iterations * messages.mean(-1)
    estimate = estimate_back_vectors(params, front, logits, keep_mask, given=known[None])
    return 1 - (estimate * back).sum(-1), statistics


def black_box_knowledge_loss(
    params: Params,
    student_back: Float[Array, "batch db"],
    student_front: Float[Array, "batch df"],
    teacher_back: Float[Array, "batch db"],
    teacher_front: Float[Array, "batch df"],
    *,
    num_heads: int = 7,
) -> Float[Array, " batch"]:
    """KL(student || teacher) of the rows of softmax(tanh(S)), summed over heads: [B].

    The same heads, in inference mode, see either network's points. No gradient passes to the
    teacher or to `params`.

    Args:
      params: see `black_box_init`; trained on the teacher before.
      student_back, student_front: the student's points at the two taps, front to back in depth.
      teacher_back, teacher_front: the teacher's, of the same shapes.
      num_heads: A.

    Raises:
      ValueError: shapes that do not fit.

    Source: Lee, Song, AAAI 2021, black-box knowledge.
    """
    params = jax.lax.stop_gradient(dict(params))
    ours: Any = attention_logits(params, student_back, student_front, num_heads=num_heads)
    theirs: Any = attention_logits(params, teacher_back, teacher_front, num_heads=num_heads)
    return attention_graph_loss(ours, theirs)
