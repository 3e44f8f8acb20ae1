"""Examples a second that the input pipeline delivers, over what a training step of a WRN-16-2 eats.

    python benchmarks/input_pipeline.py

32 x 32 x 3 images with random crop and flip, batch 128, on this machine. Both are measured in turns
in one process. Writes results/benchmarks/input_pipeline.json.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reprise.common import data
from reprise.common.models.wrn import WRN
from reprise.common.studies import benchmark
from reprise.common.training import state

BATCH = 128


def augment(example, rng):
    padded = np.pad(example["image"], ((4, 4), (4, 4), (0, 0)))
    top, left = rng.integers(0, 9, 2)
    image = padded[top : top + 32, left : left + 32]
    if rng.random() < 0.5:
        image = image[:, ::-1]
    return {"image": np.ascontiguousarray(image), "label": example["label"]}


def main():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10_000, 32, 32, 3)).astype(np.uint8)
    arrays = {"image": images, "label": rng.integers(0, 10, 10_000).astype(np.int32)}
    source = data.from_arrays("images", arrays)
    model, tx = WRN(16, 2, 10), optax.sgd(0.1, momentum=0.9)

    def loss(params, model_state, batch, key):
        image = batch["image"].astype(jnp.float32) / 255
        variables = {"params": params, "batch_stats": model_state}
        (logits, _), new = model.apply(variables, image, train=True, mutable=["batch_stats"])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return each.mean(), (new["batch_stats"], {})

    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    current = state.create(variables["params"], tx, variables["batch_stats"])
    step = jax.jit(state.gradient_step(loss, tx), donate_argnums=0)
    batch = {name: values[:BATCH] for name, values in arrays.items()}
    current, _ = step(current, batch, jax.random.key(0))
    eaten, delivered, plain = [], [], []
    for turn in range(3):
        began = time.perf_counter()
        for t in range(2):
            current, metrics = step(current, batch, jax.random.key(t))
        jax.block_until_ready(metrics)
        eaten.append(2 * BATCH / (time.perf_counter() - began))
        for rates, transform in ((delivered, augment), (plain, None)):
            batches = data.stream(source, BATCH, seed=turn, transform=transform).iterate(0)
            next(batches)
            began = time.perf_counter()
            for _ in range(50):
                next(batches)
            rates.append(50 * BATCH / (time.perf_counter() - began))
    rate = statistics.median(eaten)
    rows = {
        "WRN-16-2 training step": {"examples_per_second": rate},
        "crop and flip": {
            "examples_per_second": statistics.median(delivered),
            "delivered / eaten": statistics.median(delivered) / rate,
        },
        "arrays as they are": {
            "examples_per_second": statistics.median(plain),
            "delivered / eaten": statistics.median(plain) / rate,
        },
    }
    benchmark.write("input_pipeline", rows)


if __name__ == "__main__":
    main()
