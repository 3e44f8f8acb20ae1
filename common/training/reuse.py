"""Results of phases that other runs want too: a teacher is trained once."""

import contextlib
import hashlib
import inspect
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from reprise.common import config as configs
from reprise.common.training import checkpoints, program
from reprise.common.training.phase import Phase

log = logging.getLogger("reprise")

# Code below common/ that a phase's result depends on, beside the package that defines its step.
_CODE = ("data", "models", "ops", "training")


def code_version(phase: Phase) -> str:
    """Hash of the source that makes a phase's result."""
    root = Path(__file__).resolve().parents[1]
    files = [path for part in _CODE for path in sorted((root / part).rglob("*.py"))]
    defined = inspect.getsourcefile(phase.init)
    if defined:
        # A paper's losses and models lie beside its recipe; common/ has its parts listed above.
        folder = Path(defined).parent
        files += sorted(folder.glob("*.py")) if folder.parent.name == "papers" else [Path(defined)]
    joined = hashlib.sha256()
    for path in files:
        joined.update(path.read_bytes())
    return joined.hexdigest()[:16]


def folder(phase: Phase, config: ConfigDict, seeds: Sequence[int]) -> Path | None:
    """Where the phase's final state is kept; None for a phase that is not reusable."""
    if phase.reuse is None or not config.cache_dir:
        return None
    depends = {"phase": phase.name, "seeds": list(seeds), "on": configs.to_plain(phase.reuse)}
    key = configs.digest({**depends, "code": code_version(phase)})
    return Path(config.cache_dir).expanduser() / f"{phase.name}-{key}"


def load(path: Path, phase: Phase, num_seeds: int, mesh: Mesh, previous: Any) -> Any:
    """The final state kept in a folder, or None where there is none.

    A damaged one is reported by name and set aside as `damaged-<name>`.
    """
    if not path.is_dir():
        return None
    built = program.build(phase, mesh, num_seeds=num_seeds, previous=previous)
    try:
        kept = checkpoints.load_tree(path, built.state)
    # Orbax and tensorstore raise many kinds of error for an unreadable file.
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        log.warning("phase %s: %s is damaged (%s): trained again", phase.name, path, reason)
        if jax.process_index() == 0:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # another run may have been first
                path.rename(aside)
        return None
    log.info("phase %s: taken from %s", phase.name, path)
    return kept
