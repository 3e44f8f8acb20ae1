"""Denoising: the limit against the same module applied once."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common import data
from reprise.common.evaluation.over_set import over_set
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import state
from reprise.common.training.phase import Phase
from reprise.papers.fixed_point_layer import figures, layers, tasks
from reprise.papers.fixed_point_layer.parts import build_phase, with_unroll


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


def check_sides(config: ConfigDict) -> None:
    """Refuses crops larger than the embedded photographs; those of other sets are enlarged."""
    if config.data.name != "photos":
        return
    for field, split in (("patch", "train"), ("test_crop", "test")):
        photos = data.load("photos", split)
        most = min(min(photos[i]["image"].shape[:2]) for i in range(len(photos)))
        if config.data[field] > most:
            raise ValueError(
                f"config.data.{field} = {config.data[field]}: must be at most {most}, the shorter "
                "side of the smallest photograph"
            )


def phase(config: ConfigDict) -> Phase:
    check_sides(config)
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

    return build_phase(config, init, loss, stream, _restored(config, judge))


def denoising_sets(config: ConfigDict) -> dict[str, dict[str, np.ndarray]]:
    """Held-out photographs by prefix of their metrics; BSD68 too where it is prepared."""
    size, channels = config.data.test_crop, config.data.channels
    split = "test" if config.data.name == "photos" else "validation[:256]"
    sources = {"": (data.load(config.data.name, split, data_dir=config.data_dir or None), 16)}
    if channels == 1 and data.available("bsd68", config.data_dir or None)[0]:
        bsd68 = data.load("bsd68", "test", data_dir=config.data_dir or None)
        sources["bsd68_"] = (bsd68, 1)
    return {
        prefix: tasks.with_noise(
            tasks.grid_of_crops(source, min(size * (2 if prefix else 1), 320), channels, each),
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


def study(config: ConfigDict) -> Study:
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
            name: denoiser(config if name == "fpi" else with_unroll(config, 1)) for name in states
        }
        return [figures.restored(config, models, states, denoising_sets(config)[""], directory)]

    return Study(arms, claim, figures=draw)
