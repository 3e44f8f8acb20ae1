"""How a student learns from several teachers' feature maps, and how it is judged."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import distillation_baselines as baselines
from reprise.common.training import distillation_setting
from reprise.common.training.distillation import Setting
from reprise.common.training.phase import Phase
from reprise.papers.feed import training


def method(setting: Setting, config: ConfigDict) -> list[Phase]:
    """The phases of the student, after the teachers'."""
    match config.model.method:
        case "pfeed":
            return training.parallel(setting, config)
        case "sfeed":
            return training.sequential_generations(setting, config)
        case "kd":
            return training.ensemble_kd(setting, config)
        case "ce":
            return baselines.cross_entropy(setting, config)
    raise ValueError(
        f"config.model.method = {config.model.method!r}: allowed are pfeed, sfeed, kd, ce"
    )


def phases(config: ConfigDict) -> list[Phase]:
    """The teachers, then the student."""
    setting = distillation_setting.build(config, num_teachers=config.model.num_teachers)
    return [distillation_setting.teacher_phase(setting, config), *method(setting, config)]


def study(config: ConfigDict) -> Study:
    """Several teachers against one, at the same weight for each teacher and at the same in all."""
    count, beta = config.model.num_teachers, config.model.beta
    one = {"model.use_teachers": 1}
    arms = {
        "pfeed": Arm(),
        "ft": Arm(one),
        "ft_total": Arm({**one, "model.beta": beta * count}),
        "pfeed_share": Arm({"model.beta": beta / count}),
        "shared": Arm({"model.shared_translator": True}),
        "sfeed": Arm({"model.method": "sfeed", "model.beta": config.model.sequential_beta}),
        "kd": Arm({"model.method": "kd"}),
        "ce": Arm({"model.method": "ce"}),
    }

    def claim(results: Results) -> tuple[str, bool]:
        at = {name: 100 * results[name]["accuracy"] for name in arms}
        transfer, more = at["ft"] - at["ce"], at["pfeed"] - at["ft"]
        totals = [at["pfeed_share"] - at["ft"], at["pfeed"] - at["ft_total"]]
        low, high = (f"{t.mean():+.1f} (worst seed {t.min():+.1f})" for t in totals)
        text = (
            f"one teacher at least 2 points above CE alone: {transfer.mean():+.1f}; {count} "
            f"teachers at least 0.5 above one at equal weight for each: {more.mean():+.1f} (worst "
            f"seed {more.min():+.1f}), and at equal total weight: {low} at {beta:g}, {high} at "
            f"{beta * count:g}. Against one translator for all: "
            f"{(at['pfeed'] - at['shared']).mean():+.1f}; against KD from the ensemble: "
            f"{(at['pfeed'] - at['kd']).mean():+.1f}; sequential against CE alone: "
            f"{(at['sfeed'] - at['ce']).mean():+.1f}"
        )
        gains = [more, *totals]
        return text, bool(transfer.mean() >= 2 and min(g.mean() for g in gains) >= 0.5)

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        from reprise.papers.feed import figures

        return [figures.by_total_weight(config, results, directory)]

    return Study(arms, claim, figures=draw)
