"""The arms that every experiment compares, and what should hold."""

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from reprise.common.studies.study import Arm, Results

BASELINE, METHOD = "lambda 0", "lambda 0.05"


def frozen(config: ConfigDict) -> FrozenConfigDict:
    """The model's fields, hashable: programs that depend on them alone are compiled once."""
    return FrozenConfigDict(config.model)


def arms() -> dict[str, Arm]:
    """The method with the suite's default weight, option-critic without it, two other weights."""
    weights = {METHOD: 0.05, BASELINE: 0.0, "lambda 0.01": 0.01, "lambda 0.2": 0.2}
    return {name: Arm({"model.regularizer": weight}) for name, weight in weights.items()}


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean over seeds, by Student's t."""
    from scipy import stats

    if len(values) < 2:
        return float(values.mean()), float(values.mean())
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _span(values: np.ndarray) -> str:
    low, high = interval(values)
    return f"[{low:.2f}, {high:.2f}]"


def four_rooms(results: Results) -> tuple[str, bool]:
    """Options at least twice as far apart in every seed, at no more than 1.2 times the steps."""
    ours, plain = results[METHOD], results[BASELINE]
    holds, parts = True, []
    for name, after in (("first goal", ""), ("moved goal", "_moved")):
        ratio = ours[f"hellinger_all{after}"] / plain[f"hellinger_all{after}"]
        gain = ours[f"information_all{after}"] - plain[f"information_all{after}"]
        steps = ours[f"steps{after}"].mean() / plain[f"steps{after}"].mean()
        holds &= bool((ratio >= 2).all() and steps <= 1.2 and gain.mean() > 0)
        parts.append(
            f"{name}: Hellinger ratio worst {ratio.min():.1f}, mean {ratio.mean():.1f} "
            f"{_span(ratio)}, steps ratio {steps:.2f}"
        )
    text = (
        "lambda 0.05 at least doubles the Hellinger distance of option policies in every seed and "
        "raises I(option; action | state), at no more than 1.2 times option-critic's steps an "
        f"episode ({'; '.join(parts)}; 95 % intervals over seeds)"
    )
    return text, holds


def with_return(results: Results, factor: float) -> tuple[str, bool]:
    """Options more than `factor` times as far apart in every seed, return within one deviation."""
    ours, plain = results[METHOD], results[BASELINE]
    ratio = ours["hellinger"] / plain["hellinger"]
    loss = plain["return"].mean() - ours["return"].mean()
    spread = plain["return"].std(ddof=1) if len(ratio) > 1 else 0.0
    gain = ours["information"] - plain["information"]
    more = "raises" if factor == 1 else f"multiplies by {factor:g}"
    text = (
        f"lambda 0.05 {more} the Hellinger distance of option policies on visited states in every "
        f"seed ({plain['hellinger'].mean():.2f} to {ours['hellinger'].mean():.2f}, ratio worst "
        f"{ratio.min():.2f}, mean {ratio.mean():.2f} {_span(ratio)}), raises I(option; action | "
        f"state) (by {gain.mean():.2f} {_span(gain)}), and the return is at most one standard "
        f"deviation lower ({ours['return'].mean():.2f} against {plain['return'].mean():.2f}, "
        f"deviation {spread:.2f}; 95 % intervals over seeds)"
    )
    return text, bool((ratio > factor).all() and gain.mean() > 0 and loss <= spread)
