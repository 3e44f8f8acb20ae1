"""Runs the arms of a study over its seeds, and writes what came out."""

import datetime
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from reprise.common import config as configs
from reprise.common.studies import summary
from reprise.common.studies.study import Study
from reprise.common.training import loop, run
from reprise.common.training.logs import replace_text

log = logging.getLogger("reprise")

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def run_study(config: ConfigDict, workdir: str | Path, results: str | Path | None = None) -> str:
    """Trains every arm over `config.study.seeds`; finished arms are kept, stopped ones continue.

    With more seeds than before, only the new ones are trained. Writes
    `results/<paper>/<variant>.json` and the figures beside it.

    Args:
      config: of the method; the arms are changes of it.
      workdir: one folder an arm below it.
      results: folder for the results; default: `results` in the current folder.

    Returns:
      What to print: the table, the claim, the paths, the command to run next.
    """
    study = run.recipe(config).study(config)
    here = {"commit": commit(), "versions": versions(), "device": device()}
    workdir = Path(workdir).expanduser().resolve()
    seeds = tuple(config.study.seeds)
    # Every arm is checked before the first one trains.
    arm_configs = {
        name: configs.apply_overrides(config, arm.overrides) for name, arm in study.arms.items()
    }
    for arm_config in arm_configs.values():
        configs.validate(arm_config, jax.device_count(), jax.process_count())
    arms: dict[str, Any] = {}
    origins: list[dict[str, Any]] = []
    states: dict[str, list[Any]] = {}
    with loop.Preemption() as preemption:
        for name, arm_config in arm_configs.items():
            groups, parts = _groups(workdir / name, seeds), []
            for folder, together in groups:
                log.info("arm %s, seeds %s", name, ", ".join(map(str, together)))
                origins += [o for o in _origin(folder, here) if o not in origins]
                parts.append(run.run(arm_config, folder, seeds=together, preemption=preemption))
            done = _merged(parts, [together for _, together in groups], seeds)
            states[name] = done.states
            arms[name] = {
                "metrics": measured(done, seeds, study, study.arms[name].reported),
                "seconds": sum(run.seconds(folder) for folder, _ in groups),
            }
    numbers = {
        name: {metric: np.asarray(row["per_seed"]) for metric, row in arm["metrics"].items()}
        for name, arm in arms.items()
    }
    text, holds = study.claim(numbers)
    record = {
        "paper": config.paper,
        "variant": config.variant,
        "command": command(config),
        "commit": _joined(entry["commit"] for entry in origins),
        "config_hash": configs.digest(configs.identity(config)),
        "versions": {
            name: _joined(entry["versions"][name] for entry in origins) for name in here["versions"]
        },
        "device": _joined(entry["device"] for entry in origins),
        "date": datetime.date.today().isoformat(),
        "seeds": list(seeds),
        "arms": arms,
        "claim": {"text": text, "holds": bool(holds)},
    }
    folder = Path(results or "results") / config.paper
    path = folder / f"{config.variant}.json"
    figures: list[Path] = []
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_without_nan(record), indent=1, allow_nan=False) + "\n")
        if study.figures:
            figures = study.figures(config, numbers, states, folder)
    return summary.of_study(record, path, figures)


def _groups(directory: Path, seeds: tuple[int, ...]) -> list[tuple[Path, tuple[int, ...]]]:
    """The folders of an arm, each with seeds that train together.

    Those that an earlier study began stay together where they are; the others get a folder below.
    """
    groups: list[tuple[Path, tuple[int, ...]]] = []
    rest = seeds
    for folder in (directory, *sorted(directory.glob("seeds-*"))):
        path = folder / "config.json"
        known = tuple(json.loads(path.read_text())["seeds"]) if path.exists() else ()
        if known and set(known) <= set(rest):
            groups.append((folder, known))
            rest = tuple(seed for seed in rest if seed not in known)
    if rest:
        below = directory / f"seeds-{'-'.join(map(str, rest))}"
        groups.append((below if groups else directory, rest))
    return groups


def _merged(parts: list[run.Run], groups: list[tuple[int, ...]], seeds: tuple[int, ...]) -> run.Run:
    """The runs of an arm as one, in the order of `seeds`."""
    order = [seed for group in groups for seed in group]
    states = dict(zip(order, [s for part in parts for s in part.states], strict=True))
    metrics = dict(zip(order, [m for part in parts for m in part.metrics], strict=True))
    history = [row for part in parts for row in part.history]
    figures = [figure for part in parts for figure in part.figures]
    return run.Run([states[s] for s in seeds], [metrics[s] for s in seeds], history, figures)


def _origin(directory: Path, here: dict[str, Any]) -> list[dict[str, Any]]:
    """What an arm was trained with: commit, versions and device, one entry each time it went on.

    Kept in the arm's folder; a finished arm keeps the entries that it has.
    """
    path = directory / "origin.json"
    known = json.loads(path.read_text()) if path.exists() else []
    if not run.finished(directory) and here not in known:
        known.append(here)
        if jax.process_index() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            replace_text(path, json.dumps(known, indent=1))
    return known


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _without_nan(record: Any) -> Any:
    """JSON has no NaN and no infinity: what a diverged arm measured becomes null."""
    if isinstance(record, dict):
        return {key: _without_nan(value) for key, value in record.items()}
    if isinstance(record, list):
        return [_without_nan(value) for value in record]
    return None if isinstance(record, float) and not np.isfinite(record) else record


def measured(
    done: run.Run, seeds: tuple[int, ...], study: Study, reported: Mapping[str, float]
) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) over seeds of each metric of the last evaluation.

    With `study.select`, also of each at the evaluation where that one was highest.
    """
    per_seed = [dict(metrics) for metrics in done.metrics]
    if study.select:
        last = done.history[-1]["phase"]
        for seed, metrics in zip(seeds, per_seed, strict=True):
            rows = [
                row
                for row in done.history
                if (row["phase"], row["seed"], row["kind"]) == (last, seed, "eval")
            ]
            scores = np.array([row[study.select] for row in rows])
            best = int(np.argmax(np.where(np.isnan(scores), -np.inf, scores)))
            metrics |= {f"{name}@best": rows[best][name] for name in list(metrics)}
    out = {}
    for name in sorted(per_seed[0]):
        values = [metrics[name] for metrics in per_seed]
        out[name] = {
            "per_seed": values,
            "mean": float(np.mean(values)),
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
            "reported": reported.get(name),
        }
    return out


def command(config: ConfigDict) -> str:
    """The line that repeats this study: the config's file, its variant and what was changed."""
    line = f"python launch.py --config=configs/{config.paper}.py:{config.variant} --study"
    try:
        original = configs.to_plain(run.load_config(f"{config.paper}:{config.variant}"))
    except ValueError:
        return line
    changed = []
    for difference in configs.differences(original, configs.to_plain(config)):
        field = difference.partition(":")[0]
        if field.partition(".")[0] in configs.FREE_FIELDS:
            continue  # where it ran, not what
        value = config
        for part in field.split("."):
            value = value[part]
        shown = f'"{value}"' if isinstance(value, tuple) else value
        changed.append(f"--config.{field}={shown}")
    return " ".join([line, *changed])


def commit() -> str:
    """The commit of the source, with "+" where files differ from it; "unknown" outside git."""
    root = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str:
        out = subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, check=True)
        return out.stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def device() -> str:
    kind = jax.devices()[0].device_kind
    if kind.lower() == "cpu":
        return f"CPU, {len(os.sched_getaffinity(0))} cores"
    return f"{jax.device_count()} x {kind}"
