"""How the attention heads are trained, then a student by their graphs, and how it is judged."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from reprise.common import config as configs
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import distillation, distillation_pool, distillation_setting
from reprise.common.training import distillation_baselines as baselines
from reprise.common.training.distillation import Carried, Setting
from reprise.common.training.phase import Phase
from reprise.papers.multi_head_graph_distillation import judging, layers, losses
from reprise.papers.svd_distillation import svd_distillation_loss

TAPS = ("stage1", "stage2", "stage3")  # after the ReLU that ends each stage
PAIRS = len(TAPS) - 1


def attention(setting: Setting, config: ConfigDict) -> Phase:
    """Phase 1: heads and estimators learn the teacher's own graphs; the student stays as it is.

    Ends with `params["extra"]`, a dict of parameters a pair, and its running statistics in
    `Carried.extra`.
    """
    m, section = config.model, config.init
    if section.optimizer.l2:
        raise ValueError(
            f"config.init.optimizer.l2 = {section.optimizer.l2!r}: must be 0, it would move the "
            "student; config.model.attention_l2 is the weight decay of the attention networks"
        )
    channels = distillation.tap_shapes(setting, setting.teacher)
    widths = [channels[name].shape[-1] for name in TAPS]

    def fresh(key: jax.Array) -> list[dict[str, jax.Array]]:
        keys = jax.random.split(key, PAIRS)
        each = zip(keys, itertools.pairwise(widths), strict=True)
        return [layers.init_params(k, front, back, m.num_heads) for k, (front, back) in each]

    def loss(params: Any, carried: Carried, batch: Any, key: jax.Array) -> Any:
        image = distillation_pool.transfer_images(batch)
        _, targets = distillation.run_teacher(setting, carried, image)
        vectors = judging.teacher_vectors([targets[name] for name in TAPS])
        squares = sum((x**2).sum() for x in jax.tree.leaves(params["extra"]))
        total, statistics, metrics = m.attention_l2 * squares, [], {}
        for i, trained in enumerate(params["extra"]):
            pair = {**trained, **carried.extra[i]}
            logits, new = layers.attention_logits(
                pair, vectors[i + 1], vectors[i], num_heads=m.num_heads, train=True
            )
            mask = layers.sample_head_mask(jax.random.fold_in(key, i), m.num_heads, len(image))
            estimate = layers.estimate_back_vectors(pair, vectors[i], logits, mask)
            metrics[f"estimator_{i + 1}"] = losses.vector_estimation_loss(
                estimate, vectors[i + 1]
            ).mean()
            total = total + metrics[f"estimator_{i + 1}"]
            statistics.append({**carried.extra[i], **new})
        return total, (carried._replace(extra=statistics), metrics)

    phase = distillation.student_phase(
        setting,
        section,
        loss,
        name="attention",
        extra_params=lambda key, carried: [layers.split_statistics(p)[0] for p in fresh(key)],
        batches=distillation_pool.batches(setting, section.batch_size),
    )

    def start(previous: Any) -> Any:
        # Running statistics start from constants, whatever the key.
        return [layers.split_statistics(p)[1] for p in fresh(jax.random.key(0))]

    return distillation_pool.carrying(phase, start)


def trained(previous: Any) -> list[dict[str, jax.Array]]:
    """Parameters and statistics of each pair, from the last state of `attention`."""
    pairs = zip(previous.params["extra"], previous.model_state.extra, strict=True)
    return [{**params, **statistics} for params, statistics in pairs]


def method(setting: Setting, config: ConfigDict) -> list[Phase]:
    """The phases of the student, after the teacher's."""
    m = config.model
    distillation.check_taps(setting, {n: n for n in TAPS}, channels=True, pixels=False)
    judge = judging.graphs(setting, TAPS, m.num_heads, config.batch_size)

    def mhgd(taps: Mapping[str, Any], targets: Mapping[str, Any], carried: Carried) -> Any:
        student, teacher = ([of[name] for name in TAPS] for of in (taps, targets))
        ours, theirs = losses.principal_vectors(student, teacher)
        loss = losses.multi_head_graph_distillation_loss
        return {"transfer": loss(carried.extra, ours, theirs, num_heads=m.num_heads)}

    def kd_svd(taps: Mapping[str, Any], targets: Mapping[str, Any], carried: Carried) -> Any:
        ours, theirs = ([of[n] for n in TAPS] for of in (taps, targets))
        return {"transfer": svd_distillation_loss(ours, theirs).sum()}

    transfers = {"mhgd": mhgd, "kd_svd": kd_svd, "ce_pool": lambda *_: {}}
    if m.method == "ce":
        [student] = baselines.cross_entropy(setting, config, evaluate=judge)
    elif m.method in transfers:
        student = distillation_pool.clipped_transfer(
            setting, config, transfers[m.method], evaluate=judge
        )
    else:
        raise ValueError(
            f"config.model.method = {m.method!r}: allowed are mhgd, kd_svd, ce, ce_pool"
        )
    # The baselines pass through the first phase too, so that the same heads judge them.
    return [attention(setting, config), distillation_pool.carrying(student, trained)]


def phases(config: ConfigDict) -> list[Phase]:
    """The teacher, its attention, then the student."""
    setting = distillation_setting.build(config)
    teacher = distillation_setting.teacher_phase(setting, config)
    return [teacher, *method(setting, config)]


def study(config: ConfigDict) -> Study:
    """MHGD against the student alone, on CIFAR-100 also KD-SVD: graphs' distance and accuracy."""
    arms = {
        "mhgd": Arm(),
        "ce": Arm({"model.method": "ce"}),
        "ce_pool": Arm({"model.method": "ce_pool"}),
    }
    if config.variant == "cifar100":
        arms = {
            "mhgd": Arm(reported={"accuracy": 0.7398}),
            "ce": Arm({"model.method": "ce"}, {"accuracy": 0.7176}),
            "kd_svd": Arm({"model.method": "kd_svd"}, {"accuracy": 0.7368}),
        }

    def claim(results: Results) -> tuple[str, bool]:
        ours, alone = results["mhgd"], results["ce"]
        less = 100 * (1 - ours["graph_kl"] / alone["graph_kl"])
        gain = 100 * (ours["accuracy"] - alone["accuracy"])
        share = [ours[f"estimator_{i}"] / ours[f"mean_vector_{i}"] for i in range(1, PAIRS + 1)]
        worst = max(s.max() for s in share)
        text = (
            "graphs at least 25 % closer to the teacher's than the student's alone in every seed: "
            f"{less.mean():.0f} % (worst {less.min():.0f} %); the estimator at most half as wrong "
            f"as the mean vector: worst {worst:.2f}; accuracy {gain.mean():+.2f} points (worst "
            f"seed {gain.min():+.2f})"
        )
        if "ce_pool" in results:
            pool = 100 * (ours["accuracy"] - results["ce_pool"]["accuracy"])
            text += (
                f", {pool.mean():+.2f} where the pool also passes through the baseline's BatchNorm"
            )
        return text, bool(less.min() >= 25 and worst < 0.5 and gain.mean() >= -2)

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        from reprise.papers.multi_head_graph_distillation import figures

        settings = [
            distillation_setting.build(configs.apply_overrides(config, {"seed": seed}))
            for seed in config.study.seeds
        ]
        heads, size = config.model.num_heads, config.batch_size
        evaluators = [judging.likeness(each, TAPS, heads, size) for each in settings]
        return [
            figures.attention_graphs(config, settings[0], TAPS, states, directory),
            figures.distances(config, results, states, evaluators, directory),
        ]

    return Study(arms, claim, figures=draw)
