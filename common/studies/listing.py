"""The list of papers, their variants, the data they need and whether it is here."""

from pathlib import Path

from reprise.common import data
from reprise.common.studies import summary
from reprise.common.training import run


def table() -> str:
    """Reads the configs alone, no paper's code."""
    folder = Path(run.__file__).resolve().parents[2] / "configs"
    rows = [["config", "data", "here"]]
    for path in sorted(folder.glob("[!_]*.py")):
        for variant in run.config_module(path).VARIANTS:
            config = run.load_config(f"{path}:{variant}")
            names = list(config.datasets)
            missing = [n for n in names if not data.available(n, config.data_dir or None)[0]]
            here = "yes" if not missing else f"no: {data.available(missing[0])[1]}"
            rows.append([f"{path.stem}:{variant}", ", ".join(names) or "generated", here])
    return summary.table(rows)
