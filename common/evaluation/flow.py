"""Flow fields as pictures."""

import numpy as np


def color_wheel() -> np.ndarray:
    """The 55 colours of the Middlebury flow wheel: [55, 3] in [0, 1] (Baker et al., IJCV 2011)."""
    steps = {"RY": 15, "YG": 6, "GC": 4, "CB": 11, "BM": 13, "MR": 6}
    corners = {"R": (1, 0, 0), "Y": (1, 1, 0), "G": (0, 1, 0), "C": (0, 1, 1), "B": (0, 0, 1)}
    corners["M"] = (1, 0, 1)
    parts = []
    for (start, stop), count in ((tuple(name), count) for name, count in steps.items()):
        weight = np.arange(count)[:, None] / count
        parts.append((1 - weight) * np.array(corners[start]) + weight * np.array(corners[stop]))
    return np.concatenate(parts)


def flow_to_color(flow: np.ndarray, largest: float | None = None) -> np.ndarray:
    """A flow field [H, W, 2] as colours [H, W, 3] in [0, 1]: hue is direction, saturation length.

    Args:
      flow: pixels; channel 0 horizontal. NaN is drawn black.
      largest: the length that is fully saturated; default: the longest of this field. Pass the
        same to compare fields.
    """
    if flow.ndim != 3 or flow.shape[-1] != 2:
        raise ValueError(f"flow_to_color: flow {flow.shape} must be [H, W, 2]")
    unknown = ~np.isfinite(flow).all(-1)
    flow = np.where(unknown[..., None], 0.0, flow)
    length = np.linalg.norm(flow, axis=-1)
    scale = largest or max(float(length.max()), 1e-9)
    length = length / scale
    wheel = color_wheel()
    position = (np.arctan2(-flow[..., 1], -flow[..., 0]) / np.pi + 1) / 2 * (len(wheel) - 1)
    low = np.floor(position).astype(int)
    weight = (position - low)[..., None]
    color = (1 - weight) * wheel[low] + weight * wheel[(low + 1) % len(wheel)]
    inside = np.minimum(length, 1.0)[..., None]
    color = np.where(length[..., None] <= 1, 1 - inside * (1 - color), 0.75 * color)
    return np.where(unknown[..., None], 0.0, color)
