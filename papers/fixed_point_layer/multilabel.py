"""Multi-label classification of Bibtex: FPI_NN and FPI_GD against an MLP of the same width."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from reprise.common.evaluation.over_set import over_set
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import state
from reprise.common.training.phase import Phase
from reprise.papers.fixed_point_layer import layers, tasks
from reprise.papers.fixed_point_layer.metrics import binary_cross_entropy, multilabel_f1
from reprise.papers.fixed_point_layer.parts import build_phase

FORMS: dict[str, Any] = {"nn": layers.FPINN, "gd": layers.FPIGD, "mlp": layers.MLP}


def phase(config: ConfigDict) -> Phase:
    m = config.model
    dtype = jnp.dtype(config.precision)
    form = FORMS[m.form]
    options: dict[str, Any] = {"features": m.features, "num_labels": 159, "dtype": dtype}
    if m.form != "mlp":
        options |= {
            "solver": m.solver,
            "tol": m.tol,
            "max_iter": m.max_iter,
            "relative": m.relative,
            "backward_solver": m.backward_solver,
            "backward_tol": m.backward_tol,
            "backward_max_iter": m.backward_max_iter or None,
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
        features = batch["features"]
        if m.dropout:
            # Of y, once for the whole iteration: the map stays one and the same.
            kept = jax.random.bernoulli(key, 1 - m.dropout, features.shape)
            features = jnp.where(kept, features / (1 - m.dropout), 0.0)
        out, taps = predict(params, features)
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

    trained = build_phase(config, init, loss, rows, evaluate, examples_per_step=config.batch_size)
    count = len(rows["features"])

    def step(current: Any, resident: Any, key: jax.Array) -> Any:
        draw, key = jax.random.split(key)
        chosen = jax.random.choice(draw, count, (config.batch_size,), replace=False)
        return trained.step(current, jax.tree.map(lambda x: x[chosen], resident), key)

    return Phase(**{**vars(trained), "step": step})


def study(config: ConfigDict) -> Study:
    reported = {"nn": 0.434, "gd": 0.432}
    if config.model.form not in reported:
        raise ValueError(
            f"config.model.form = {config.model.form!r}: a study compares nn or gd with mlp"
        )
    arms = {
        "fpi": Arm(reported={"f1@best": reported[config.model.form]}),
        "mlp": Arm(
            {"model.form": "mlp", "model.dropout": 0.0, "optimizer.learning_rate": 1e-2},
            reported={"f1@best": 0.389},
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
