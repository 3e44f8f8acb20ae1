"""Results of phases that other runs want too: a teacher is trained once."""

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from reprise.common import config as configs
from reprise.common.training import checkpoints, program
from reprise.common.training.phase import Phase

log = logging.getLogger("reprise")

# Code below common/ that a phase's result depends on, beside the file that defines its step.
_CODE = ("data", "models", "ops", "training")


def code_version(phase: Phase) -> str:
    """Hash of the source that makes a phase's result."""
    root = Path(__file__).resolve().parents[1]
    files = [path for part in _CODE for path in sorted((root / part).rglob("*.py"))]
    defined = inspect.getsourcefile(phase.init)
    if defined:
        files.append(Path(defined))
    joined = hashlib.sha256()
    for path in files:
        joined.update(path.read_bytes())
    return joined.hexdigest()[:16]


def kept(
    phases: Sequence[Phase],
    config: ConfigDict,
    seeds: Sequence[int],
    mesh: Mesh,
    previous: Any,
    train: Callable[[Any], Any],
) -> Any:
    """The phase's final state: from the cache where it is there, else trained and put there."""
    phase = phases[0]
    if phase.reuse is None or not config.cache_dir:
        return train(previous)
    depends = {"phase": phase.name, "seeds": list(seeds), "on": configs.to_plain(phase.reuse)}
    key = configs.digest({**depends, "code": code_version(phase)})
    folder = Path(config.cache_dir).expanduser() / f"{phase.name}-{key}"
    if (folder / "state").is_dir():
        log.info("phase %s: taken from %s", phase.name, folder)
        built = program.build(phase, mesh, num_seeds=len(seeds), previous=previous)
        return checkpoints.load_tree(folder / "state", built.state)
    state = train(previous)
    checkpoints.save_tree(folder / "state", state)
    if jax.process_index() == 0:
        (folder / "depends.json").write_text(json.dumps(depends, indent=1))
    return state
