"""What is measured of a trained network: its features, its targets, its collapse."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common.evaluation import representation
from reprise.papers.ensiam import losses, tasks
from reprise.papers.ensiam.views import augment_views


def variables(current: Any) -> dict[str, Any]:
    """What the network is applied with, of a state."""
    return {"params": current.params, "batch_stats": current.model_state["batch_stats"]}


def features(config: ConfigDict, model: Any, images: np.ndarray) -> Callable[[Any], Any]:
    """state -> {"embed": [N, e], "projection": [N, d]} of a whole set, with running statistics."""

    def apply(current: Any, batch: Any) -> Any:
        taps = model.apply(current, tasks.plain(config, batch["image"]), train=False)[1]
        return {name: taps[name].astype(jnp.float32) for name in ("embed", "projection")}

    collect = representation.features_over_set(apply, {"image": images}, config.judge.batch_size)
    return lambda current: collect(variables(current))


def variances(config: ConfigDict, model: Any, images: np.ndarray) -> Callable[[Any], Any]:
    """state -> mean variance of the target over redrawn views: (of one view, of the ensemble)."""
    count, redraws = config.judge.views, config.judge.redraws
    view = tasks.view_of(config, config.data.strength)

    @jax.jit
    def measure(variables: Any, images: jax.Array) -> Any:
        def redraw(key: jax.Array) -> Any:
            drawn = augment_views(key, tasks.to_float(images), count, view=view)
            flat = drawn.reshape(-1, *drawn.shape[2:])
            taps = model.apply(variables, flat, train=False)[1]
            z = taps["projection"].reshape(count, len(images), -1)
            return z[0], losses.ensemble_target(z)

        single, ensemble = jax.lax.map(redraw, jax.random.split(jax.random.key(0), redraws))
        return losses.target_variance(single).mean(), losses.target_variance(ensemble).mean()

    return lambda current: measure(variables(current), jnp.asarray(images))


def evaluator(config: ConfigDict, model: Any) -> Callable[[Any], dict[str, float]]:
    """evaluate(state) -> accuracies of kNN and of a linear probe, collapse, target variance."""
    j = config.judge
    built: dict[str, Any] = {}

    def build() -> None:
        train, test = tasks.sets(config)
        built["labels"] = train["label"], test["label"]
        built["features"] = [features(config, model, part["image"]) for part in (train, test)]
        if j.redraws:
            built["variances"] = variances(config, model, test["image"][: j.images])

    def probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
        if not j.labels_per_class:
            return representation.linear_probe(train, labels, test, truth, c=j.c)
        # The same labelled examples for every arm; another choice for every seed.
        chosen = [
            representation.few_labels(labels, j.labels_per_class, 1000 * config.seed + i)
            for i in range(j.draws)
        ]
        return float(
            np.mean(
                [
                    representation.linear_probe(train[c], labels[c], test, truth, c=j.c)
                    for c in chosen
                ]
            )
        )

    def evaluate(current: Any) -> dict[str, float]:
        if not built:
            build()
        train, test = (collect(current) for collect in built["features"])
        labels, truth = built["labels"]
        known, asked = train["embed"], test["embed"]
        out: dict[str, Any] = {
            "knn": representation.knn_accuracy(
                known, labels, asked, truth, k=j.k, temperature=j.temperature or None
            ),
            "probe": probe(known, labels, asked, truth),
            "collapse_std": representation.collapse_std(test["projection"], scaled=True),
            "effective_rank": representation.effective_rank(asked),
        }
        if j.redraws:
            single, ensemble = built["variances"](current)
            out |= {"variance_single": single, "variance_ensemble": ensemble}
        return {name: float(value) for name, value in out.items()}

    return evaluate
