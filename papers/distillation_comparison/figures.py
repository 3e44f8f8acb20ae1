"""The table as a picture."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from reprise.common.studies.study import Results


def accuracy_against_cost(config: ConfigDict, results: Results, directory: Path) -> list[Path]:
    """Accuracy against seconds a step relative to cross entropy alone, as the benchmark found them.

    Nothing where results/benchmarks/distillation.json is not there.
    """
    from matplotlib.figure import Figure

    measured = directory.parent / "benchmarks" / "distillation.json"
    if not measured.is_file():
        return []
    rows = json.loads(measured.read_text())["rows"]
    cost = {name: row["time / CE"] for name, row in rows.items()}
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in results:
        if name not in cost:
            continue
        accuracy = 100 * results[name]["accuracy"]
        axes.errorbar(cost[name], accuracy.mean(), accuracy.std(ddof=1), fmt="o", ms=5, capsize=3)
        axes.annotate(
            name.replace("_", " "),
            (cost[name], accuracy.mean()),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(xlabel="seconds a step, relative to cross entropy alone", ylabel="test accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    path = directory / f"{config.variant}-cost.png"
    figure.savefig(path, dpi=110)
    return [path]
