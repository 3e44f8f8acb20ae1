"""GALA, and the graph autoencoders it is compared with."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.graph import Operator, propagate, row_sums


class GraphDense(nn.Module):
    """M (X W + b) for a graph operator M: the bias is inside the operator, as in the paper.

    Glorot uniform kernels and zero biases. M is applied on the narrower side of W, which is the
    same function and cheaper.

    Attributes:
      features: width of the output.
      use_bias: whether there is b.
      dtype: of the computation; parameters are float32.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "n channels"], operator: Operator
    ) -> Float[Array, "n features"]:
        kernel = self.param(
            "kernel", nn.initializers.glorot_uniform(), (inputs.shape[-1], self.features)
        )
        shape = (self.features,)
        bias = self.param("bias", nn.initializers.zeros, shape) if self.use_bias else None
        inputs, kernel, bias = nn.dtypes.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        if self.features < inputs.shape[-1]:
            out = inputs @ kernel
            return propagate(operator, out if bias is None else out + bias)
        out = propagate(operator, inputs) @ kernel
        if bias is not None:
            out += row_sums(operator).astype(out.dtype)[:, None] * bias
        return out


class GALA(nn.Module):
    """The symmetric graph convolutional autoencoder (paper, section 3).

    Encoder H_m = relu(S (H_{m-1} W_m + b_m)), decoder H_m = relu(P (H_{m-1} W_m + b_m)); the
    widths of the decoder mirror those of the encoder. There is a ReLU after EVERY layer, the latent
    and the output included: features are taken to be non-negative.

    Attributes:
      widths: d1, ..., dL of the encoder; the last one is the latent's.
      final_activation: of the reconstruction; None for a linear one, an ablation.
      dtype: of the computation; parameters are float32.
    """

    widths: Sequence[int]
    final_activation: Callable[[Array], Array] | None = nn.relu
    dtype: Any = None

    @nn.compact
    def __call__(
        self, features: Float[Array, "n channels"], smoothing: Operator, sharpening: Operator
    ) -> tuple[Float[Array, "n k"], Float[Array, "n channels"]]:
        """Returns (latent, reconstruction).

        Args:
          features: X [n, F].
          smoothing: S of the encoder, dense [n, n] or a `SparseOperator`.
          sharpening: P of the decoder; S here too gives the control without sharpening.

        Raises:
          ValueError: no widths, or shapes that do not fit.
        """
        if not self.widths:
            raise ValueError("GALA: widths must name at least the latent's")
        if features.ndim != 2:
            raise ValueError(f"GALA: features {features.shape} must be [n, channels]")
        x = features
        for i, width in enumerate(self.widths):
            x = nn.relu(GraphDense(width, dtype=self.dtype, name=f"layer{i}")(x, smoothing))
        latent = x
        mirrored = (*self.widths[-2::-1], features.shape[-1])
        for i, width in enumerate(mirrored, len(self.widths)):
            x = GraphDense(width, dtype=self.dtype, name=f"layer{i}")(x, sharpening)
            if i + 1 < 2 * len(self.widths):
                x = nn.relu(x)
            elif self.final_activation is not None:
                x = self.final_activation(x)
        return latent, x


class GraphAutoencoder(nn.Module):
    """GAE and VGAE (Kipf and Welling, 2016): the baselines, without biases and dropout.

    Attributes:
      widths: hidden width and latent width; 32 and 16 in their paper.
      variational: VGAE.
    """

    widths: tuple[int, int] = (32, 16)
    variational: bool = False

    @nn.compact
    def __call__(
        self, features: Float[Array, "n channels"], smoothing: Operator
    ) -> tuple[Float[Array, "n k"], Float[Array, "n k"]]:
        """Returns (mean, log of the standard deviation); the latter is 0 for GAE."""
        hidden, latent = self.widths
        x = nn.relu(GraphDense(hidden, use_bias=False, name="hidden")(features, smoothing))
        mean = GraphDense(latent, use_bias=False, name="mean")(x, smoothing)
        if not self.variational:
            return mean, jnp.zeros_like(mean)
        log_std = GraphDense(latent, use_bias=False, name="log_std")(x, smoothing)
        return mean, log_std


def smoothed_features(
    features: Float[Array, "n channels"], smoothing: Operator, *, times: int = 2
) -> Float[Array, "n channels"]:
    """S S ... X: what an encoder of `times` layers does without any learning."""
    for _ in range(times):
        features = propagate(smoothing, features)
    return features


def gaussian_kl(mean: Float[Array, "n k"], log_std: Float[Array, "n k"]) -> Float[Array, " n"]:
    """KL divergence of N(mean, std^2) from N(0, 1), summed over channels: [n]."""
    return 0.5 * (mean**2 + jnp.exp(2 * log_std) - 1 - 2 * log_std).sum(-1)
