"""A training step of every distillation method, against its FLOPs and against PyTorch.

    python benchmarks/distillation.py [METHOD ...]

Needs the extra `[bench]`. The step that trains the student, of each paper's own `method` with its
defaults, and the same in plain eager PyTorch (`torch_distillation.py`; contiguous or channels last,
whichever is faster): WRN-16-2 teaches WRN-16-1, or WRN-22-1 where the channels must agree, with 32
images of 32 x 32, float32, both frameworks on one core. Seconds are processor time, which a machine
that others use does not lengthen: medians of calls in turns. Where all parameters can be copied to
the other framework the losses of the first step must agree.

`time / CE` and `FLOPs / CE` compare with the student alone; `beyond FLOPs` is the one over the
other. XLA counts FLOPs before it optimises; singular value decompositions count none. Memory is
what a step allocates beside parameters and optimiser: XLA's temporary buffers, the peak of
PyTorch's allocations. Writes results/benchmarks/distillation.json, unless methods are named.
"""

import os
import statistics
import sys
import time
from importlib import import_module

import jax
import numpy as np
import torch
import torch_distillation as peer

from reprise.common import config as base
from reprise.common.studies import benchmark
from reprise.common.training import distillation, distillation_baselines, distillation_setting
from reprise.common.training.distillation import Setting

BATCH, CLASSES, FIRST_CLASS = 32, 10, 5.0
STUDENT = "wrn-16-1"
SAME_CHANNELS = (
    "svd_distillation",
    "multi_head_graph_distillation",
    "embedding_procedure_transfer",
)
ONCE = {"xla_backend_optimization_level": 0}  # of what runs once
COPIED = ("ce", "kd", "activation_boundary", "overhaul_distillation", "svd_distillation")


def data():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(BATCH, 32, 32, 3)).astype(np.float32)
    # One label, which both networks prefer, so that every example may start a walk (BSS).
    return {"image": image, "label": np.zeros(BATCH, np.int32)}


def sgd():
    section = base.optimizer("sgd", 0.05, momentum=0.9, nesterov=True)
    section.l2 = 5e-4
    return section


def settings(config):
    """The same batch and optimiser for everybody; no schedule ends."""
    config.unlock()
    config.batch_size, config.num_steps, config.optimizer = BATCH, 10**6, sgd()
    if "init" in config:
        config.init.batch_size = BATCH
    return config


def bare():
    return settings(base.defaults("activation_boundary", "digits", ("digits",)))


def phases(name):
    """(setting, the student's phases up to the one that is timed)."""
    teacher = "wrn-22-1" if name in SAME_CHANNELS else "wrn-16-2"
    models = [distillation_setting.network(kind, CLASSES) for kind in (teacher, STUDENT)]
    both, count = data(), 3 if name == "feed" else 1
    setting = Setting(*models, both, both, {"": both}, count)
    if name in ("ce", "kd"):
        which = {"ce": "cross_entropy", "kd": "knowledge_distillation"}[name]
        return setting, getattr(distillation_baselines, which)(setting, bare())
    config = settings(import_module(f"reprise.configs.{name}").get_config("digits"))
    if name == "boundary_supporting_samples":
        config.model.num_samples = 64 * BATCH // 256
    found = import_module(f"reprise.papers.{name}.recipe").method(setting, config)
    return setting, found[:1] if name == "activation_boundary" else found


def ours(name):
    """(step() -> loss, FLOPs of a step, MiB of temporary memory, the parameters before it)."""
    setting, found = phases(name)
    teacher = distillation.teacher_phase(setting, bare(), {})
    previous = jax.jit(teacher.init, compiler_options=ONCE)(jax.random.key(0), None)
    previous[0].params["head"]["bias"] = (
        previous[0].params["head"]["bias"].at[..., 0].add(FIRST_CLASS)
    )
    for phase in found:
        previous = jax.jit(phase.init, compiler_options=ONCE)(jax.random.key(1), previous)
    state, phase = previous, found[-1]
    if "head" in state.params["student"]:
        head = state.params["student"]["head"]
        head["bias"] = head["bias"].at[0].add(FIRST_CLASS)
    resident = jax.device_put(dict(phase.batches))
    before = jax.tree.map(np.array, (state.params, state.model_state))
    arguments = (state, resident, jax.random.key(2))
    compiled = jax.jit(phase.step, donate_argnums=0).lower(*arguments).compile()
    work, memory = flops(phase.step, *arguments), compiled.memory_analysis().temp_size_in_bytes

    def step():
        nonlocal state
        state, metrics = compiled(state, resident, jax.random.key(2))
        return float(metrics["loss"])

    return step, work, memory / 2**20, before


def flops(function, *arguments):
    """As XLA counts them in the lowered program, bodies of loops as often as they run."""
    counted = jax.jit(function).lower(*arguments).cost_analysis()["flops"]
    return counted + _repeated(jax.make_jaxpr(function)(*arguments).jaxpr)


def _repeated(jaxpr):
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            body = eqn.params["jaxpr"]
            shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in body.in_avals]
            once = flops(jax.extend.core.jaxpr_as_fun(body), *shapes)
            total += (eqn.params["length"] - 1) * once
            continue
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if hasattr(inner, "jaxpr"):
                    total += _repeated(inner.jaxpr)
    return total


def theirs(name, before, memory_format):
    """step() -> loss of the peer, from the same parameters where they can be copied."""
    params, carried = before
    several = name == "feed"
    depth, width = (22, 1) if name in SAME_CHANNELS else (16, 2)

    def copied(depth, width, params, stats):
        net = peer.WRN(depth, width, CLASSES)
        peer.load(net, params, stats)
        return net.to(memory_format=memory_format)

    def teacher(index):
        variables = jax.tree.map(lambda x: x[index] if several else x, carried.teacher)
        net = copied(depth, width, variables["params"], variables["batch_stats"])
        return net.eval().requires_grad_(False)

    teachers = (
        [] if "head" not in params["student"] else [teacher(i) for i in range(1 + 2 * several)]
    )
    student = peer.WRN(16, 1, CLASSES).to(memory_format=memory_format)
    if "head" in params["student"]:
        student = copied(16, 1, params["student"], carried.stats)
    batch = data()
    image = torch.tensor(batch["image"].transpose(0, 3, 1, 2).copy())
    image = image.contiguous(memory_format=memory_format)
    label = torch.tensor(batch["label"]).long()
    step = peer.STEPS[name](teachers, student, image, label)
    for part, values in params["extra"].items():
        if part.startswith("connector"):
            own = {"0": values["conv"], "1": {key: values[key] for key in ("scale", "bias")}}
            peer.load(step.modules[-1].get_submodule(part), own, {})
    return lambda: step().item()


def allocated(step):
    """MiB that a step of PyTorch allocates at most."""
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 2**20


def measure(calls, repeats):
    """Median seconds of processor time of each call, taken in turns."""
    times = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.process_time()
            call()
            times[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    # Before either framework starts its threads.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    named = sys.argv[1:]
    methods = ["ce", *(m for m in peer.STEPS if m != "ce" and (not named or m in named))]
    calls, rows = {}, {}
    for name in methods:
        step, work, memory, before = ours(name)
        rows[name] = {"loss": step(), "gflops": work / 1e9, "memory_mib": memory}
        calls[name, "ours"] = step
        for kind in ("contiguous_format", "channels_last"):
            calls[name, kind] = theirs(name, before, getattr(torch, kind))
            loss = calls[name, kind]()
        calls[name, kind]()
        rows[name] |= {"torch_loss": loss, "torch_memory_mib": allocated(calls[name, kind])}
        print(name, rows[name], flush=True)
    for name in set(COPIED) & set(rows):
        ours_here, loss = rows[name]["loss"], rows[name]["torch_loss"]
        np.testing.assert_allclose(loss, ours_here, rtol=2e-3, err_msg=name)
    seconds = measure(calls, 3 if named else 9)
    for name, row in rows.items():
        mine = seconds[name, "ours"]
        best = min(seconds[name, kind] for kind in ("contiguous_format", "channels_last"))
        ratio, share = mine / seconds["ce", "ours"], row["gflops"] / rows["ce"]["gflops"]
        rows[name] = {
            "step_s": mine,
            "torch_step_s": best,
            "speed / torch": best / mine,
            "time / CE": ratio,
            "FLOPs / CE": share,
            "beyond FLOPs": ratio / share,
            **row,
        }
    if named:
        for name, row in rows.items():
            print(name, {key: float(f"{value:.4g}") for key, value in row.items()})
    else:
        benchmark.write("distillation", rows)


if __name__ == "__main__":
    main()
