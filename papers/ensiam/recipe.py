"""How EnSiam and SimSiam are trained and judged."""

from ml_collections import ConfigDict

from reprise.common.studies.study import Study
from reprise.common.training.phase import Phase
from reprise.papers.ensiam import training


def phases(config: ConfigDict) -> list[Phase]:
    """Training without labels; then, where the config has one, the probe on the stream."""
    out = [training.phase(config)]
    if config.probe.num_steps:
        from reprise.papers.ensiam import probe

        out.append(probe.phase(config))
    return out


def study(config: ConfigDict) -> Study:
    """EnSiam against SimSiam, of 2 and of K views; over a sweep where the config has one."""
    from reprise.papers.ensiam import comparisons

    return comparisons.study(config)
