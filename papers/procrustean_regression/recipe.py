"""How shapes are learnt from 2D points and judged: one module a kind of data."""

from typing import Any

from ml_collections import ConfigDict

from reprise.common.studies.study import Study
from reprise.common.training.phase import Phase
from reprise.papers.procrustean_regression import classes, motion, parts

_TASKS: dict[str, Any] = {"generated": classes, "nrsfm": motion}


def phases(config: ConfigDict) -> list[Phase]:
    """Training, then with `model.frozen_steps` more of it with BatchNorm's statistics frozen."""
    parts.check(config)
    return _TASKS[config.data.name].phases(config)


def study(config: ConfigDict) -> Study:
    """The arms, the claim and the figures of the config's experiment."""
    return _TASKS[config.data.name].study(config)
