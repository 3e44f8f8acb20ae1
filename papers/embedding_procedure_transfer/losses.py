"""What the student learns from the teacher's embedding procedure: its result and its steps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.dtypes import wide
from reprise.papers.embedding_procedure_transfer.layers import Params, message_passing


def affinity_kl(
    p_logits: Float[Array, "batch batch"], q_logits: Float[Array, "batch batch"]
) -> Float[Array, " batch"]:
    """KL(softmax_j p_i || softmax_j q_i) of every row: [B], in float32 at least.

    Of the teacher's cosines and what `message_passing` makes of its points, summed over rows, it is
    the loss that trains the message passing.

    Raises:
      ValueError: shapes that differ or are not [B, B].

    Source: Lee, Song, AAAI 2021.
    """
    shape = jnp.shape(p_logits)
    if len(shape) != 2 or shape[0] != shape[1] or shape != jnp.shape(q_logits):
        raise ValueError(
            f"affinity_kl: p_logits {shape} and q_logits {jnp.shape(q_logits)} must be the same "
            "[B, B]"
        )
    log_p, log_q = jax.nn.log_softmax(wide(p_logits)), jax.nn.log_softmax(wide(q_logits))
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def interim_knowledge_loss(
    teacher_affinity: Float[Array, "batch batch"], student_affinity: Float[Array, "batch batch"]
) -> Float[Array, " batch"]:
    """KL(softmax_j R_T || softmax_j R_S) of every row: [B]. No gradient passes to the teacher.

    Raises:
      ValueError: shapes that differ or are not [B, B].

    Source: Lee, Song, AAAI 2021, interim knowledge.
    """
    return affinity_kl(jax.lax.stop_gradient(teacher_affinity), student_affinity)


def alteration_knowledge_loss(
    teacher_messages: Float[Array, "batch batch d"], student_messages: Float[Array, "batch batch d"]
) -> Float[Array, ""]:
    """Mean over pairs of sum_d |Msg_S - Msg_T|: a scalar. No gradient passes to the teacher.

    Raises:
      ValueError: shapes that differ or are not [B, B, I D].

    Source: Lee, Song, AAAI 2021, alteration knowledge.
    """
    shape = jnp.shape(teacher_messages)
    if len(shape) != 3 or shape != jnp.shape(student_messages):
        raise ValueError(
            f"alteration_knowledge_loss: teacher_messages {shape} and student_messages "
            f"{jnp.shape(student_messages)} must be the same [B, B, I D]"
        )
    difference = wide(student_messages) - jax.lax.stop_gradient(wide(teacher_messages))
    return jnp.abs(difference).sum(-1).mean()


def embedding_procedure_losses(
    params: Params,
    student_back: Float[Array, "batch db"],
    student_front: Float[Array, "batch df"],
    teacher_back: Float[Array, "batch db"],
    teacher_front: Float[Array, "batch df"],
    *,
    num_iterations: int = 2,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Both losses of one pair of consecutive taps: two scalars.

    The same frozen `message_passing`, in inference mode, runs on either network's points. No
    gradient passes to the teacher or to `params`.

    Args:
      params: see `layers.message_passing_init`; trained on the teacher before.
      student_back, student_front: the student's points at the two taps, front to back in depth.
      teacher_back, teacher_front: the teacher's, of the same shapes.
      num_iterations: I.

    Returns:
      (`interim_knowledge_loss` summed over rows, `alteration_knowledge_loss`).

    Raises:
      ValueError: shapes that do not fit.

    Source: Lee, Song, AAAI 2021.
    """
    pairs = {"back": (student_back, teacher_back), "front": (student_front, teacher_front)}
    for name, (one, other) in pairs.items():
        if jnp.shape(one) != jnp.shape(other):
            raise ValueError(
                f"embedding_procedure_losses: student_{name} {jnp.shape(one)} and teacher_{name} "
                f"{jnp.shape(other)} must be the same"
            )
    params = jax.lax.stop_gradient(params)
    theirs = message_passing(params, teacher_back, teacher_front, num_iterations=num_iterations)
    ours = message_passing(params, student_back, student_front, num_iterations=num_iterations)
    interim = interim_knowledge_loss(theirs[0], ours[0]).sum()
    return interim, alteration_knowledge_loss(theirs[1], ours[1])
