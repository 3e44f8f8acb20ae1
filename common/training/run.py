"""Runs a config: its phases one after another, from where the workdir says they stopped."""

import importlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from reprise.common import config as configs
from reprise.common.training import loop, reuse, sharding
from reprise.common.training.checkpoints import Checkpoints, save_tree
from reprise.common.training.logs import MetricsLog, replace_text
from reprise.common.training.phase import Phase
from reprise.common.training.state import averaged

log = logging.getLogger("reprise")


class Run(NamedTuple):
    """What a run leaves behind.

    Attributes:
      states: final state of the last phase, one a seed.
      metrics: its last evaluation, one dict a seed.
      history: every row of metrics.jsonl.
      figures: paths of the pictures; empty where there is no workdir.
    """

    states: list[Any]
    metrics: list[dict[str, float]]
    history: list[dict[str, Any]]
    figures: list[Path]

    @property
    def state(self) -> Any:
        return self.states[0]


def load_config(text: str) -> ConfigDict:
    """The config of `path.py[:variant]`, or of `slug[:variant]` among the packaged ones."""
    name, _, variant = text.partition(":")
    module = config_module(config_path(name))
    return module.get_config(variant) if variant else module.get_config()


def config_module(path: Path) -> Any:
    """The module of a config file, which need not be on the import path."""
    spec = importlib.util.spec_from_file_location(f"reprise_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_path(name: str) -> Path:
    """The file of a config given by path or by the bare name of a packaged one.

    Raises:
      ValueError: there is none; the packaged ones are named.
    """
    folder = Path(__file__).resolve().parents[2] / "configs"
    for path in (Path(name), folder / f"{name}.py"):
        if path.is_file():
            return path
    packaged = sorted(path.stem for path in folder.glob("[!_]*.py"))
    raise ValueError(f"--config={name}: no such file, and packaged are {', '.join(packaged)}")


def recipe(config: ConfigDict) -> Any:
    """The module `papers/<slug>/recipe.py` of a config."""
    return importlib.import_module(f"reprise.papers.{config.paper}.recipe")


def run(
    config: ConfigDict | str,
    workdir: str | os.PathLike[str] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    preemption: loop.Preemption | None = None,
) -> Run:
    """Trains a config and returns what came out.

    Args:
      config: a config, or its name: "fixed_point_layer:maze".
      workdir: keeps metrics, checkpoints and figures there and continues what it finds; None
        keeps nothing on disk.
      seeds: run these together in one program; default: `config.seed` alone.
      preemption: an entered handler of SIGTERM; default: one for the time of the run.

    Raises:
      ValueError: a wrong field of the config, or a workdir that holds another config's run.
      loop.Preempted: SIGTERM came; the run was saved and can be continued.
    """
    config = load_config(config) if isinstance(config, str) else config
    return train(recipe(config).phases, config, workdir, seeds=seeds, preemption=preemption)


def train(
    phases: Callable[[ConfigDict], list[Phase]],
    config: ConfigDict,
    workdir: str | os.PathLike[str] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    preemption: loop.Preemption | None = None,
) -> Run:
    """`run` for phases that are no packaged recipe: `phases(config)` builds them for one seed."""
    seeds = tuple(seeds) if seeds is not None else (config.seed,)
    configs.validate(config, jax.device_count(), jax.process_count())
    use_compilation_cache(config)
    directory = None if workdir is None else Path(workdir).expanduser().resolve()
    per_seed = [phases(configs.apply_overrides(config, {"seed": seed})) for seed in seeds]
    in_order = [list(same) for same in zip(*per_seed, strict=True)]
    _check_average(in_order[0][0], config)
    if directory is not None:
        _claim(directory, config, seeds)
    began = time.perf_counter()
    mesh = sharding.make_mesh(config.mesh)
    metrics_log = MetricsLog(directory, config.log, f"{config.paper}-{config.variant}")
    metrics_log.rewind(lambda row: True)
    trained = directory is None or not _finished(in_order, directory)
    if not trained:
        log.info("%s: this run is finished; nothing to do", directory)
    with jax.set_mesh(mesh):
        if preemption is not None:
            state = _run_phases(in_order, config, seeds, mesh, metrics_log, directory, preemption)
        else:
            with loop.Preemption() as preemption:
                state = _run_phases(
                    in_order, config, seeds, mesh, metrics_log, directory, preemption
                )
        if jax.process_count() > 1:
            # Whoever draws or keeps it does so alone, and may hold a part of it only.
            everywhere = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
            state = jax.device_get(everywhere(state))
        states = [loop.seed_state(state, i, len(seeds)) for i in range(len(seeds))]
    # Outside the mesh: process 0 draws without the others.
    figures = _figures(in_order[-1][0], averaged(states[0]), directory)
    if directory is not None and trained and jax.process_index() == 0:
        replace_text(directory / "seconds.txt", f"{time.perf_counter() - began:.1f}\n")
    metrics_log.close()
    name = in_order[-1][0].name
    final = [_last_evaluation(metrics_log.rows, name, seed) for seed in seeds]
    return Run(states, final, metrics_log.rows, figures)


def finished(directory: Path) -> bool:
    """Whether a run ended in this workdir."""
    return (directory / "seconds.txt").exists()


def seconds(directory: Path) -> float:
    """How long the try took that finished the run of a workdir."""
    return float((directory / "seconds.txt").read_text()) if finished(directory) else 0.0


def _run_phases(
    phases: list[list[Phase]],
    config: ConfigDict,
    seeds: Sequence[int],
    mesh: Mesh,
    metrics_log: MetricsLog,
    directory: Path | None,
    preemption: loop.Preemption,
) -> Any:
    state = None
    for index, each in enumerate(phases):
        checkpoints = None
        if directory is not None:
            folder = directory / "checkpoints" / f"{index}-{each[0].name}"
            checkpoints = Checkpoints(folder, config.checkpoint.keep)
        try:
            cached = reuse.folder(each[0], config, seeds)
            kept = cached and reuse.load(cached, each[0], len(seeds), mesh, state)
            if kept is None:
                kept = loop.run_phase(
                    each, config, seeds, mesh, state, metrics_log, checkpoints, preemption
                )
                if cached:
                    save_tree(cached, kept)
            state = kept
        finally:
            metrics_log.sync()
            if checkpoints:
                checkpoints.close()
    return state


def _check_average(phase: Phase, config: ConfigDict) -> None:
    if not config.ema_decay:
        return
    abstract = jax.eval_shape(lambda: phase.init(jax.random.key(0), None))
    if averaged(abstract) is abstract:
        raise ValueError(
            f"config.ema_decay = {config.ema_decay!r}: the recipe of {config.paper} keeps no "
            "average of its parameters; set it to 0"
        )


def _claim(directory: Path, config: ConfigDict, seeds: Sequence[int]) -> None:
    """Writes the config into a new workdir, or checks that it is the one found there."""
    mine = json.loads(json.dumps({**configs.identity(config), "seeds": list(seeds)}))
    path = directory / "config.json"
    if path.exists():
        lines = configs.differences(json.loads(path.read_text()), mine)
        if lines:
            raise ValueError(
                f"--workdir={directory} holds a run of another config; it differs in "
                f"{'; '.join(lines)}. Use that config or another workdir."
            )
    elif jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(mine, indent=1))


def _finished(phases: list[list[Phase]], directory: Path) -> bool:
    last = phases[-1][0]
    folder = directory / "checkpoints" / f"{len(phases) - 1}-{last.name}" / str(last.num_steps)
    return folder.is_dir()


def _figures(phase: Phase, state: Any, directory: Path | None) -> list[Path]:
    if phase.figures is None or directory is None or jax.process_index() != 0:
        return []
    folder = directory / "figures"
    present = sorted(folder.glob("*")) if folder.is_dir() else []
    if present:
        return present
    folder.mkdir(parents=True, exist_ok=True)
    return phase.figures(state, folder)


def _last_evaluation(rows: list[dict[str, Any]], phase: str, seed: int) -> dict[str, float]:
    own = [r for r in rows if (r["phase"], r["seed"], r["kind"]) == (phase, seed, "eval")]
    skip = ("phase", "step", "seed", "kind")
    return {k: v for k, v in own[-1].items() if k not in skip} if own else {}


def use_compilation_cache(config: ConfigDict) -> None:
    """Keeps compiled programs in `config.compilation_cache`."""
    if config.compilation_cache:
        folder = Path(config.compilation_cache).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
