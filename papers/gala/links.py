"""Link prediction: held-out edges are in no operator and in no loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common.data.graphs import EdgeSplit, Graph, split_edges
from reprise.common.evaluation.link_prediction import link_prediction_metrics, pair_scores
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import optimizers, state
from reprise.common.training.phase import Phase
from reprise.papers.gala.parts import graph, method, resident
from reprise.papers.gala.readout import unit_rows

# AUC, AP. The paper's supplement was not at hand: GALA on Citeseer and its baselines are as a later
# survey prints them, those on Cora from memory of the papers.
REPORTED: dict[str, dict[str, dict[str, float]]] = {
    "cora": {
        "gala": {"auc@best": 0.921, "ap@best": 0.922},
        "gae": {"auc@best": 0.910, "ap@best": 0.920},
        "vgae": {"auc@best": 0.914, "ap@best": 0.926},
    },
    "citeseer": {
        "gala": {"auc@best": 0.944, "ap@best": 0.948},
        "gae": {"auc@best": 0.895, "ap@best": 0.899},
        "vgae": {"auc@best": 0.908, "ap@best": 0.920},
    },
}


def split_of(config: ConfigDict) -> tuple[Graph, EdgeSplit]:
    """The whole graph and its split, drawn by the run's seed."""
    d = config.data
    seed = config.seed if d.name == "planted" else 0
    whole = graph(d.name, d.count, d.neighbours, seed, config.data_dir)
    return whole, split_edges(whole.edges, whole.weights, len(whole.features), seed=config.seed)


def phases(config: ConfigDict) -> list[Phase]:
    """One phase."""
    whole, split = split_of(config)
    batch = resident(whole.features, split.train, split.train_weights)
    arm = method(config)
    tx = optimizers.make(config.optimizer, max(config.num_steps, 1))

    def init(key: jax.Array, previous: Any) -> state.TrainState:
        return state.create(arm.init(key, batch), tx)

    def loss(params: Any, model_state: Any, seen: Any, key: jax.Array) -> Any:
        value, _, metrics = arm.loss(params, seen, key)
        return value, (model_state, metrics)

    encode = jax.jit(arm.encode)

    def evaluate(current: state.TrainState) -> dict[str, float]:
        latent = encode(current.params, jax.tree.map(jnp.asarray, batch))
        out: dict[str, float] = {}
        for name, rows in (("", latent), ("_l2", unit_rows(latent))):
            rows = np.asarray(rows)

            def scores(links: Any, others: Any, rows: Any = rows) -> dict[str, float]:
                return link_prediction_metrics(pair_scores(rows, links), pair_scores(rows, others))

            found = scores(split.test, split.test_negative)
            out |= {f"{metric}{name}": value for metric, value in found.items()}
            found = scores(split.validation, split.validation_negative)
            out[f"validation_auc{name}"] = found["auc"]
        return out

    step = state.gradient_step(loss, tx, remat=config.remat)
    return [
        Phase(
            "train",
            config.num_steps,
            init,
            step,
            batch,
            evaluate,
            examples_per_step=len(whole.features),
        )
    ]


def study(config: ConfigDict) -> Study:
    """GALA, its control, the graph autoencoders, and S S X; the epoch by validation AUC."""
    m = config.model
    gae = {
        "optimizer.learning_rate": 1e-2,
        "optimizer.l2": 0.0,
        "num_steps": m.gae_steps,
    }
    settings: dict[str, dict[str, Any]] = {
        "gala": {},
        "smoothing_decoder": {"model.arm": "smoothing_decoder"},
        "gae": {"model.arm": "gae", **gae},
        "vgae": {"model.arm": "vgae", **gae},
        "smoothed_features": {"model.arm": "smoothed_features", "num_steps": 0},
    }
    reported = REPORTED.get(config.data.name, {})
    arms = {arm: Arm(changes, reported.get(arm, {})) for arm, changes in settings.items()}

    def claim(results: Results) -> tuple[str, bool]:
        mean = {arm: float(values["auc@best"].mean()) for arm, values in results.items()}
        text = (
            f"test AUC at the best validation epoch {mean['gala']:.3f}, at least 0.01 above GAE "
            f"({mean['gae']:.3f}) and VGAE ({mean['vgae']:.3f}). Smoothing decoder "
            f"{mean['smoothing_decoder']:.3f}, S S X {mean['smoothed_features']:.3f}"
        )
        return text, mean["gala"] >= max(mean["gae"], mean["vgae"]) + 0.01

    return Study(arms, claim, select="validation_auc")
