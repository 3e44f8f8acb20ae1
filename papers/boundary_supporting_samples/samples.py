"""From training images to boundary supporting samples: which images, towards which class, and how.

Nothing here has a gradient: samples are inputs to the loss, as images are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from reprise.common.ops.dtypes import wide

LogitsFn = Callable[[Any], Any]  # [B, H, W, C] -> [B, K]


def select_base_samples(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    num_samples: int,
) -> tuple[Int[Array, " samples"], Bool[Array, " samples"], Float[Array, " batch"]]:
    """Images that both networks classify correctly and about which they differ most.

    score_b = sum over k != y_b of (p_t - p_s)^2 with softmaxes at temperature 1 where both are
    correct, -1 elsewhere. Those of the highest scores are taken. No gradient passes.

    Args:
      student_logits: f_s [B, K].
      teacher_logits: f_t [B, K].
      labels: y [B].
      num_samples: N, at most B. Under jit the batch is the global one.

    Returns:
      indices [N], mask [N], score [B]. The first sum(mask) indices are the selected images, best
      first. The others repeat them cyclically, so that a batch of these N holds no image that was
      not selected (BatchNorm sees the whole batch); they must not count in a loss.

    Raises:
      ValueError: shapes that do not fit, or N outside 1..B.

    Source: Heo, Lee, Yun, Choi, AAAI 2019, base sample selection; N = 64 at B = 256.
    """
    count = len(labels)
    shapes = (student_logits.shape, teacher_logits.shape)
    if student_logits.ndim != 2 or shapes[0] != shapes[1] or labels.shape != shapes[0][:1]:
        raise ValueError(
            f"select_base_samples: student_logits {shapes[0]} and teacher_logits {shapes[1]} must "
            f"be the same [B, K], labels {labels.shape} [B]"
        )
    if not 1 <= num_samples <= count:
        raise ValueError(
            f"select_base_samples: num_samples = {num_samples}: must be in 1..{count}, the batch"
        )
    student, teacher = (
        jax.nn.softmax(wide(jax.lax.stop_gradient(z))) for z in (student_logits, teacher_logits)
    )
    correct = (student_logits.argmax(-1) == labels) & (teacher_logits.argmax(-1) == labels)
    others = jnp.arange(student.shape[1]) != labels[:, None]
    difference = jnp.where(others, (teacher - student) ** 2, 0.0).sum(-1)
    score = jnp.where(correct, difference, -1.0)
    best = jax.lax.top_k(score, num_samples)[1]
    taken = jnp.minimum(correct.sum(), num_samples)
    slots = jnp.arange(num_samples)
    return best[slots % jnp.maximum(taken, 1)], slots < taken, score


def target_class_from_uniform(
    teacher_logits: Float[Array, "batch classes"], uniform: Float[Array, " batch"]
) -> Int[Array, " batch"]:
    """The class to walk towards, drawn by the teacher's probabilities without its first class.

    P(k) = p_t[k] / (1 - p_t[c]) for k != c = argmax p_t, by the inverse of the distribution over
    classes in descending order. Where the others underflow it is the runner-up. No gradient passes.

    Args:
      teacher_logits: f_t [B, K], K >= 2.
      uniform: [B] in [0, 1).

    Returns:
      int32 [B].

    Raises:
      ValueError: shapes that do not fit, or a single class.

    Source: Heo, Lee, Yun, Choi, AAAI 2019, target class sampling.
    """
    if teacher_logits.ndim != 2 or uniform.shape != teacher_logits.shape[:1]:
        raise ValueError(
            f"target_class_from_uniform: teacher_logits {teacher_logits.shape} must be [B, K], "
            f"uniform {uniform.shape} [B]"
        )
    if teacher_logits.shape[1] < 2:
        raise ValueError(f"target_class_from_uniform: {teacher_logits.shape}: needs two classes")
    order = jnp.argsort(teacher_logits, axis=-1, descending=True)[:, 1:]
    probability = jax.nn.softmax(wide(jax.lax.stop_gradient(teacher_logits)))
    cumulative = jnp.take_along_axis(probability, order, 1).cumsum(-1)
    # The last sum, not a sum of its own: rounding must not put the mark beyond every class.
    mark = jax.lax.stop_gradient(uniform)[:, None] * cumulative[:, -1:]
    first = (cumulative >= mark).argmax(-1)
    return jnp.take_along_axis(order, first[:, None], 1)[:, 0].astype(jnp.int32)


def sample_target_class(
    teacher_logits: Float[Array, "batch classes"], key: Array
) -> Int[Array, " batch"]:
    """`target_class_from_uniform` of a key: int32 [B].

    Raises:
      ValueError: teacher_logits that are not [B, K].
    """
    return target_class_from_uniform(
        teacher_logits, jax.random.uniform(key, teacher_logits.shape[:1])
    )


def boundary_supporting_samples(
    logits_fn: LogitsFn,
    images: Float[Array, "batch height width channels"],
    target_class: Int[Array, " batch"],
    step_size: float = 0.3,
    num_steps: int = 10,
    gap_epsilon: float = 1e-4,
    clip_min: float = -2.5,
    clip_max: float = 2.5,
) -> Float[Array, "batch height width channels"]:
    """Walks from images towards a class of the teacher until the teacher leaves its first class.

    With z = f_t(x), c = argmax f_t(x^0), k the target and g = d(z_k - z_c)/dx of length |g| for
    each sample: x <- clip(x + step_size (z_c - z_k + gap_epsilon) g / |g|) as long as argmax z = c.
    Steps shrink with the gap of the logits, so that the walk ends close to the boundary. A sample
    that left c, to whichever class, stays; one that never does is returned where it is. The clip is
    of all samples. No gradient passes, neither to the images nor to what `logits_fn` closes over.

    Args:
      logits_fn: [B, H, W, C] -> [B, K], a pure function in inference mode: samples must not
        influence each other.
      images: x^0, in the units that the network sees.
      target_class: k [B].
      step_size: eta.
      num_steps: I, static.
      gap_epsilon: 1e-4, so that a gap of 0 is crossed.
      clip_min, clip_max: in the images' units; -2.5 and 2.5 fit CIFAR's standardised pixels.

    Returns:
      x^I in the images' dtype; the walk is in float32 at least.

    Raises:
      ValueError: shapes that do not fit, a negative number of steps, or an empty range.

    Source: Heo, Lee, Yun, Choi, AAAI 2019; steps and clip are those of the released code, which
    divides by |g| once and has no ball around the image.
    """
    if images.ndim < 2 or target_class.shape != images.shape[:1]:
        raise ValueError(
            f"boundary_supporting_samples: images {images.shape} must be [B, H, W, C], "
            f"target_class {target_class.shape} [B]"
        )
    if num_steps < 0 or not clip_min < clip_max:
        raise ValueError(
            f"boundary_supporting_samples: num_steps = {num_steps} must be 0 or more, clip_min = "
            f"{clip_min} below clip_max = {clip_max}"
        )
    start = jax.lax.stop_gradient(wide(images))
    axes = tuple(range(1, images.ndim))
    shape = (-1,) + (1,) * len(axes)

    def logits(x: Array) -> Array:
        return wide(logits_fn(x.astype(images.dtype)))

    base = logits(start).argmax(-1)

    def step(_: int, x: Array) -> Array:
        z, pull = jax.vjp(logits, x)
        one_hot = jax.nn.one_hot(jnp.stack([target_class, base]), z.shape[1], dtype=z.dtype)
        towards = one_hot[0] - one_hot[1]
        gap = -(towards * z).sum(-1)
        (slope,) = pull(towards)
        # A saturated network has slope 0: the sample stays.
        length = jnp.sqrt((slope**2).sum(axes)) + 1e-12
        active = z.argmax(-1) == base
        by = jnp.where(active, step_size * (gap + gap_epsilon) / length, 0.0)
        return jnp.clip(x + by.reshape(shape) * slope, clip_min, clip_max)

    walked = jax.lax.fori_loop(0, int(num_steps), step, start)
    return jax.lax.stop_gradient(walked).astype(images.dtype)
