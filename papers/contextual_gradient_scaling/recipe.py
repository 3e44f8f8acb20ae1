"""How MAML, ANIL and CxGrad are meta-trained and judged."""

import functools
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from reprise.common import config as configs
from reprise.common.evaluation.few_shot import over_episodes
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import optimizers, state
from reprise.common.training.phase import Phase
from reprise.papers.contextual_gradient_scaling import diagnostics, figures, learner, tasks


def phases(config: ConfigDict) -> list[Phase]:
    """One phase of meta-training; a batch is a meta-batch of tasks."""
    if config.model.method not in learner.METHODS:
        raise ValueError(
            f"config.model.method = {config.model.method!r}: allowed are "
            f"{', '.join(learner.METHODS)}"
        )
    tx = optimizers.make(config.optimizer, max(config.num_steps, 1))
    train = tasks.stream(config, "train")
    spec = train.spec["support_images"]
    image = jax.ShapeDtypeStruct(spec.shape[2:], spec.dtype)

    def init(key: jax.Array, previous: Any) -> state.TrainState:
        return state.create(learner.init(config, image, key), tx)

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        def one(task: Any) -> Any:
            judged = learner.judge(config, params, task, training=True)
            return judged.loss, judged.accuracy

        each, accuracy = jax.vmap(one)(batch)
        return each.mean(), (model_state, {"accuracy": accuracy.mean()})

    def accuracy(params: Any, batch: Any) -> jax.Array:
        def one(task: Any) -> jax.Array:
            return learner.judge(config, params, task, training=False).accuracy

        return jax.vmap(one)(batch)

    measure = diagnostics.layers(config)

    @functools.cache
    def judges() -> dict[str, Any]:
        """Built at the first evaluation: building needs the data."""
        d = config.data
        parts = {"val_": ("validation", d.val_tasks), "": ("test", d.test_tasks)}
        return {
            prefix: over_episodes(accuracy, tasks.held_out(config, *part), d.eval_batch)
            for prefix, part in parts.items()
        }

    def evaluate(current: state.TrainState) -> dict[str, float]:
        out: dict[str, float] = {}
        for prefix, judged in judges().items():
            found = judged(current.params)
            out |= {f"{prefix}{name}": value for name, value in found.items()}
        del out["val_accuracy_ci95"]
        moved = measure(current.params)
        *convolutions, head = moved.changes
        out["conv_to_head"] = float(sum(convolutions) / len(convolutions) / head)
        out["representation_change"] = moved.representation
        if moved.gammas.size:
            out["gamma"] = float(moved.gammas[0].mean())
            out["gamma_std_over_tasks"] = float(moved.gammas[1].max())
        return out

    def draw(current: state.TrainState, directory: Path) -> list[Path]:
        moved = {config.model.method: measure(current.params)}
        return [figures.layers(moved, directory / "layers.png")]

    step = state.gradient_step(loss, tx, accumulate=config.accumulate, remat=config.remat)
    return [Phase("train", config.num_steps, init, step, train, evaluate, draw)]


def study(config: ConfigDict) -> Study:
    """CxGrad, the same without its context, MAML at several inner rates, and ANIL."""
    arms = {
        "cxgrad": Arm(reported=dict(config.model.reported)),
        "no_context": Arm({"model.context_learning_rate": 0.0}),
    }
    for rate in config.model.baseline_rates:
        change = {"model.method": "maml", "model.inner_learning_rate": rate}
        arms[f"maml_{rate:g}"] = Arm(change)
    # The head alone needs no small steps.
    change = {"model.method": "anil", "model.inner_learning_rate": max(config.model.baseline_rates)}
    arms["anil"] = Arm(change)

    def best(results: Results) -> str:
        """MAML's rate is chosen on validation tasks."""
        names = [name for name in results if name.startswith("maml_")]
        return max(names, key=lambda name: results[name]["val_accuracy"].mean())

    def claim(results: Results) -> tuple[str, bool]:
        ours, name = results["cxgrad"], best(results)
        maml = results[name]
        margin, least = 100 * (ours["accuracy"] - maml["accuracy"]), config.model.least_margin
        ratio = (ours["conv_to_head"] > maml["conv_to_head"]).all()
        change = (ours["representation_change"] > maml["representation_change"]).all()
        context = 100 * (ours["accuracy"] - results["no_context"]["accuracy"])
        text = (
            f"at least {least:g} points above MAML at its best rate ({name}, by validation) in "
            f"every seed: {', '.join(f'{v:+.1f}' for v in margin)}; convolutions move more against "
            f"the head: {'yes' if ratio else 'no'}; the representation changes more: "
            f"{'yes' if change else 'no'}. What the context adds to the scaling: "
            f"{', '.join(f'{v:+.1f}' for v in context)}"
        )
        return text, bool((margin >= least).all() and ratio and change)

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        moved = {}
        for name in ("cxgrad", best(results)):
            arm = configs.apply_overrides(config, arms[name].overrides)
            moved[name] = diagnostics.layers(arm)(states[name][0].params)
        return [
            figures.accuracies(results, directory / f"{config.variant}-accuracy.png"),
            figures.layers(moved, directory / f"{config.variant}-layers.png"),
        ]

    return Study(arms, claim, figures=draw)
