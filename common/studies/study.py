"""What a recipe says about its study."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Results = Mapping[str, Mapping[str, np.ndarray]]  # arm -> metric -> [num_seeds]


class Arm(NamedTuple):
    """One way of training: the method, a baseline, an ablation.

    Attributes:
      overrides: what it changes in the config, by dotted path.
      reported: the paper's numbers for it, by metric.
    """

    overrides: Mapping[str, Any] = {}
    reported: Mapping[str, float] = {}


class Study(NamedTuple):
    """The proof of a paper's claim.

    Attributes:
      arms: by name; the method first.
      claim: results -> (what should hold, in words with the numbers; whether it does).
      select: name of a validation metric of which more is better. Every metric is then also
        reported as `<metric>@best`: at the evaluation where that one was highest.
      figures: (config, results, {arm: [final state of each seed]}, directory) -> paths.
    """

    arms: Mapping[str, Arm]
    claim: Callable[[Results], tuple[str, bool]]
    select: str | None = None
    figures: Callable[[Any, Results, Mapping[str, list[Any]], Path], list[Path]] | None = None
