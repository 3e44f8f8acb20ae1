"""Every distillation method on one setting and budget; what has a weight is tuned by two tries.

A method's updates are counted on the student: one that initialises it first has fewer afterwards.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from reprise.common.ops import distillation as losses
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import distillation, distillation_setting, run
from reprise.common.training import distillation_baselines as baselines
from reprise.common.training.distillation import Setting
from reprise.common.training.phase import Phase

TAPS = ("stage1", "stage2", "stage3")  # of the baselines


class Entry(NamedTuple):
    """One row of the table.

    Attributes:
      field: what is tuned: of `config.model` of the paper, or the weight of a baseline's loss.
      tries: its values, the paper's (or the usual) one first; validation accuracy chooses of two.
      initialises: it trains the student in a first phase.
      variant: of the paper's config, whose other fields hold; "": its first.
      fixed: fields of the paper's model section that this batch size changes.
      also: further changes of the comparison's config.
      own_networks: its first phase trains networks of its own: with the paper's optimiser, as many
        updates as the student's.
    """

    field: str = ""
    tries: tuple[float, ...] = (0.0,)
    initialises: bool = False
    variant: str = ""
    fixed: Mapping[str, Any] = MappingProxyType({})
    also: Mapping[str, Any] = MappingProxyType({})
    own_networks: bool = False


BASELINES = {
    "ce": Entry(),
    "kd": Entry("weight", (1.0, 4.0)),
    "fitnet": Entry("weight", (1.0, 10.0)),
    "at": Entry("weight", (500.0, 50.0)),
    "fsp": Entry("weight", (10.0, 100.0), initialises=True),
}
PAPERS = {
    "activation_boundary": Entry("scale", (3e-3, 1e-3), initialises=True),
    "boundary_supporting_samples": Entry(
        "step_size", (0.3, 0.1), variant="cifar10", fixed={"num_samples": 16}
    ),
    "overhaul_distillation": Entry("alpha", (1e-3, 3e-3)),
    # From one teacher FEED is factor transfer; beta as the square root of a factor's size.
    "feed": Entry("beta", (250.0, 75.0), own_networks=True),
    # Two students and no teacher; the accuracy is theirs on average. It has no weight, and the
    # three below clip their gradients by the cross entropy's: there is nothing to tune.
    "feature_fusion_learning": Entry("rampup", (1.35,)),
    "svd_distillation": Entry("num_vectors", (1,)),
    # Its first phase passes the student through, which weight decay would move.
    "multi_head_graph_distillation": Entry("num_heads", (8,), also={"init.optimizer.l2": 0.0}),
    "embedding_procedure_transfer": Entry("num_iterations", (2,)),
}
ENTRIES = BASELINES | PAPERS


def of_paper(config: ConfigDict) -> ConfigDict:
    """The comparison's config with the paper's own model section, the tuned value in it."""
    name = config.model.method
    entry = PAPERS[name]
    text = f"{name}:{entry.variant}" if entry.variant else name
    papers = run.load_config(text)
    own = papers.model.copy_and_resolve_references()
    own.update(entry.fixed)
    own[entry.field] = type(own[entry.field])(config.model.value)
    merged = config.copy_and_resolve_references()
    merged.model = own
    if entry.own_networks:
        merged.init.optimizer, merged.init.num_steps = papers.init.optimizer, config.num_steps
    return merged


def method(setting: Setting, config: ConfigDict) -> list[Phase]:
    """The phases of the student, after the teacher's, by the method that the config names."""
    name, value = config.model.method, config.model.value
    if name not in ENTRIES:
        raise ValueError(f"config.model.method = {name!r}: allowed are {', '.join(ENTRIES)}")
    if name in PAPERS:
        recipe = importlib.import_module(f"reprise.papers.{name}.recipe")
        return recipe.method(setting, of_paper(config))
    pairs = {tap: tap for tap in TAPS}
    match name:
        case "kd":
            return baselines.knowledge_distillation(setting, config, kd_weight=value)
        case "fitnet":
            # FitNets' hint: one layer; the mean over its units, so that weights mean the same.
            hint = {TAPS[-1]: TAPS[-1]}
            units = np.prod(distillation.tap_shapes(setting, setting.teacher)[TAPS[-1]].shape)
            weights = (value / int(units),)
            squared = losses.squared_feature_loss
            return [baselines.imitate(setting, config, hint, squared, weights=weights)]
        case "at":
            weights = (value,) * len(TAPS)
            attention = losses.attention_transfer_loss
            phase = baselines.imitate(
                setting, config, pairs, attention, weights=weights, connected=False
            )
            return [phase]
        case "fsp":
            first = baselines.flow_initialisation(setting, config.init, TAPS, weight=value)
            return [first, *baselines.cross_entropy(setting, config)]
    return baselines.cross_entropy(setting, config)


def phases(config: ConfigDict) -> list[Phase]:
    """The teacher, then the student."""
    setting = distillation_setting.build(config)
    teacher = distillation_setting.teacher_phase(setting, config)
    return [teacher, *method(setting, config)]


def arm(config: ConfigDict, name: str, value: float) -> Arm:
    """A method at a value, its updates cut by those of its first phase."""
    overrides = {"model.method": name, "model.value": float(value), **ENTRIES[name].also}
    if ENTRIES[name].initialises:
        left = config.num_steps - config.init.num_steps
        drops = config.optimizer.schedule.args.boundaries
        overrides["num_steps"] = left
        overrides["optimizer.schedule.args.boundaries"] = tuple(
            round(drop * left / config.num_steps) for drop in drops
        )
    return Arm(overrides)


def study(config: ConfigDict) -> Study:
    """All methods at their chosen values; or, where `model.tuning` is on, at every try."""
    if config.model.tuning:
        open_to = {name: e.tries for name, e in ENTRIES.items() if len(e.tries) > 1}
        tries = [(name, value) for name, values in open_to.items() for value in values]
        arms = {f"{name}@{value:g}": arm(config, name, value) for name, value in tries}
        return Study(arms, chosen)
    arms = {name: arm(config, name, value) for name, value in CHOSEN.items()}

    def claim(results: Results) -> tuple[str, bool]:
        gain = {
            name: 100 * (results[name]["accuracy"] - results["ce"]["accuracy"]).mean()
            for name in results
        }
        above = {name: bool(gain[name] > gain["kd"]) for name in PAPERS if name in gain}
        ranked = sorted(gain, key=lambda name: -gain[name])
        text = "every paper's method above KD; points above cross entropy alone: " + ", ".join(
            f"{name} {gain[name]:+.1f}" for name in ranked if name != "ce"
        )
        return text, all(above.values())

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        from reprise.papers.distillation_comparison import figures

        return figures.accuracy_against_cost(config, results, directory)

    return Study(arms, claim, figures=draw)


def chosen(results: Results) -> tuple[str, bool]:
    """For each method the value of the best validation accuracy."""
    best: dict[str, tuple[float, str]] = {}
    for label, numbers in results.items():
        name, _, value = label.partition("@")
        best[name] = max(best.get(name, (-1.0, "")), (float(numbers["val_accuracy"].mean()), value))
    named = ", ".join(f"{name} {value}" for name, (_, value) in best.items())
    return f"chosen by validation accuracy: {named}", True


# By `cifar10_30k_tuning`; see results/distillation_comparison/.
CHOSEN = {name: entry.tries[0] for name, entry in ENTRIES.items()} | {
    "kd": 4.0,
    "fitnet": 10.0,
    "at": 50.0,
    "overhaul_distillation": 3e-3,
}
