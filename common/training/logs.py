"""Where metrics go: metrics.jsonl, and TensorBoard and W&B where asked."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax


def on_terminal() -> bool:
    """True where a person watches: a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or, where the process is killed in the middle, not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


class MetricsLog:
    """Rows of metrics, in memory and in `workdir/metrics.jsonl`.

    A row is `{"phase", "step", "seed", "kind": "train" | "eval", metric: value, ...}` and holds
    nothing that differs between two runs of the same config: times go to `timing.jsonl`. Every
    process has the rows, process 0 writes them.
    """

    def __init__(self, workdir: Path | None, section: Any, name: str):
        self.path = None if workdir is None else workdir / "metrics.jsonl"
        lines: list[str] = []
        if self.path is not None and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A row that a crash cut off has no end of line.
        self.rows: list[dict[str, Any]] = [json.loads(x) for x in lines if x.endswith("\n")]
        self._file: Any = None
        self._timing: Any = None
        self._board: Any = None
        self._wandb: Any = None
        if workdir is None or jax.process_index() != 0:
            return
        self._file = open(workdir / "metrics.jsonl", "a", encoding="utf-8")
        self._timing = open(workdir / "timing.jsonl", "a", encoding="utf-8")
        if section.tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"))
        if section.wandb:
            import wandb

            # The same workdir is the same W&B run, so that a resumed run goes on in its curves.
            where = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:8]
            self._wandb = wandb.init(
                project=section.wandb,
                name=name,
                dir=str(workdir),
                id=f"{name}-{where}".replace(":", "-"),
                resume="allow",
            )
            self._wandb.define_metric("*", step_metric="step")

    def rewind(self, keep: Any) -> None:
        """Drops the rows that a resumed run writes again, and a row cut off by a crash.

        Args:
          keep: row -> whether it stays.
        """
        self.rows = [row for row in self.rows if keep(row)]
        if self._file is None:
            return
        self._file.close()
        replace_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._file = open(self.path, "a", encoding="utf-8")

    def write(
        self, phase: str, step: int, seed: int, kind: str, metrics: Mapping[str, float]
    ) -> None:
        row = {"phase": phase, "step": step, "seed": seed, "kind": kind}
        row |= {name: float(value) for name, value in sorted(metrics.items())}
        self.rows.append(row)
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
        prefix = f"{phase}/{kind}" if seed < 0 else f"{phase}/{kind}/seed{seed}"
        self._scalars(prefix, metrics, step)

    def time(self, phase: str, step: int, **values: float) -> None:
        """Writes what depends on the machine and the day."""
        if self._timing is not None:
            self._timing.write(json.dumps({"phase": phase, "step": step, **values}) + "\n")
        self._scalars(f"{phase}/speed", values, step)

    def _scalars(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{prefix}/{name}", float(value), step)
        if self._wandb is not None:
            row = {f"{prefix}/{name}": float(value) for name, value in values.items()}
            self._wandb.log({**row, "step": step})

    def sync(self) -> None:
        """Puts the rows on disk: a checkpoint must never be newer than its metrics."""
        for file in (self._file, self._timing):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        self.sync()
        for sink in (self._file, self._timing, self._board):
            if sink is not None:
                sink.close()
        if self._wandb is not None:
            self._wandb.finish()
