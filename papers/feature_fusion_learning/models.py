"""Networks side by side, with or without shared stages, and their fusion."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.papers.feature_fusion_learning.layers import CONV_INIT, FusionModule, dense


class ParallelNetworks(nn.Module):
    """M networks of one kind or of several that share nothing but their input.

    Attributes:
      networks: modules, image, train -> (logits, taps); each is initialised by itself.
      tap: name of each network's last map, after its ReLU and before pooling.

    Call: image [B, H, W, C], train -> (logits [M, B, K], M maps [B, h, w, D_m]).
    """

    networks: Sequence[Any]
    tap: str = "stage3"

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Float[Array, "nets batch classes"], list[Array]]:
        outs = [network(image, train=train) for network in self.networks]
        for _, taps in outs:
            if self.tap not in taps:
                have = ", ".join(sorted(taps))
                raise ValueError(f"ParallelNetworks: no tap {self.tap!r}; a network has {have}")
        return jnp.stack([logits for logits, _ in outs]), [taps[self.tap] for _, taps in outs]


class _Stages(nn.Module):
    """Stages first..last of a CIFAR ResNet; the stem goes before stage 1."""

    first: int
    last: int
    blocks: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        def conv_norm(name: str, x: Array, channels: int, size: int, stride: int = 1) -> Array:
            # Explicit padding: "SAME" shifts strided convolutions by a pixel against the original.
            x = nn.Conv(
                channels,
                (size, size),
                stride,
                padding=size // 2,
                use_bias=False,
                kernel_init=CONV_INIT,
                dtype=self.dtype,
                name=name,
            )(x)
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                name=f"{name}_bn",
            )(x)

        x = x.astype(self.dtype)
        if self.first == 1:
            x = nn.relu(conv_norm("stem", x, 16, 3))
        for stage in range(self.first, self.last + 1):
            channels = 8 << stage
            for block in range(self.blocks):
                name = f"stage{stage}_block{block}"
                stride = 2 if stage > 1 and not block else 1
                h = nn.relu(conv_norm(f"{name}_conv0", x, channels, 3, stride))
                h = conv_norm(f"{name}_conv1", h, channels, 3)
                if x.shape[-1] != channels or stride > 1:
                    x = conv_norm(f"{name}_shortcut", x, channels, 1, stride)
                x = nn.relu(x + h)
        return x


class ParallelResNet(nn.Module):
    """CIFAR ResNets that share their stem and first stages.

    Stages of 16, 32 and 64 channels with post-activation basic blocks; where the shape changes the
    shortcut is a 1x1 convolution with BatchNorm.

    Attributes:
      depth: 6 n + 2.
      num_branches: M.
      shared_stages: 0 (M networks apart, stems too) to 2 (only the last stage and the classifier
        are separate).
      num_classes: K.
      dtype: of the computation; parameters and statistics stay float32.

    Call: image [B, H, W, C], train -> (logits [M, B, K] float32, M maps [B, H/4, W/4, 64], after
    the last ReLU).

    Source: Kim, Hyun, Chung, Kwak, ICPR 2020, the released code.
    """

    depth: int = 32
    num_branches: int = 2
    shared_stages: int = 2
    num_classes: int = 100
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch h w c"], train: bool
    ) -> tuple[Float[Array, "nets batch classes"], list[Array]]:
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(f"ParallelResNet: depth = {self.depth}: must be 6 n + 2, at least 8")
        if self.num_branches < 1 or self.shared_stages not in (0, 1, 2):
            raise ValueError(
                f"ParallelResNet: num_branches = {self.num_branches} must be 1 or more, "
                f"shared_stages = {self.shared_stages} 0, 1 or 2"
            )
        blocks, shared = (self.depth - 2) // 6, self.shared_stages
        if shared:
            image = _Stages(1, shared, blocks, self.dtype, name="shared")(image, train=train)
        logits, maps = [], []
        for i in range(self.num_branches):
            branch = _Stages(shared + 1, 3, blocks, self.dtype, name=f"branch{i}")
            maps.append(branch(image, train=train))
            head = dense(self.num_classes, 64, self.dtype, f"head{i}")
            logits.append(head(maps[-1].mean((1, 2))).astype(jnp.float32))
        return jnp.stack(logits), maps


class FeatureFusion(nn.Module):
    """Parallel networks with the fusion module on their last maps.

    Attributes:
      parallel: image, train -> (logits [M, B, K], maps): `ParallelNetworks`, `ParallelResNet`.
      num_classes: K.
      dtype: of the fusion module's computation.

    Call: image [B, H, W, C], train -> (fused logits [B, K], {"sub_logits": [M, B, K], "fused":
    [B, h, w, D]}); D is the first map's width.
    """

    parallel: Any
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        sub_logits, maps = self.parallel(image, train=train)
        module = FusionModule(self.num_classes, maps[0].shape[-1], self.dtype, name="fusion")
        fused, logits = module(maps, train)
        return logits, {"sub_logits": sub_logits, "fused": fused}
