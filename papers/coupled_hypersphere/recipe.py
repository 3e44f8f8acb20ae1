"""How CFA is trained and judged: a phase for the memory bank, then one for the descriptor."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training.phase import Phase
from reprise.papers.coupled_hypersphere import adaptation, backbones, figures

# Above sqrt(alpha), where the repulsion acts from the first step.
LARGE_RADIUS = 0.5


def phases(config: ConfigDict) -> list[Phase]:
    """The backbone where it is made here; the memory bank; the adaptation."""
    made = backbones.phase(config)

    def draw(state: Any, directory: Path) -> list[Path]:
        return [figures.heat_maps(config, {}, {config.model.arm: [state]}, directory)]

    adapt = dataclasses.replace(adaptation.adapt_phase(config), figures=draw)
    return [*([made] if made else []), adaptation.bank_phase(config), adapt]


def study(config: ConfigDict) -> Study:
    """CFA against methods without adaptation, or what its radius and repulsion do."""
    if config.data.ablation:
        return _ablation(config)
    still = {"num_steps": 0}
    arms = {
        "cfa": Arm(),
        "untrained": Arm({"model.arm": "untrained"} | still),
        "raw": Arm({"model.arm": "raw"} | still),
        "gaussian": Arm({"model.arm": "gaussian"} | still),
    }

    def claim(results: Results) -> tuple[str, bool]:
        ours, before = (results[arm]["pixel_auroc"] for arm in ("cfa", "untrained"))
        gain = (ours - before).mean()
        text = (
            f"pixel AUROC after the last epoch at least {config.data.gain:.2f} above the untrained "
            f"descriptor's bank: {ours.mean():.3f} against {before.mean():.3f}; a Gaussian at each "
            f"position, without adaptation: {results['gaussian']['pixel_auroc'].mean():.3f}"
        )
        return text, bool(gain >= config.data.gain)

    return Study(arms, claim, select="pixel_auroc", figures=_draw)


def _ablation(config: ConfigDict) -> Study:
    arms = {
        "trained_radius": Arm(),
        "fixed_radius": Arm({"model.train_radius": False}),
        "no_repulsion": Arm({"model.num_repel": 0}),
        "large_radius": Arm({"model.radius": LARGE_RADIUS}),
        "large_radius_no_repulsion": Arm({"model.radius": LARGE_RADIUS, "model.num_repel": 0}),
        "untrained": Arm({"model.arm": "untrained", "num_steps": 0}),
    }

    def claim(results: Results) -> tuple[str, bool]:
        auroc = {arm: results[arm]["pixel_auroc"] for arm in arms}
        text = (
            "the repulsion raises pixel AUROC in every seed, whatever radius the training starts at"
        )
        pairs = (
            (config.model.radius, "trained_radius", "no_repulsion"),
            (LARGE_RADIUS, "large_radius", "large_radius_no_repulsion"),
        )
        for start, arm, without in pairs:
            full = results[arm]
            text += (
                f"; from {start:g}: {auroc[arm].mean():.3f} against {auroc[without].mean():.3f} "
                f"without it, final radius {full['radius'].mean():.2f}, L_rep "
                f"{full['repel'].mean():.2f}"
            )
        holds = all((auroc[arm] > auroc[without]).all() for _, arm, without in pairs)
        return f"{text}. Radius fixed: {auroc['fixed_radius'].mean():.3f}", bool(holds)

    return Study(arms, claim, select="pixel_auroc", figures=_draw)


def _draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
    drawn = [figures.heat_maps(config, results, states, directory)]
    return drawn + ([figures.training(config, states, directory)] if config.data.ablation else [])
