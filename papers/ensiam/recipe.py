"""How EnSiam and SimSiam are trained and judged."""

from ml_collections import ConfigDict

from reprise.common.studies.study import Study
from reprise.common.training.phase import Phase
from reprise.papers.ensiam import comparisons, probe, sweep, training


def is_sweep(config: ConfigDict) -> bool:
    return bool(config.sweep.learning_rates or config.sweep.strengths)


def phases(config: ConfigDict) -> list[Phase]:
    """Training without labels; then, where the config has one, the probe on the stream."""
    out = [(sweep if is_sweep(config) else training).phase(config)]
    return [*out, probe.phase(config)] if config.probe.num_steps else out


def study(config: ConfigDict) -> Study:
    """EnSiam against SimSiam of 2 and of K views; over settings where the config has a sweep."""
    return (comparisons.stability if is_sweep(config) else comparisons.accuracy)(config)
