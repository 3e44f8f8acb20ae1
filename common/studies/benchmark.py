"""Prints and keeps the ratios that a benchmark measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reprise.common.studies import run_study, summary


def write(name: str, rows: Mapping[str, Mapping[str, Any]], folder: str | Path = "results") -> None:
    """Prints a table and writes `results/benchmarks/<name>.json`.

    Args:
      name: of the benchmark.
      rows: what was compared -> numbers of it, ratios among them.
      folder: where results go.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [
        [label, *(_cell(row.get(column)) for column in columns)] for label, row in rows.items()
    ]
    print(summary.table([["", *columns], *cells]))
    record = {
        "benchmark": name,
        "command": f"python benchmarks/{name}.py",
        "commit": run_study.commit(),
        "device": run_study.device(),
        "versions": run_study.versions(),
        "rows": rows,
    }
    path = Path(folder) / "benchmarks" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"results: {path}")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return summary.number(value) if isinstance(value, float) else str(value)
