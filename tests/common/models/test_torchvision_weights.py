"""Weights of torchvision's residual networks.

The golden file holds small random networks in torchvision's layout and what PyTorch computes with
them; `python tests/common/models/test_torchvision_weights.py` writes it anew.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from reprise.common.models.resnet import STAGES, ResNet
from reprise.common.models.torchvision_weights import from_torchvision

GOLDEN = Path(__file__).parents[2] / "goldens/torchvision_layout.npz"
SMALL = {
    "basic": ResNet(10, 7, width=4),
    "bottleneck": ResNet(14, 7, width=2, widen=2),
}


def torch_network(depth, num_classes, width, widen):
    """torchvision.models.resnet.ResNet, in plain PyTorch: same modules, names, and arithmetic."""
    import torch
    from torch import nn

    counts, bottleneck = STAGES[depth]

    def conv(source, target, size, stride=1):
        return nn.Conv2d(source, target, size, stride, size // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, source, inner, stride):
            super().__init__()
            if bottleneck:
                target, wide = 4 * inner, inner * widen
                layers = [(source, wide, 1, 1), (wide, wide, 3, stride), (wide, target, 1, 1)]
            else:
                target = inner
                layers = [(source, inner, 3, stride), (inner, inner, 3, 1)]
            self.count, self.target, self.downsample = len(layers), target, None
            for i, layer in enumerate(layers, 1):
                setattr(self, f"conv{i}", conv(*layer))
                setattr(self, f"bn{i}", nn.BatchNorm2d(layer[1]))
            if stride > 1 or source != target:
                self.downsample = nn.Sequential(
                    conv(source, target, 1, stride), nn.BatchNorm2d(target)
                )

        def forward(self, x):
            h = x
            for i in range(1, self.count + 1):
                h = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(h))
                if i < self.count:
                    h = torch.relu(h)
            return torch.relu(h + (x if self.downsample is None else self.downsample(x)))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = conv(3, width, 7, 2), nn.BatchNorm2d(width)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            source = width
            for stage, count in enumerate(counts, 1):
                blocks = []
                for block in range(count):
                    stride = 2 if stage > 1 and block == 0 else 1
                    blocks.append(Block(source, width << stage - 1, stride))
                    source = blocks[-1].target
                setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            self.fc = nn.Linear(source, num_classes)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            taps = {"stem": x}
            x = self.maxpool(x)
            for stage in range(1, 5):
                taps[f"stage{stage}"] = x = getattr(self, f"layer{stage}")(x)
            taps["embed"] = x.mean((2, 3))
            return self.fc(taps["embed"]), taps

    torch.manual_seed(0)
    network = Network().eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(0.0, 0.2)
                module.running_mean.normal_(0.0, 0.2)
                module.running_var.uniform_(0.5, 2.0)
    return network


def torch_results(model):
    """(state_dict, image NHWC, logits, taps NHWC) of a random PyTorch network like `model`."""
    import torch

    network = torch_network(model.depth, model.num_classes, model.width, model.widen)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits, taps = network(image)
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    taps = {name: np.moveaxis(tap.numpy(), 1, -1) for name, tap in taps.items()}
    return state, np.moveaxis(image.numpy(), 1, -1), logits.numpy(), taps


def check(model, state, image, logits, taps):
    variables = from_torchvision(state, model)
    ours, our_taps = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
    for name, tap in taps.items():
        np.testing.assert_allclose(our_taps[name], tap, rtol=1e-4, atol=1e-4 * np.abs(tap).max())
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())


def golden(kind):
    parts = {"state": {}, "out": {}}
    for name, value in np.load(GOLDEN).items():
        owner, part, key = name.split("/")
        if owner == kind:
            parts[part][key] = value
    out = parts["out"]
    return parts["state"], out.pop("image"), out.pop("logits"), out


@pytest.mark.parametrize("kind", SMALL)
def test_golden(kind):
    check(SMALL[kind], *golden(kind))


@pytest.mark.parametrize(
    "model", [ResNet(18, 7, width=8), ResNet(50, 7, width=4, widen=2)], ids=["18", "wide_50_2"]
)
def test_parity_with_pytorch(model):
    pytest.importorskip("torch")
    check(model, *torch_results(model))


def test_without_a_head_fc_is_left_out():
    state, _, _, _ = golden("basic")
    variables = from_torchvision(state, ResNet(10, None, width=4))
    assert "head" not in variables["params"] and "stem" in variables["params"]


def test_what_does_not_fit_is_refused_by_name():
    state, _, _, _ = golden("basic")
    with pytest.raises(ValueError, match=r"'fc.bias' has shape \(7,\).*needs \(9,\)"):
        from_torchvision(state, ResNet(10, 9, width=4))
    with pytest.raises(ValueError, match=r"'conv1.weight'.*its stem is 3x3"):
        from_torchvision(state, ResNet(10, 7, width=4, small_images=True))
    with pytest.raises(ValueError, match=r"'layer1.1.bn1.(bias|running_mean)' is missing"):
        from_torchvision(state, ResNet(18, 7, width=4))
    with pytest.raises(ValueError, match=r"no place for layer1.1.conv1.weight"):
        from_torchvision(state | {"layer1.1.conv1.weight": np.zeros(1)}, ResNet(10, 7, width=4))


if __name__ == "__main__":
    arrays = {}
    for kind, model in SMALL.items():
        state, image, logits, taps = torch_results(model)
        arrays |= {f"{kind}/state/{name}": value for name, value in state.items()}
        taps |= {"image": image, "logits": logits}
        arrays |= {f"{kind}/out/{name}": value for name, value in taps.items()}
    np.savez_compressed(GOLDEN, **arrays)
