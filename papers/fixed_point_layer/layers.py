"""Linen modules: the fixed-point layer around any cell, and the paper's two forms."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.conv import conv_general_dilated
from reprise.papers.fixed_point_layer.fixed_point import (
    FixedPointStats,
    fixed_point,
    gradient_step_map,
)

Dtype = Any


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for linear layers and their biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class FixedPoint(nn.Module):
    """The limit of x <- cell(x, y) as a layer; `unroll` turns it into its feed-forward relative.

    Attributes:
      cell: module (x, y) -> like x, or (x, y) -> [B] where `step_size` is set. Without batch
        statistics, dropout or other state: the iteration needs one fixed map.
      step_size: 0: the cell is the map itself (FPI_NN). Else the cell is an energy and the map is
        one gradient step of this size on it (FPI_GD).
      unroll: 0: iterate to the limit. k: apply the map k times and back-propagate through them.
      solver, tol, max_iter, damping, relative, backward_solver, backward_tol, backward_max_iter:
        see `fixed_point`.
    """

    cell: nn.Module
    step_size: float = 0.0
    unroll: int = 0
    solver: str = "picard"
    tol: float = 1e-10
    max_iter: int = 100
    damping: float = 1.0
    relative: bool = True
    backward_solver: str | None = None
    backward_tol: float | None = None
    backward_max_iter: int | None = None

    @nn.compact
    def __call__(self, y: Any, x0: Any) -> tuple[Any, FixedPointStats]:
        """y: pytree [B, ...]; x0: pytree [B, ...], the start. Returns (x*, statistics)."""
        if self.is_initializing():
            self.cell(x0, y)
        params = self.cell.variables["params"]
        g = self.map()
        if self.unroll:
            x = x0
            for _ in range(self.unroll):
                x = g(params, x, y)
            batch = jax.tree.leaves(x0)[0].shape[0]
            stats = FixedPointStats(
                jnp.asarray(self.unroll, jnp.int32),
                jnp.zeros((batch,), jnp.float32),
                jnp.ones((batch,), bool),
            )
            return x, stats
        return fixed_point(
            g,
            params,
            y,
            x0,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_iter,
            damping=self.damping,
            relative=self.relative,
            backward_solver=self.backward_solver,
            backward_tol=self.backward_tol,
            backward_max_iter=self.backward_max_iter,
        )

    def map(self) -> Any:
        """g(params, x, y) for `fixed_point` and `spectral_radius`; params are the cell's."""
        cell = self.cell.clone(parent=None)

        def apply(params: Any, x: Any, y: Any) -> Any:
            return cell.apply({"params": params}, x, y)

        return gradient_step_map(apply, self.step_size) if self.step_size else apply


class _HiddenOfBoth(nn.Module):
    """relu(W [y, x] + b) of [y, x] concatenated, with W's part for y applied outside the iteration.

    y does not change between iterations, so W_y y + b is handed in as `y`.
    """

    features: int
    fan_in: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch n"], y: Float[Array, "batch hidden"]) -> Array:
        kernel = self.param("kernel", torch_uniform(self.fan_in), (x.shape[-1], self.features))
        return nn.relu(x @ kernel.astype(x.dtype) + y)


class _NNCell(nn.Module):
    """sigmoid(W2 relu(W1 [y, x] + b1) + b2)."""

    features: int
    fan_in: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch n"], y: Float[Array, "batch hidden"]) -> Array:
        hidden = _HiddenOfBoth(self.features, self.fan_in, name="hidden")(x, y)
        init = torch_uniform(self.features)
        out = nn.Dense(x.shape[-1], kernel_init=init, bias_init=init, dtype=x.dtype, name="out")
        return nn.sigmoid(out(hidden))


class _EnergyCell(nn.Module):
    """E(x, y) = mean over units of relu(W1 [y, sigmoid(x)] + b1)^2, one scalar an example."""

    features: int
    fan_in: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch n"], y: Float[Array, "batch hidden"]) -> Array:
        hidden = _HiddenOfBoth(self.features, self.fan_in, name="hidden")(nn.sigmoid(x), y)
        return (hidden**2).mean(-1)


class _MultiLabel(nn.Module, kw_only=True):
    """What FPINN and FPIGD share: W_y y + b once, then the iteration over x from zeros."""

    unroll: int = 0
    solver: str = "picard"
    tol: float = 1e-8
    max_iter: int = 4000
    relative: bool = True
    backward_solver: str | None = None
    backward_tol: float | None = None
    backward_max_iter: int | None = None
    dtype: Dtype = jnp.float32

    def limit(
        self,
        y: Float[Array, "batch inputs"],
        make_cell: Any,
        features: int,
        num_labels: int,
        step_size: float = 0.0,
    ) -> tuple[Array, dict[str, Any]]:
        fan_in = y.shape[-1] + num_labels
        init = torch_uniform(fan_in)
        projected = nn.Dense(
            features, kernel_init=init, bias_init=init, dtype=self.dtype, name="input"
        )(y)
        layer = FixedPoint(
            cell=make_cell(features, fan_in, name="cell"),
            step_size=step_size,
            unroll=self.unroll,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_iter,
            relative=self.relative,
            backward_solver=self.backward_solver,
            backward_tol=self.backward_tol,
            backward_max_iter=self.backward_max_iter,
            name="fixed_point",
        )
        x, stats = layer(projected, jnp.zeros((y.shape[0], num_labels), self.dtype))
        return x, {"input": projected, "stats": stats}


class FPINN(_MultiLabel):
    """FPI_NN for multi-label classification: x* = sigmoid(W2 relu(W1 [y, x*] + b1) + b2).

    Jeon, Lee, Choi (2021); Bibtex: 1836 inputs, 600 features, 159 labels: 1,293,159 parameters.

    Attributes:
      features: hidden width.
      num_labels: size of x.
      unroll: 0 for the limit; 1 is the feed-forward network of the same parameters.
      solver, tol, max_iter, relative: see `fixed_point`.
      dtype: of the computation.

    Call: y [B, inputs] -> (probabilities [B, num_labels], taps), where taps holds `input`
    (W_y y + b, [B, features]) and `stats`.
    """

    features: int = 600
    num_labels: int = 159

    @nn.compact
    def __call__(self, y: Float[Array, "batch inputs"]) -> tuple[Array, dict[str, Any]]:
        return self.limit(y, _NNCell, self.features, self.num_labels)


class FPIGD(_MultiLabel):
    """FPI_GD: x* minimises the energy mean_k relu(W [y, sigmoid(x)] + b)_k^2 by gradient steps.

    Jeon, Lee, Choi (2021). The prediction is sigmoid(x*).

    Attributes:
      features: hidden width.
      step_size: alpha, above 0.
      num_labels: size of x.
      solver, tol, max_iter, relative: see `fixed_point`; the paper's rule is absolute, 1e-4.
      backward_max_iter: products with J^T. The energy sees x through a sigmoid alone, so that for
        a label that is off its slope never vanishes: the limit lies at minus infinity, and I - J
        is nearly singular on the way. Few products, as the official code in effect takes, give a
        gradient that trains.
      dtype: of the computation.

    Call: y [B, inputs] -> (logits [B, num_labels], taps), taps as of `FPINN`.
    """

    features: int = 512
    step_size: float = 1.0
    num_labels: int = 159
    tol: float = dataclasses.field(default=1e-4, kw_only=True)
    relative: bool = dataclasses.field(default=False, kw_only=True)

    @nn.compact
    def __call__(self, y: Float[Array, "batch inputs"]) -> tuple[Array, dict[str, Any]]:
        if self.step_size <= 0:
            raise ValueError(f"FPIGD: step_size = {self.step_size}: must be above 0")
        return self.limit(y, _EnergyCell, self.features, self.num_labels, self.step_size)


class MLP(nn.Module):
    """The feed-forward baseline of the same width: y [B, inputs] -> logits [B, num_labels]."""

    features: int
    num_labels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, y: Float[Array, "batch inputs"]) -> tuple[Array, dict[str, Any]]:
        first, second = torch_uniform(y.shape[-1]), torch_uniform(self.features)
        hidden = nn.relu(
            nn.Dense(
                self.features, kernel_init=first, bias_init=first, dtype=self.dtype, name="hidden"
            )(y)
        )
        logits = nn.Dense(
            self.num_labels, kernel_init=second, bias_init=second, dtype=self.dtype, name="out"
        )(hidden)
        return logits, {"hidden": hidden}


def conv_norm(
    kernel: Float[Array, "kh kw c_in c_out"], num_iters: int = 10, grid: int = 8
) -> Float[Array, ""]:
    """Spectral norm of a convolution, from the Fourier transform of its kernel.

    A periodic convolution is one matrix [c_out, c_in] a frequency, and its norm the largest of
    theirs (Sedghi, Gupta, Long, ICLR 2019). Here on a grid x grid of frequencies, by `num_iters`
    power iterations on each: slightly below the true norm. Zero padding does not exceed the
    periodic norm. Differentiable.
    """
    matrices = jnp.fft.fft2(kernel.astype(jnp.float32), (grid, grid), axes=(0, 1))
    matrices = matrices.reshape(-1, *kernel.shape[2:])

    def normalised(v: Array) -> Array:
        return v / jnp.maximum(jnp.linalg.norm(v, axis=-1, keepdims=True), 1e-12)

    # The vectors are constants of the gradient: d||A|| = Re(u^H dA v) at the singular pair.
    fixed = jax.lax.stop_gradient(matrices)
    v = normalised(jnp.ones((len(fixed), kernel.shape[3]), jnp.complex64))
    for _ in range(num_iters):
        u = normalised(jnp.einsum("fio,fo->fi", fixed, v))
        v = normalised(jnp.einsum("fio,fi->fo", fixed.conj(), u))
    u = normalised(jnp.einsum("fio,fo->fi", fixed, v))
    return jnp.einsum("fi,fio,fo->f", u.conj(), matrices, v).real.max()


def smoothing(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """A 3x3 binomial kernel on every channel by itself, norm 1, plus a little noise.

    As W of `Denoiser` the limit is at first a wide low-pass filter of the features; a random W of
    the same norm hardly reaches beyond its neighbours.
    """
    row = jnp.array([0.25, 0.5, 0.25], dtype)
    kernel = (row[:, None] * row)[..., None, None] * jnp.eye(shape[2], shape[3], dtype=dtype)
    noise = jax.random.normal(key, shape, dtype) / math.sqrt(9 * shape[2])
    return kernel + 0.1 * noise


class _ConvCell(nn.Module):
    """relu(gain W x + h): one convolution of the features x; h is what the image contributes."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], y: Any) -> Float[Array, "batch h w c"]:
        projected, gain = y
        conv = nn.Conv(
            x.shape[-1],
            (3, 3),
            use_bias=False,
            kernel_init=smoothing,
            dtype=self.dtype,
            conv_general_dilated=conv_general_dilated,
            name="conv",
        )
        return nn.relu(conv(x * gain.astype(x.dtype)) + projected)


class Denoiser(nn.Module):
    """y + R x*, where the features x* = relu(gain W x* + U y + b) of an image y are a limit.

    U, W and R are 3x3 convolutions. gain = min(1, contraction / ||W||), with W's spectral norm,
    makes the map a contraction throughout the training; without it training drives the map beyond
    one, where neither iteration converges. It touches the way of x alone: applied once from x = 0
    the module is the plain two-layer network y + R relu(U y + b).

    Attributes:
      channels: of the image.
      features: channels of x.
      contraction: bound on the Lipschitz constant in x.
      unroll, solver, tol, max_iter: see `FixedPoint`.
      dtype: of the computation.

    Call: y [B, H, W, channels] -> (restored image, taps): `stats`, `x` (x*), and `y`, what the
    iterated map takes as y.
    """

    channels: int = 1
    features: int = 32
    contraction: float = 0.9
    unroll: int = 0
    solver: str = "picard"
    tol: float = 1e-6
    max_iter: int = 50
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        conv: dict[str, Any] = {"kernel_size": (3, 3), "dtype": self.dtype}
        self.conv_y = nn.Conv(self.features, **conv)
        self.out = nn.Conv(self.channels, **conv)
        self.fixed_point = FixedPoint(
            cell=_ConvCell(self.dtype),
            unroll=self.unroll,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_iter,
        )

    def __call__(self, y: Float[Array, "batch h w c"]) -> tuple[Array, dict[str, Any]]:
        # What does not depend on x is computed once, outside the iteration.
        projected = self.conv_y(y)
        gain = jnp.ones((len(y), 1, 1, 1), jnp.float32)
        if not self.is_initializing():
            kernel = self.fixed_point.variables["params"]["cell"]["conv"]["kernel"]
            norm = jnp.maximum(conv_norm(kernel), 1e-12)
            gain = gain * jnp.minimum(1.0, self.contraction / norm)
        x, stats = self.fixed_point((projected, gain), jnp.zeros_like(projected))
        return y + self.out(x), {"stats": stats, "x": x, "y": (projected, gain)}


class MazeCell(nn.Module):
    """One step of value propagation: sigmoid(Conv1x1(relu(Conv3x3([x, y]))))."""

    features: int = 16

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch h w 1"], y: Float[Array, "batch h w 2"]
    ) -> Float[Array, "batch h w 1"]:
        conv = nn.Conv(
            self.features, (3, 3), conv_general_dilated=conv_general_dilated, name="conv"
        )
        h = nn.relu(conv(jnp.concatenate([x, y], -1)))
        return nn.sigmoid(nn.Conv(1, (1, 1), name="out")(h))
