"""A meta-step of MAML and CxGrad against MAML written with torch.func.

    python benchmarks/contextual_gradient_scaling.py

Needs the extra `[bench]`. Loss and second-order meta-gradient of 4 tasks, 5-way 1- and 5-shot, 5
inner steps, the network of 4 convolutions on 28 x 28 images, on one core: seconds (median of
calls in turns), meta-steps a second, and compiled temporary memory with and without recomputing the
inner steps (`jax.checkpoint`). Torch runs its tasks by `vmap` or one after another, whichever is
faster. Writes results/benchmarks/contextual_gradient_scaling.json.
"""

import os
import statistics
import time

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from reprise.common.studies import benchmark
from reprise.papers.contextual_gradient_scaling import (
    ConvNet,
    cxgrad_query_loss,
    init_generator,
    maml_query_loss,
)

TASKS, WAYS, STEPS, SIZE, FILTERS, QUERIES = 4, 5, 5, 28, (32, 32, 32, 32), 5
RATE = 0.01


def tasks(shots):
    rng = np.random.default_rng(0)

    def part(per_class):
        images = rng.normal(size=(TASKS, WAYS * per_class, SIZE, SIZE, 1)).astype(np.float32)
        return images, np.tile(np.arange(WAYS).repeat(per_class), (TASKS, 1))

    return *part(shots), *part(QUERIES)


def ours(params, generator, net, checkpoint, with_context):
    def apply_fn(params, images):
        return net.apply({"params": params}, images)[0]

    options = dict(num_steps=STEPS, inner_learning_rate=RATE, checkpoint=checkpoint)

    def one(meta, *task):
        if not with_context:
            return maml_query_loss(apply_fn, meta["net"], *task, **options)
        paths = net.scaled_paths()
        return cxgrad_query_loss(
            apply_fn, meta["net"], meta["generator"], *task, scaled_paths=paths, **options
        )

    meta = {"net": params, "generator": generator} if with_context else {"net": params}

    def loss(meta, *batch):
        return jax.vmap(one, (None, 0, 0, 0, 0))(meta, *batch).mean()

    return jax.jit(jax.value_and_grad(loss)), meta


def torch_network(params):
    """The same network with the same numbers."""
    layers, channels = [], 1
    for filters in FILTERS:
        layers += [
            nn.Conv2d(channels, filters, 3, padding=1, bias=False),
            nn.BatchNorm2d(filters, track_running_stats=False),
            nn.LeakyReLU(0.01),
            nn.MaxPool2d(2),
        ]
        channels = filters
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, WAYS))
    with torch.no_grad():
        for i in range(len(FILTERS)):
            kernel = np.array(params[f"conv{i}"]["kernel"]).transpose(3, 2, 0, 1)
            net[4 * i].weight.copy_(torch.from_numpy(kernel.copy()))
        net[-1].weight.copy_(torch.from_numpy(np.array(params["linear"]["kernel"]).T.copy()))
        net[-1].bias.zero_()
    return net


def torch_maml(params, batch, vectorised):
    net = torch_network(params)
    meta = {name: value.detach() for name, value in net.named_parameters()}
    norms = [str(i) for i, layer in enumerate(net) if isinstance(layer, nn.BatchNorm2d)]
    fixed = {name for name in meta if name.split(".")[0] in norms}
    support, labels, query, targets = (torch.from_numpy(x.copy()) for x in batch)
    support, query = support.permute(0, 1, 4, 2, 3), query.permute(0, 1, 4, 2, 3)

    def inner(fast, rest, images, labels):
        return F.cross_entropy(functional_call(net, {**fast, **rest}, (images,)), labels)

    def one(meta, support, labels, query, targets):
        fast = {name: value for name, value in meta.items() if name not in fixed}
        rest = {name: value for name, value in meta.items() if name in fixed}
        for _ in range(STEPS):
            slopes, _ = grad_and_value(inner)(fast, rest, support, labels)
            fast = {name: fast[name] - RATE * slopes[name] for name in fast}
        return F.cross_entropy(functional_call(net, {**fast, **rest}, (query,)), targets)

    def loss(meta):
        batch = (support, labels, query, targets)
        if vectorised:
            return vmap(one, (None, 0, 0, 0, 0))(meta, *batch).mean()
        return sum(one(meta, *(x[i] for x in batch)) for i in range(TASKS)) / TASKS

    return lambda: grad_and_value(loss)(meta)


def measure(calls, repeats=7):
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    # One core for both, before either makes its threads: the number of cores drops out.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    net = ConvNet(WAYS, FILTERS)
    params = net.init(jax.random.key(0), np.zeros((1, SIZE, SIZE, 1), np.float32))["params"]
    generator = init_generator(jax.random.key(1), num_scales=len(FILTERS))
    rows = {}
    for shots in (1, 5):
        batch = tasks(shots)
        calls, memory, losses = {}, {}, {}
        for name, checkpoint, with_context in (
            ("maml", False, False),
            ("maml, checkpoint", True, False),
            ("cxgrad", False, True),
            ("cxgrad, checkpoint", True, True),
        ):
            step, meta = ours(params, generator, net, checkpoint, with_context)
            compiled = step.lower(meta, *batch).compile()
            memory[name] = compiled.memory_analysis().temp_size_in_bytes / 2**20
            losses[name] = float(compiled(meta, *batch)[0])
            calls[name] = lambda run=compiled, meta=meta, batch=batch: jax.block_until_ready(
                run(meta, *batch)
            )
        for name, vectorised in (("torch.func, vmap", True), ("torch.func, loop", False)):
            calls[name] = torch_maml(params, batch, vectorised)
            losses[name] = calls[name]()[1].item()
            np.testing.assert_allclose(losses[name], losses["maml"], rtol=1e-3)
        seconds = measure(calls)
        peer = min(seconds[name] for name in seconds if name.startswith("torch"))
        for name in calls:
            rows[f"{shots}-shot: {name}"] = {
                "meta-steps/s": 1 / seconds[name],
                "speed / torch.func": peer / seconds[name],
                "memory_mib": memory.get(name),
                "loss": losses[name],
            }
    benchmark.write("contextual_gradient_scaling", rows)


if __name__ == "__main__":
    main()
