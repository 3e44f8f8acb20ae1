"""What a run or a study prints at its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def number(value: float | None) -> str:
    """Four significant digits, and no exponent for ordinary sizes; None is what was not finite."""
    if value is None:
        return "not finite"
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    digits = max(0, 4 - len(str(int(abs(value))).lstrip("0")) - (abs(value) < 1) * 0)
    return f"{value:.{min(digits, 4)}f}"


def cell(row: Mapping[str, Any], seeds: int) -> str:
    """`mean ± std (reported r)`."""
    text = number(row["mean"])
    if seeds > 1 and row["mean"] is not None:
        text += f" ± {number(row['std'])}"
    if row["reported"] is not None:
        text += f" (reported {number(row['reported'])})"
    return text


def metric_names(record: Mapping[str, Any]) -> list[str]:
    """Every metric of a study, in the order of the first arm that has it."""
    names: dict[str, None] = {}
    for arm in record["arms"].values():
        names.update(dict.fromkeys(arm["metrics"]))
    return list(names)


def study_rows(record: Mapping[str, Any], columns: Sequence[str] = ()) -> list[list[str]]:
    """One row an arm, one column a metric, below a header row; `columns` () shows every metric.

    Raises:
      ValueError: `columns` names a metric that no arm has.
    """
    names = metric_names(record)
    unknown = [name for name in columns if name not in names]
    if unknown:
        raise ValueError(
            f"config.study.columns of {record['paper']}:{record['variant']} names "
            f"{', '.join(unknown)}: its results have {', '.join(names)}"
        )
    names = list(columns) or names
    rows = [["arm", *names]]
    for name, arm in record["arms"].items():
        metrics = arm["metrics"]
        seeds = len(record["seeds"])
        rows.append([name, *(cell(metrics[n], seeds) if n in metrics else "" for n in names)])
    return rows


def of_study(record: Mapping[str, Any], path: Path, figures: Sequence[Path]) -> str:
    verdict = "holds" if record["claim"]["holds"] else "DOES NOT HOLD"
    lines = ["", table(study_rows(record)), "", f"claim {verdict}: {record['claim']['text']}"]
    lines += [f"results: {path}", *(f"figure:  {figure}" for figure in figures)]
    return "\n".join([*lines, f"again:   {record['command']}"])


def of_run(done: Any, workdir: str | Path) -> str:
    names = sorted(done.metrics[0])
    rows = [["metric", "value"], *([name, number(done.metrics[0][name])] for name in names)]
    lines = ["", table(rows) if names else "no evaluation", ""]
    lines += [f"figure:  {figure}" for figure in done.figures]
    return "\n".join([*lines, f"workdir: {workdir}"])
