"""How the fixed-point layer is trained and judged: denoising, maze reachability, Bibtex."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from reprise.common import data
from reprise.common.evaluation.over_set import over_set
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import optimizers, state
from reprise.common.training.phase import Phase
from reprise.papers.fixed_point_layer import figures, layers, tasks
from reprise.papers.fixed_point_layer.fixed_point import spectral_radius
from reprise.papers.fixed_point_layer.metrics import binary_cross_entropy, multilabel_f1


def _layer(config: ConfigDict, cell: Any) -> layers.FixedPoint:
    model = config.model
    return layers.FixedPoint(
        cell=cell, unroll=model.unroll, solver=model.solver, tol=model.tol, max_iter=model.max_iter
    )


def _phase(
    config: ConfigDict, init: Any, loss: Any, stream: Any, evaluate: Any, **more: Any
) -> Phase:
    tx = optimizers.make(config.optimizer, config.num_steps)
    step = state.gradient_step(
        loss,
        tx,
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
        remat=config.remat,
    )

    def start(key: jax.Array, previous: Any) -> state.TrainState:
        return state.create(init(key)["params"], tx, ema=config.ema_decay > 0)

    return Phase("train", config.num_steps, start, step, stream, evaluate, **more)


def denoiser(config: ConfigDict) -> layers.Denoiser:
    model = config.model
    return layers.Denoiser(
        channels=config.data.channels,
        features=model.features,
        contraction=model.contraction,
        unroll=model.unroll,
        solver=model.solver,
        tol=model.tol,
        max_iter=model.max_iter,
        dtype=jnp.dtype(config.precision),
    )


def _denoise(config: ConfigDict) -> Phase:
    sigma, channels = config.data.sigma, config.data.channels
    model = denoiser(config)
    train = data.load(config.data.name, "train", data_dir=config.data_dir or None)
    stream = data.stream(
        train,
        config.batch_size,
        seed=config.seed,
        transform=tasks.crop(config.data.patch, channels),
        spec={
            "clean": jax.ShapeDtypeStruct(
                (config.batch_size, config.data.patch, config.data.patch, channels), jnp.float32
            )
        },
    )

    def restore(params: Any, noisy: Any) -> Any:
        estimate, taps = model.apply({"params": params}, noisy.astype(config.precision))
        return estimate.astype(jnp.float32), taps["stats"]

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, config.data.patch, config.data.patch, channels)))

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        clean = batch["clean"]
        noisy = clean + sigma * jax.random.normal(key, clean.shape)
        estimate, stats = restore(params, noisy)
        value = ((estimate - clean) ** 2).mean()
        metrics = {
            "iterations": stats.num_iters.astype(jnp.float32),
            "converged": stats.converged.mean(),
        }
        return value, (model_state, metrics)

    def judge(current: state.TrainState, batch: Any) -> Any:
        estimate, stats = restore(current.params, batch["noisy"])
        return {
            "psnr": tasks.psnr(estimate, batch["clean"]),
            "noisy_psnr": tasks.psnr(batch["noisy"], batch["clean"]),
            "iterations": jnp.full(len(batch["clean"]), stats.num_iters, jnp.float32),
        }

    return _phase(config, init, loss, stream, _restored(config, judge))


def denoising_sets(config: ConfigDict) -> dict[str, dict[str, np.ndarray]]:
    """Held-out photographs by prefix of their metrics; BSD68 too where it is prepared."""
    size, channels = config.data.test_crop, config.data.channels
    split = "test" if config.data.name == "photos" else "validation[:256]"
    sources = {"": (data.load(config.data.name, split, data_dir=config.data_dir or None), 16)}
    if channels == 1 and data.available("bsd68", config.data_dir or None)[0]:
        bsd68 = data.load("bsd68", "test", data_dir=config.data_dir or None)
        sources["bsd68_"] = (bsd68, 2)
    return {
        prefix: tasks.with_noise(
            tasks.grid_of_crops(source, min(size * (4 if prefix else 1), 320), channels, each),
            config.data.sigma,
        )
        for prefix, (source, each) in sources.items()
    }


def _restored(config: ConfigDict, judge: Any) -> Any:
    built: dict[str, Any] = {}

    def evaluate(current: state.TrainState) -> dict[str, float]:
        if not built:
            for prefix, examples in denoising_sets(config).items():
                built[prefix] = over_set(judge, examples, 16)
        return {
            prefix + name: value
            for prefix, each in built.items()
            for name, value in each(current).items()
        }

    return evaluate


def maze_solver(config: ConfigDict) -> layers.FixedPoint:
    return _layer(config, layers.MazeCell(config.model.features))


def _maze(config: ConfigDict) -> Phase:
    model = maze_solver(config)
    seeds = np.random.SeedSequence(config.seed).generate_state(3)
    train = tasks.mazes(config.data.train, config.data.size, int(seeds[0]))
    stream = data.stream(data.from_arrays("mazes", train), config.batch_size, seed=config.seed)

    def solve(params: Any, y: Any) -> Any:
        return model.apply({"params": params}, y, jnp.zeros_like(y[..., :1]))

    def init(key: jax.Array) -> Any:
        y = jnp.zeros((1, config.data.size, config.data.size, 2))
        return model.init(key, y, y[..., :1])

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        value, stats = solve(params, batch["y"])
        error = ((value - batch["value"]) ** 2).mean()
        metrics = {"error": error, "iterations": stats.num_iters.astype(jnp.float32)}
        if config.model.radius_penalty:
            radius = spectral_radius(
                model.map(), params["cell"], jax.lax.stop_gradient(value), batch["y"], key, 10
            )
            metrics["radius"] = radius.mean()
            excess = jax.nn.relu(radius - config.model.radius_target)
            error = error + config.model.radius_penalty * (excess**2).mean()
        return error, (model_state, metrics)

    def judge(current: state.TrainState, batch: Any) -> Any:
        value, stats = solve(current.params, batch["y"])
        iterations = jnp.full(len(value), stats.num_iters, jnp.float32)
        error = ((value - batch["value"]) ** 2).mean((1, 2, 3))
        return {"squared": error, "iterations": iterations}

    tests = {
        "": tasks.mazes(config.data.test, config.data.size, int(seeds[1])),
        "large_": tasks.mazes(config.data.test // 3, 2 * config.data.size, int(seeds[2])),
    }
    judges = {prefix: over_set(judge, examples, 100) for prefix, examples in tests.items()}

    def evaluate(current: state.TrainState) -> dict[str, float]:
        out = {}
        for prefix, judged in judges.items():
            values = judged(current)
            out[f"{prefix}rmse"] = float(np.sqrt(values["squared"]))
            out[f"{prefix}iterations"] = values["iterations"]
        return out

    return _phase(config, init, loss, stream, evaluate)


def _bibtex(config: ConfigDict) -> Phase:
    m = config.model
    dtype = jnp.dtype(config.precision)
    form = {"nn": layers.FPINN, "gd": layers.FPIGD, "mlp": layers.MLP}[m.form]
    options: dict[str, Any] = {"features": m.features, "num_labels": 159, "dtype": dtype}
    if m.form != "mlp":
        options |= {
            "solver": m.solver,
            "tol": m.tol,
            "max_iter": m.max_iter,
            "relative": m.relative,
            "backward_solver": m.backward_solver,
            "backward_tol": m.backward_tol,
        }
    if m.form == "gd":
        options["step_size"] = m.step_size
    model = form(**options)

    # Resident: the whole training set is 35 MB, and a batch is a gather on the device.
    rows = tasks.bibtex("train", config.data_dir)

    def predict(params: Any, features: Any) -> Any:
        out, taps = model.apply({"params": params}, features.astype(dtype))
        return out.astype(jnp.float32), taps

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, 1836)))

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        out, taps = predict(params, batch["features"])
        if m.form == "nn":
            value = binary_cross_entropy(out, batch["labels"]).mean()
        else:
            value = optax.sigmoid_binary_cross_entropy(out, batch["labels"]).mean()
        metrics = {}
        if "stats" in taps:
            metrics["iterations"] = taps["stats"].num_iters.astype(jnp.float32)
            metrics["converged"] = taps["stats"].converged.mean()
        return value, (model_state, metrics)

    def judge(current: state.TrainState, batch: Any) -> Any:
        out, _ = predict(current.params, batch["features"])
        probabilities = out if m.form == "nn" else jax.nn.sigmoid(out)
        return {"f1": multilabel_f1(probabilities, batch["labels"])}

    judges = {
        "val_": over_set(judge, tasks.bibtex("validation", config.data_dir), 488),
        "": over_set(judge, tasks.bibtex("test", config.data_dir), 2515),
    }

    def evaluate(current: state.TrainState) -> dict[str, float]:
        return {f"{prefix}f1": judged(current)["f1"] for prefix, judged in judges.items()}

    phase = _phase(config, init, loss, rows, evaluate, examples_per_step=config.batch_size)
    count = len(rows["features"])

    def step(current: Any, resident: Any, key: jax.Array) -> Any:
        draw, key = jax.random.split(key)
        chosen = jax.random.choice(draw, count, (config.batch_size,), replace=False)
        return phase.step(current, jax.tree.map(lambda x: x[chosen], resident), key)

    return Phase(**{**vars(phase), "step": step})


_TASKS = {"denoise": _denoise, "maze": _maze, "bibtex": _bibtex}


def phases(config: ConfigDict) -> list[Phase]:
    """One phase: train the layer, or with `model.unroll` the same module applied that often."""
    return [_TASKS[config.model.task](config)]


def study(config: ConfigDict) -> Study:
    return {"denoise": _denoise_study, "maze": _maze_study, "bibtex": _bibtex_study}[
        config.model.task
    ](config)


def _denoise_study(config: ConfigDict) -> Study:
    arms = {"fpi": Arm(), "feed_forward": Arm({"model.unroll": 1})}

    def claim(results: Results) -> tuple[str, bool]:
        gain = results["fpi"]["psnr"] - results["feed_forward"]["psnr"]
        text = (
            f"the limit restores better than the same module applied once: {gain.mean():+.2f} dB "
            f"(every seed above 0: {'yes' if (gain > 0).all() else 'no'})"
        )
        return text, bool((gain > 0).all())

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        models = {
            name: denoiser(config if name == "fpi" else _with_unroll(config, 1)) for name in states
        }
        return [figures.restored(config, models, states, denoising_sets(config)[""], directory)]

    return Study(arms, claim, figures=draw)


def _with_unroll(config: ConfigDict, unroll: int) -> ConfigDict:
    changed = ConfigDict(config.to_dict())
    changed.model.unroll = unroll
    return changed


def _maze_study(config: ConfigDict) -> Study:
    arms = {
        "fpi": Arm(),
        "fpi_radius": Arm({"model.radius_penalty": 1.0}),
        "once": Arm({"model.unroll": 1}),
        "three_times": Arm({"model.unroll": 3}),
    }

    def claim(results: Results) -> tuple[str, bool]:
        baseline = np.minimum(results["once"]["rmse"], results["three_times"]["rmse"])
        ratio = results["fpi"]["rmse"] / baseline
        text = (
            "RMSE at most 0.92 of the better of one and three applications in every seed: mean "
            f"ratio {ratio.mean():.2f}, worst {ratio.max():.2f}"
        )
        return text, bool((ratio <= 0.92).all())

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        examples = tasks.mazes(6, 2 * config.data.size, 0)
        models = {
            "fpi": maze_solver(config),
            "once": maze_solver(_with_unroll(config, 1)),
        }
        return [figures.mazes(config, models, states, examples, directory)]

    return Study(arms, claim, figures=draw)


def _bibtex_study(config: ConfigDict) -> Study:
    reported = {"nn": 0.434, "gd": 0.432}[config.model.form]
    arms = {
        "fpi": Arm(reported={"f1@best": reported}),
        "mlp": Arm(
            {"model.form": "mlp", "optimizer.learning_rate": 1e-2}, reported={"f1@best": 0.389}
        ),
    }

    def claim(results: Results) -> tuple[str, bool]:
        ours, baseline = results["fpi"]["f1@best"], results["mlp"]["f1@best"]
        text = (
            f"test F1 at the best validation epoch is at least 0.42 and 2 points above an MLP of "
            f"the same width: {ours.mean():.3f} against {baseline.mean():.3f}"
        )
        return text, bool(ours.mean() >= 0.42 and (ours - baseline).mean() >= 0.02)

    return Study(arms, claim, select="val_f1")
