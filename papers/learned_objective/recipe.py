"""How learned objectives are trained and judged: one module an experiment."""

from typing import Any

from ml_collections import ConfigDict

from reprise.common.studies.study import Study
from reprise.common.training.phase import Phase
from reprise.papers.learned_objective import optical_flow, registration

_TASKS: dict[str, Any] = {"registration": registration, "flow": optical_flow}


def phases(config: ConfigDict) -> list[Phase]:
    """One phase; a hand-crafted objective has no steps, only an evaluation."""
    return [_TASKS[config.model.task].phase(config)]


def study(config: ConfigDict) -> Study:
    """The arms, the claim and the figures of the config's experiment."""
    return _TASKS[config.model.task].study(config)
