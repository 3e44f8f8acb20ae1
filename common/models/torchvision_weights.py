"""Weights of torchvision's residual networks, as variables of `ResNet`.

Where torch and torchvision are installed, once:

    state = torchvision.models.wide_resnet50_2(weights="IMAGENET1K_V1").state_dict()
    np.savez("wide_resnet50_2.npz", **{name: value.numpy() for name, value in state.items()})

then anywhere:

    model = ResNet(50, widen=2)
    variables = from_torchvision(np.load("wide_resnet50_2.npz"), model)
    logits, taps = model.apply(variables, image, train=False)

The images of these weights are RGB in [0, 1], minus `IMAGENET_MEAN`, over `IMAGENET_STD`.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from reprise.common.models.resnet import ResNet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_LEAVES |= {"mean": "running_mean", "var": "running_var"}


def from_torchvision(
    state_dict: Mapping[str, np.ndarray], model: ResNet, *, channels: int = 3
) -> dict[str, dict]:
    """The variables of `model` from a torchvision `state_dict` of the same network.

    Args:
      state_dict: torchvision's names to arrays, as `np.load` of an npz gives them.
      model: ResNet of depth 18 to 152, any width; without a head, `fc` is left out.
      channels: of the images.

    Returns:
      {"params": ..., "batch_stats": ...}, float32.

    Raises:
      ValueError: names that are missing or left over, and shapes that do not fit, by name.
    """
    size = 3 if model.small_images else 7
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    wanted = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    left = {name for name in state_dict if not name.endswith("num_batches_tracked")}
    if model.num_classes is None:
        left -= {"fc.weight", "fc.bias"}

    def convert(path, leaf):
        module, kind = path[-2].key, path[-1].key
        name = f"{_torch_module(module)}.{_LEAVES[kind]}"
        if name not in state_dict:
            raise ValueError(f"from_torchvision: {name!r} is missing, for our {module!r}")
        left.discard(name)
        value = np.asarray(state_dict[name], np.float32)
        if kind == "kernel":  # [out, in, (height, width)] -> [(height, width,) in, out]
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        if value.shape != leaf.shape:
            raise ValueError(
                f"from_torchvision: {name!r} has shape {np.shape(state_dict[name])}, "
                f"which is {value.shape} here, but {module!r} of this model needs {leaf.shape}"
                + (f" (its stem is {size}x{size})" if module == "stem" else "")
            )
        return jnp.asarray(value)

    variables = jax.tree_util.tree_map_with_path(convert, wanted)
    if left:
        raise ValueError(
            f"from_torchvision: this model has no place for {', '.join(sorted(left)[:4])}"
            f"{' ...' if len(left) > 4 else ''}: depth, widen or num_classes differ"
        )
    return variables


def _torch_module(name: str) -> str:
    """`stage1_block0_bn1` -> `layer1.0.bn2`, and so on."""
    fixed = {"stem": "conv1", "stem_bn": "bn1", "head": "fc"}
    if name in fixed:
        return fixed[name]
    stage, block, rest = re.fullmatch(r"stage(\d)_block(\d+)_(\w+)", name).groups()
    if rest.startswith("shortcut"):
        rest = "downsample.1" if rest.endswith("bn") else "downsample.0"
    else:
        rest = f"{rest[:-1]}{int(rest[-1]) + 1}"
    return f"layer{stage}.{block}.{rest}"
