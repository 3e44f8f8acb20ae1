"""A small recipe for tests of the loop; also runs as a program, to be killed and started again.

python tests/toy.py WORKDIR [field=value ...] trains it.
"""

import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common import config as configs
from reprise.common.training import optimizers, state
from reprise.common.training.phase import Phase

FEATURES, CLASSES = 8, 4


def examples(seed, step, count):
    rng = np.random.default_rng((seed, step))
    x = rng.normal(size=(count, FEATURES)).astype(np.float32)
    return x, x[:, :CLASSES].argmax(1).astype(np.int32)


class ToyStream(NamedTuple):
    """Batch t is a pure function of (seed, t)."""

    batch_size: int
    seed: int
    delay: float = 0.0

    @property
    def spec(self):
        return {
            "x": jax.ShapeDtypeStruct((self.batch_size, FEATURES), jnp.float32),
            "y": jax.ShapeDtypeStruct((self.batch_size,), jnp.int32),
        }

    def iterate(self, start):
        index, count = jax.process_index(), jax.process_count()
        while True:
            x, y = examples(self.seed, start, self.batch_size)
            rows = self.batch_size // count
            own = slice(index * rows, (index + 1) * rows)
            yield {"x": x[own], "y": y[own]}
            time.sleep(self.delay)
            start += 1


def get_config(**fields):
    config = configs.defaults("toy", "toy", ("toy",))
    config.num_steps, config.batch_size, config.log.every = 12, 16, 1
    config.checkpoint.every, config.eval_every = 4, 6
    config.compilation_cache = config.cache_dir = ""
    config.model = ConfigDict(dict(width=32, noise=0.1, delay=0.0, poison=-1))
    return configs.apply_overrides(config, fields)


def phases(config):
    tx = optimizers.make(config.optimizer, config.num_steps)
    stream = ToyStream(config.batch_size, config.seed, config.model.delay)

    def init(key, previous):
        w = jax.random.normal(key, (FEATURES, config.model.width)) * 0.3
        v = jnp.zeros((config.model.width, CLASSES))
        if previous is not None:
            w, v = previous.params["w"], previous.params["v"]
        return state.create({"w": w, "v": v}, tx, ema=config.ema_decay > 0)

    def forward(params, x):
        return jax.nn.relu(x @ params["w"]) @ params["v"]

    def loss(params, model_state, batch, key):
        x = batch["x"] + config.model.noise * jax.random.normal(key, batch["x"].shape)
        logits = forward(params, x.astype(config.precision)).astype(jnp.float32)
        each = -jax.nn.log_softmax(logits)[jnp.arange(len(x)), batch["y"]]
        accuracy = (logits.argmax(-1) == batch["y"]).mean()
        return each.mean(), (model_state, {"accuracy": accuracy})

    step = state.gradient_step(
        loss, tx, accumulate=config.accumulate, ema_decay=config.ema_decay, remat=config.remat
    )

    def poisoned(train_state, batch, key):
        bad = (config.model.poison >= 0) & (train_state.step >= config.model.poison)
        batch = {**batch, "x": jnp.where(bad, jnp.nan, batch["x"])}
        return step(train_state, batch, key)

    def evaluate(train_state):
        x, y = examples(999, 0, 64)
        right = jax.jit(lambda params: (forward(params, x).argmax(-1) == y).mean())
        return {"accuracy": float(right(train_state.params))}

    def draw(train_state, directory):
        path = directory / "shape.txt"
        path.write_text(f"{jax.jit(lambda w: w.shape[0])(train_state.params['w'])}")
        return [path]

    first = Phase("warmup", config.num_steps // 3, init, poisoned, stream, evaluate)
    return [first, Phase("main", config.num_steps, init, poisoned, stream, evaluate, draw)]


if __name__ == "__main__":
    from reprise.common.training import loop, run
    from reprise.launch import initialize_distributed

    texts = dict(arg.split("=") for arg in sys.argv[2:])
    import ast

    fields = {}
    for name, text in texts.items():
        try:
            fields[name] = ast.literal_eval(text)
        except ValueError:
            fields[name] = text
    initialize_distributed(asked=False)
    try:
        run.train(phases, get_config(**fields), sys.argv[1])
    except loop.Preempted as stopped:
        print(stopped)
