"""How a student learns the teacher's singular vectors beside its labels, and how it is judged."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from reprise.common.evaluation.over_set import over_set
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import distillation, distillation_pool, distillation_setting
from reprise.common.training import distillation_baselines as baselines
from reprise.common.training.distillation import Carried, Setting
from reprise.common.training.phase import Phase
from reprise.papers.svd_distillation.losses import svd_distillation_loss

BASELINES = ("ce", "ce_pool", "fsp", "fsp_clipped")
TAPS = ("stage1", "stage2", "stage3")  # after the ReLU that ends each stage


def transfer_loss(config: ConfigDict, taps: Any, targets: Any) -> jax.Array:
    """`svd_distillation_loss` of named taps: [B]."""
    m = config.model
    ours, theirs = ([of[name] for name in TAPS] for of in (taps, targets))
    return svd_distillation_loss(
        ours, theirs, num_vectors=m.num_vectors, num_extra=m.num_extra, beta=m.beta
    )


def method(setting: Setting, config: ConfigDict) -> list[Phase]:
    """The phases of the student, after the teacher's."""
    m = config.model
    distillation.check_taps(setting, {n: n for n in TAPS}, channels=True, pixels=False)
    judge = distance(setting, config)

    def kd_svd(taps: Any, targets: Any, carried: Carried) -> dict[str, jax.Array]:
        return {"transfer": transfer_loss(config, taps, targets).sum()}

    def fsp(taps: Any, targets: Any, carried: Carried) -> dict[str, jax.Array]:
        return {"transfer": baselines.flow_losses(taps, targets, TAPS).sum()}

    transfers = {"kd_svd": kd_svd, "fsp_clipped": fsp, "ce_pool": lambda *_: {}}
    if m.method == "ce":
        return baselines.cross_entropy(setting, config, evaluate=judge)
    if m.method == "fsp":
        first = baselines.flow_initialisation(setting, config.init, TAPS, weight=m.fsp_weight)
        return [first, *baselines.cross_entropy(setting, config, evaluate=judge)]
    if m.method not in transfers:
        raise ValueError(
            f"config.model.method = {m.method!r}: allowed are kd_svd, fsp, fsp_clipped, ce, ce_pool"
        )
    student = distillation_pool.clipped_transfer(
        setting,
        config,
        transfers[m.method],
        pool_statistics=m.pool_statistics,
        evaluate=judge,
    )
    return [student]


def distance(setting: Setting, config: ConfigDict) -> Any:
    """evaluate(state) -> the transfer loss between student and teacher on the test images."""

    def each(current: Any, batch: Any) -> dict[str, jax.Array]:
        carried = current.model_state
        variables = {"params": current.params["student"], "batch_stats": carried.stats}
        _, taps = setting.student.apply(variables, batch["image"], train=False)
        _, targets = distillation.run_teacher(setting, carried, batch["image"])
        return {"relation_distance": transfer_loss(config, taps, targets)}

    return over_set(each, dict(setting.evaluation[""]), 200)


def phases(config: ConfigDict) -> list[Phase]:
    """The teacher, then the student."""
    setting = distillation_setting.build(config)
    teacher = distillation_setting.teacher_phase(setting, config)
    return [teacher, *method(setting, config)]


def study(config: ConfigDict) -> Study:
    """KD-SVD against the student alone and FSP, and what the pool does in BatchNorm alone."""
    arms = {
        "kd_svd": Arm(),
        "ce": Arm({"model.method": "ce"}),
        "ce_pool": Arm({"model.method": "ce_pool"}),
        "fsp": Arm({"model.method": "fsp"}),
        "fsp_clipped": Arm({"model.method": "fsp_clipped"}),
        "kd_svd_apart": Arm({"model.pool_statistics": False}),
    }
    if config.variant == "cifar100":
        arms = {
            "kd_svd": Arm(reported={"accuracy": 0.7368}),
            "ce": Arm({"model.method": "ce"}, {"accuracy": 0.7176}),
            "fsp": Arm({"model.method": "fsp"}, {"accuracy": 0.7265}),
            "fsp_clipped": Arm({"model.method": "fsp_clipped"}),
        }

    def claim(results: Results) -> tuple[str, bool]:
        gain = {
            arm: 100 * (results["kd_svd"]["accuracy"] - numbers["accuracy"])
            for arm, numbers in results.items()
        }
        alone = gain["ce"]
        text = (
            f"at least 1 point above the student alone: {alone.mean():+.2f} (worst seed "
            f"{alone.min():+.2f}); above FSP: {gain['fsp'].mean():+.2f} in two stages, "
            f"{gain['fsp_clipped'].mean():+.2f} with the same clipping in one"
        )
        if "ce_pool" in gain:
            text += (
                "; above the student alone with the pool's images in its BatchNorm statistics: "
                f"{gain['ce_pool'].mean():+.2f}"
            )
        least = min(each.mean() for arm, each in gain.items() if arm in BASELINES)
        return text, bool(alone.mean() >= 1 and least > 0)

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        from reprise.papers.svd_distillation import figures

        return [figures.gains(config, results, directory)]

    return Study(arms, claim, figures=draw)
