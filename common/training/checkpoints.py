"""Checkpoints of one phase: saved asynchronously, checked when they are read."""

import hashlib
import json
import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from reprise.common.training.logs import replace_text

log = logging.getLogger("reprise")


def _sums(directory: Path) -> dict[str, str]:
    """Checksum of every file below `directory`, by relative path."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.blake2b(path.read_bytes()).hexdigest()[:32]
        for path in files
    }


def _wrapped(state: Any) -> Any:
    """Orbax saves no single array and no empty tree; a phase's state may be either."""
    return {"state": state, "format": 1}


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class Checkpoints:
    """The checkpoints `directory/<step>` of one phase, newest last.

    Orbax writes each into a temporary folder and renames it, so a killed save leaves no step
    behind. Beside each finished one lies `<step>.json` with the checksum of its files: what was
    damaged later is noticed before it is used.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory = Path(os.path.abspath(directory))
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
                log.warning("checkpoint %s was half written when the run ended: removed", path)
                shutil.rmtree(path)
        _barrier("checkpoints-open")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=False
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._unsummed: int | None = None

    def save(self, step: int, state: Any) -> None:
        """Starts saving; the state may be donated as soon as this returns."""
        self.wait()
        args = ocp.args.Composite(state=ocp.args.StandardSave(_wrapped(state)))
        self._manager.save(step, args=args, force=True)
        self._unsummed = step

    def tick(self) -> None:
        """Writes the checksums of a save that has ended meanwhile. Cheap, never waits."""
        if self._unsummed is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the save under way is on disk and summed."""
        self._manager.wait_until_finished()
        step, self._unsummed = self._unsummed, None
        if step is not None and jax.process_index() == 0:
            self._write_sums(step)

    def _write_sums(self, step: int) -> None:
        sums = json.dumps(_sums(self.directory / str(step)))
        replace_text(self.directory / f"{step}.json", sums)
        for old in self.directory.glob("*.json"):
            if not (self.directory / old.stem).exists():
                old.unlink()

    def steps(self) -> list[int]:
        """Steps that can be restored, newest last."""
        return sorted(self._manager.all_steps())

    def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any] | None:
        """The newest undamaged state, as (step, state), or None where there is none.

        A damaged one is reported by name and set aside as `damaged-<step>`.

        Args:
          abstract: the state's shapes and dtypes with the shardings to restore to.
          step: only this one.
        """
        wanted = self.steps() if step is None else [step]
        for step in reversed(wanted):
            bad = self._damage(step)
            if not bad:
                try:
                    target = ocp.args.StandardRestore(_wrapped(abstract))
                    args = ocp.args.Composite(state=target)
                    return step, self._manager.restore(step, args=args).state["state"]
                # Orbax and tensorstore raise many kinds of error for an unreadable file.
                except Exception as error:
                    reason = str(error).splitlines()[0]
                    if bad is not None:
                        raise ValueError(
                            f"checkpoint {self.directory / str(step)} is whole but does not hold "
                            f"the state of this program ({reason}): use the code that wrote it, "
                            "or another --workdir"
                        ) from error
            else:
                reason = f"{', '.join(bad[:3])} not as written"
            self._set_aside(step, reason)
        return None

    def _damage(self, step: int) -> list[str] | None:
        """Files that differ from what was written; None where no checksums were kept."""
        sums = self.directory / f"{step}.json"
        if not sums.exists():
            return None
        expected, found = json.loads(sums.read_text()), _sums(self.directory / str(step))
        return sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))

    def _set_aside(self, step: int, reason: str) -> None:
        path = self.directory / str(step)
        log.warning("checkpoint %s is damaged (%s): trying the one before", path, reason)
        _barrier("checkpoints-damaged")
        if jax.process_index() == 0:
            aside = self.directory / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            (self.directory / f"{step}.json").unlink(missing_ok=True)
        _barrier("checkpoints-set-aside")
        self._manager.reload()

    def close(self) -> None:
        self.wait()
        self._manager.close()


def save_tree(path: Path, tree: Any) -> None:
    """Writes one pytree to a folder of its own; a folder already there is kept."""
    path = Path(os.path.abspath(path))
    if path.exists():
        return
    # First under a name that no other run has, which may be writing the same tree.
    unique = int(multihost_utils.broadcast_one_to_all(np.int32(secrets.randbits(31))))
    own = path.with_name(f"{path.name}.{unique}.tmp")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(own, _wrapped(tree))
    if jax.process_index() == 0:
        try:
            own.rename(path)
        except OSError:
            if not path.exists():
                raise
            shutil.rmtree(own)


def load_tree(path: Path, abstract: Any) -> Any:
    """Reads what `save_tree` wrote."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(Path(os.path.abspath(path)), _wrapped(abstract))["state"]
