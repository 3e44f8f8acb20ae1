"""What the common loop costs: python benchmarks/loop.py

1. The loop against a bare `for` over the same jitted step, at steps of about 1, 5 and 50 ms.
2. An MLP on digits: K steps a dispatch against one.
3. Five seeds in one program against one seed.

Both sides of a ratio are measured in turns in one process; medians. Writes
results/benchmarks/loop.json.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

from reprise.common import config as configs
from reprise.common.studies import benchmark
from reprise.common.training import optimizers, run, state
from reprise.common.training.phase import Phase


class Repeat:
    """A stream whose batches cost nothing."""

    def __init__(self, batch):
        self.batch = batch
        self.spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)

    def iterate(self, start):
        while True:
            yield self.batch


def config(num_steps, batch_size, **fields):
    made = configs.defaults("benchmark", "loop", ("loop",))
    made.num_steps, made.batch_size = num_steps, batch_size
    made.cache_dir = ""
    made.checkpoint.every = 0
    made.log.progress = False
    return configs.apply_overrides(made, fields)


def mlp(sizes, batch_of):
    """(init params, loss) of a ReLU network with softmax cross-entropy."""

    def init(key):
        keys = jax.random.split(key, len(sizes) - 1)
        shapes = zip(sizes[:-1], sizes[1:], keys, strict=True)
        return [jax.random.normal(k, (m, n)) * (2 / m) ** 0.5 for m, n, k in shapes]

    def loss(params, model_state, batch, key):
        x, y = batch_of(batch)
        for w in params[:-1]:
            x = jax.nn.relu(x @ w)
        each = optax.softmax_cross_entropy_with_integer_labels(x @ params[-1], y)
        return each.mean(), (model_state, {})

    return init, loss


def phase_of(made, init, loss, stream):
    tx = optimizers.make(made.optimizer, made.num_steps)
    step = state.gradient_step(loss, tx)
    return Phase("main", made.num_steps, lambda key, _: state.create(init(key), tx), step, stream)


def loop_seconds(made, phase, **kwargs):
    """Seconds a step of the loop as a user runs it, with a workdir, after the first dispatch."""
    with tempfile.TemporaryDirectory() as workdir:
        run.train(lambda config: [phase], made, workdir, **kwargs)
        last = (Path(workdir) / "timing.jsonl").read_text().splitlines()[-1]
    return 1 / json.loads(last)["steps_per_second"]


def bare_seconds(phase, batch, num_steps):
    """Seconds a step of a bare `for` with the step jitted and donated, one step in flight."""
    step = jax.jit(phase.step, donate_argnums=0)
    key = jax.random.key(0)
    current = phase.init(key, None)
    current, metrics = step(current, batch, jax.random.fold_in(key, 0))
    began = time.perf_counter()
    for t in range(num_steps):
        previous = metrics
        current, metrics = step(current, batch, jax.random.fold_in(key, t))
        jax.block_until_ready(previous)
    jax.block_until_ready(metrics)
    return (time.perf_counter() - began) / num_steps


def overhead(width, num_steps, repeats=5):
    """(milliseconds a step of the bare for, loop / bare)."""
    batch = {
        "x": np.random.default_rng(0).normal(size=(256, width)).astype(np.float32),
        "y": np.zeros(256, np.int32),
    }
    made = config(num_steps, 256)
    init, loss = mlp((width, width, width, 10), lambda b: (b["x"], b["y"]))
    phase = phase_of(made, init, loss, Repeat(batch))
    bare, loop = [], []
    for _ in range(repeats):
        bare.append(bare_seconds(phase, batch, num_steps))
        loop.append(loop_seconds(made, phase))
    ratios = [a / b for a, b in zip(loop, bare, strict=True)]
    return statistics.median(bare) * 1e3, statistics.median(ratios)


def digits(hidden=32, batch_size=32, repeats=3):
    """Seconds a step of an MLP on digits, the images kept on the device.

    Returns {(steps a dispatch, seeds): median seconds a step, all seeds together}.
    """
    data = load_digits()
    arrays = {"x": (data.data / 16).astype(np.float32), "y": data.target.astype(np.int32)}
    init, loss = mlp((64, hidden, 10), lambda b: (b["x"], b["y"]))
    times = {}
    for _ in range(repeats):
        for chunk in (1, 100):
            for seeds in ((0,), (0, 1, 2, 3, 4)):
                made = config(8000, batch_size, steps_per_dispatch=chunk, **{"log.every": 100})
                tx = optimizers.make(made.optimizer, made.num_steps)
                inner = state.gradient_step(loss, tx)

                def step(current, arrays, key, inner=inner):
                    draw, key = jax.random.split(key)
                    rows = jax.random.randint(draw, (batch_size,), 0, len(arrays["y"]))
                    return inner(current, jax.tree.map(lambda x: x[rows], arrays), key)

                def start(key, _, tx=tx):
                    return state.create(init(key), tx)

                phase = Phase("main", made.num_steps, start, step, arrays)
                seconds = loop_seconds(made, phase, seeds=seeds)
                times.setdefault((chunk, len(seeds)), []).append(seconds)
    return {key: statistics.median(values) for key, values in times.items()}


def main():
    rows = {}
    for target, width, steps in ((1, 256, 2000), (5, 768, 400), (50, 2560, 50)):
        milliseconds, ratio = overhead(width, steps)
        rows[f"loop / bare for, ~{target} ms"] = {"ratio": ratio, "bare_ms": milliseconds}
    times = digits()
    rows["digits MLP, 1 / 100 steps a dispatch"] = {"ratio": times[1, 1] / times[100, 1]}
    for chunk in (1, 100):
        label = f"digits MLP, 5 seeds / 1 seed, {chunk} steps a dispatch"
        rows[label] = {"ratio": times[chunk, 5] / times[chunk, 1]}
    benchmark.write("loop", rows)


if __name__ == "__main__":
    main()
