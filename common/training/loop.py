"""The loop: runs one phase from its last checkpoint to its last step."""

import collections
import contextlib
import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from reprise.common.training import cost, program, sharding
from reprise.common.training.checkpoints import Checkpoints
from reprise.common.training.logs import MetricsLog, on_terminal
from reprise.common.training.phase import Phase
from reprise.common.training.state import averaged

log = logging.getLogger("reprise")

PREFETCH = 2  # batches put on the devices before they are needed


class Preempted(Exception):
    """The machine is taken away (SIGTERM); the state is saved."""


class Preemption:
    """Notes SIGTERM while it is entered; on several hosts all agree on the dispatch to stop after.

    There jax.distributed's own handler hears the signal, and must not be replaced.
    """

    def __enter__(self) -> "Preemption":
        self._seen = False
        self._before: Any = None
        self._calls = 0
        if jax.process_count() == 1:
            # Not from another thread than the main one: whoever owns that handles signals.
            with contextlib.suppress(ValueError):
                self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: Any) -> None:
        self._seen = True

    def reached(self) -> bool:
        """Asked once a dispatch."""
        if jax.process_count() == 1:
            return self._seen
        # The hosts agree on one number to stop at, which must come up on each of them: steps
        # won't do, they jump by a dispatch and begin again with every phase.
        self._calls += 1
        return bool(multihost_utils.reached_preemption_sync_point(self._calls))


def run_phase(
    phases: Sequence[Phase],
    config: ConfigDict,
    seeds: Sequence[int],
    mesh: Mesh,
    previous: Any,
    metrics_log: MetricsLog,
    checkpoints: Checkpoints | None,
    preemption: Preemption,
) -> Any:
    """Trains one phase for all seeds together, from its newest checkpoint if it has one.

    Args:
      phases: the phase as each seed's recipe gives it; `init` and `step` are taken from the first.
      config: the shared fields of `reprise.common.config`.
      seeds: one or several; with several every leaf of the state has a leading seed axis.
      mesh: the devices.
      previous: final state of the phase before.
      metrics_log: where metrics go.
      checkpoints: where the state goes, or None to keep nothing.
      preemption: says when to save and stop.

    Returns:
      The final state.

    Raises:
      Preempted: SIGTERM came; a checkpoint of this very step was saved.
      FloatingPointError: too many steps in a row without a finite loss or gradient.
    """
    phase = phases[0]
    resident, shared = _resident(phases)
    # The first batch is fetched before anything is compiled: a missing data set is told at once.
    first_batches = [iter(p.batches.iterate(0)) for p in phases] if phase.is_streamed() else []
    for batches in first_batches if phase.num_steps else []:
        next(batches)
    del first_batches
    compiled = program.build(
        phase,
        mesh,
        num_seeds=len(seeds),
        over_seeds=config.study.over_seeds,
        shared_batch=shared,
        previous=previous,
    )
    make_keys = jax.jit(
        lambda: program.phase_keys(phase, seeds), out_shardings=sharding.replicated(mesh)
    )
    keys = make_keys()
    restored = checkpoints.restore(compiled.state) if checkpoints else None
    start, state = restored or (0, compiled.init(keys, previous))
    # Rows newer than the checkpoint are written again; without one, all of the phase's are.
    kept = start if restored else -1
    metrics_log.rewind(lambda row: row["phase"] != phase.name or row["step"] <= kept)
    if start:
        log.info("phase %s: continues at step %d of %d", phase.name, start, phase.num_steps)
    if restored and start == phase.num_steps:
        return state

    def evaluate(step: int, state: Any) -> None:
        if phase.evaluate is None:
            return
        for i, seed in enumerate(seeds):
            values = phases[i].evaluate(averaged(seed_state(state, i, len(seeds))))
            metrics_log.write(phase.name, step, seed, "eval", values)

    flops = cost.step_flops(compiled, keys) if phase.num_steps else 0.0
    cost.describe(phase.name, state, flops)
    if not phase.is_streamed():
        resident = sharding.put_whole(resident, sharding.replicated(mesh))
    examples = phase.examples_per_step or (config.batch_size if phase.is_streamed() else 0)
    batches = _device_batches(phases, compiled, config, start, phase.num_steps)
    watch = _Watch(phase, config, examples * len(seeds), flops, start, metrics_log)
    in_flight: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

    def settle(limit: int) -> None:
        """Waits until at most `limit` dispatches are under way, and books the others."""
        while len(in_flight) > limit:
            steps, metrics = in_flight.popleft()
            watch.book(compiled.metrics, steps, np.asarray(metrics), seeds)

    step = start
    with watch:
        while step < phase.num_steps:
            steps: Any = np.arange(step, chunk_end(step, phase.num_steps, config), dtype=np.int32)
            batch = next(batches) if phase.is_streamed() else resident
            watch.profile(int(steps[0]), int(steps[-1]))
            with jax.profiler.StepTraceAnnotation(phase.name, step_num=step):
                state, metrics = compiled.dispatch(state, batch, keys, steps)
            in_flight.append((steps, metrics))
            step = int(steps[-1]) + 1
            # Bounded everywhere: with collectives on the CPU an unbounded queue aborts the
            # process, and a long queue anywhere only delays errors and signals.
            settle(config.max_in_flight - 1)
            stop = preemption.reached() and step < phase.num_steps
            last = step == phase.num_steps
            if _due(step, config.eval_every) and not last:
                settle(0)
                evaluate(step, state)
            if checkpoints:
                checkpoints.tick()
                if stop or (_due(step, config.checkpoint.every) and not last):
                    settle(0)
                    metrics_log.sync()
                    checkpoints.save(step, state)
            if stop:
                if checkpoints:
                    checkpoints.wait()
                raise Preempted(f"phase {phase.name}: saved step {step} of {phase.num_steps}")
        settle(0)
    evaluate(step, state)
    if checkpoints:
        metrics_log.sync()
        checkpoints.save(step, state)
        checkpoints.wait()
    return state


def seed_state(state: Any, index: int, num_seeds: int) -> Any:
    """The state of one seed."""
    return state if num_seeds == 1 else jax.tree.map(lambda x: x[index], state)


def chunk_end(step: int, num_steps: int, config: ConfigDict) -> int:
    """Where the dispatch that starts at `step` ends.

    It depends on the config alone, so that a resumed run dispatches the same chunks.
    """
    ends = [num_steps]
    for every in (config.steps_per_dispatch, config.eval_every, config.checkpoint.every):
        if every:
            ends.append((step // every + 1) * every)
    return min(ends)


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _resident(phases: Sequence[Phase]) -> tuple[Any, bool]:
    """Arrays that stay on the devices, and whether one copy serves all seeds."""
    if phases[0].is_streamed() or phases[0].batches is None:
        return None, True
    leaves = [jax.tree.leaves(phase.batches) for phase in phases]
    if all(x is y for other in leaves[1:] for x, y in zip(leaves[0], other, strict=True)):
        return phases[0].batches, True
    return jax.tree.map(lambda *xs: np.stack(xs), *(phase.batches for phase in phases)), False


def _device_batches(
    phases: Sequence[Phase], compiled: program.Program, config: ConfigDict, start: int, end: int
) -> Iterator[Any]:
    """Batches on the devices, stacked [K, (seeds,) B, ...], a few ahead of their use."""
    if not phases[0].is_streamed():
        return
    streams = [phase.batches.iterate(start) for phase in phases]
    where = jax.tree.leaves(compiled.batch)[0].sharding

    def fetch(step: int) -> Any:
        each = []
        for _ in range(step, chunk_end(step, end, config)):
            one = [next(stream) for stream in streams]
            each.append(one[0] if len(one) == 1 else jax.tree.map(lambda *xs: np.stack(xs), *one))
        if len(each) == 1:
            stacked = jax.tree.map(lambda x: np.asarray(x)[None], each[0])
        else:
            stacked = jax.tree.map(lambda *xs: np.stack(xs), *each)
        return sharding.put(stacked, where)

    ahead: collections.deque[Any] = collections.deque()
    step = start
    while step < end or ahead:
        while step < end and len(ahead) < PREFETCH:
            ahead.append(fetch(step))
            step = chunk_end(step, end, config)
        yield ahead.popleft()


class _Watch:
    """Progress bar, throughput, rows of metrics, the profiler, and the check for non-finite."""

    def __init__(
        self,
        phase: Phase,
        config: ConfigDict,
        examples: int,
        flops: float,
        start: int,
        metrics_log: MetricsLog,
    ):
        self.phase, self.config, self.log = phase, config, metrics_log
        self.examples, self.flops = examples, flops
        show = config.log.progress and jax.process_index() == 0 and on_terminal()
        self.bar = tqdm(
            total=phase.num_steps,
            initial=start,
            desc=phase.name,
            unit="step",
            disable=not show,
            dynamic_ncols=True,
        )
        self.bad = 0
        self.tracing = False
        # The first dispatch compiles: speed counts from its end.
        self.since: tuple[int, float] | None = None

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.bar.close()
        if self.tracing:
            jax.profiler.stop_trace()

    def profile(self, first: int, last: int) -> None:
        begin, end = self.config.profile_steps
        if self.log.path is None or (begin, end) == (0, 0):
            return
        if not self.tracing and begin <= last and first <= end:
            jax.profiler.start_trace(str(self.log.path.parent / "profile"))
            self.tracing = True
        elif self.tracing and first > end:
            jax.profiler.stop_trace()
            self.tracing = False

    def book(
        self, names: Sequence[str], steps: np.ndarray, values: np.ndarray, seeds: Sequence[int]
    ) -> None:
        """Takes the metrics [K, (seeds,) names] of one dispatch."""
        values = values.reshape(len(steps), len(seeds), len(names))
        every = self.config.log.every
        for k, step in enumerate(steps.tolist()):
            self._check(names, step + 1, values[k])
            if (step + 1) % every == 0 or step + 1 == self.phase.num_steps:
                for seed, row in zip(seeds, values[k], strict=True):
                    metrics = dict(zip(names, row.tolist(), strict=True))
                    self.log.write(self.phase.name, step + 1, seed, "train", metrics)
                self._speed(step + 1, dict(zip(names, values[k].mean(0).tolist(), strict=True)))
        self.bar.update(len(steps))
        if self.since is None:
            self.since = (int(steps[-1]) + 1, time.perf_counter())

    def _speed(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = {k: f"{v:.4g}" for k, v in metrics.items() if k in ("loss", "accuracy")}
        if self.since is not None and step > self.since[0]:
            seconds = time.perf_counter() - self.since[1]
            rate = (step - self.since[0]) / seconds
            speed = {"steps_per_second": rate}
            if self.examples:
                speed["examples_per_second"] = rate * self.examples
                shown["ex/s"] = f"{rate * self.examples:.0f}"
            used = cost.utilisation(self.flops * rate)
            if used is not None:
                speed["utilisation"] = used
                shown["of peak"] = f"{used:.1%}"
            self.log.time(self.phase.name, step, seconds=seconds, **speed)
        self.bar.set_postfix(shown, refresh=False)

    def _check(self, names: Sequence[str], step: int, values: np.ndarray) -> None:
        """Stops a run that no longer learns anything, before it overwrites a checkpoint."""
        if "nonfinite" in names:
            bad = float(values[:, names.index("nonfinite")].max())
        elif "loss" in names:
            finite = np.isfinite(values[:, names.index("loss")]).all()
            self.bad = 0 if finite else self.bad + 1
            bad = self.bad
        else:
            return
        if bad >= self.config.max_nonfinite:
            raise FloatingPointError(
                f"phase {self.phase.name!r}, step {step}: loss or gradient was not finite for "
                f"{bad:.0f} steps in a row (config.max_nonfinite = {self.config.max_nonfinite}); "
                "nothing was saved since the last checkpoint. Lower config.optimizer."
                "learning_rate, set config.optimizer.clip_norm, or look at the data of these steps."
            )
