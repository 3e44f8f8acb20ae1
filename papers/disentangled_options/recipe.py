"""How options are trained and judged: tables in the four rooms, networks elsewhere."""

from typing import Any

from ml_collections import ConfigDict

from reprise.common.studies.study import Study
from reprise.common.training.phase import Phase
from reprise.papers.disentangled_options import neural, tabular

_TASKS: dict[str, Any] = {"fourrooms": tabular, "pointmass": neural, "breakout": neural}


def phases(config: ConfigDict) -> list[Phase]:
    """One phase; it makes its own data, so it has no batches."""
    return [_TASKS[config.model.task].phase(config)]


def study(config: ConfigDict) -> Study:
    """The arms, the claim and the figures of the config's experiment."""
    return _TASKS[config.model.task].study(config)
