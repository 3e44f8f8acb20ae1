"""100 labelled 8x8 digits and 1200 without labels: the embedded proof that three papers share."""

from ml_collections import ConfigDict

from reprise.common import config as base


def sgd(rate: float, num_steps: int, drops: tuple[float, ...], scale: float = 0.1) -> ConfigDict:
    """SGD with Nesterov's momentum whose rate drops at these shares of its steps."""
    section = base.optimizer("sgd", rate, momentum=0.9, nesterov=True)
    section.l2 = 5e-4
    if drops:
        section.schedule.name = "piecewise_constant_schedule"
        section.schedule.args.boundaries = tuple(round(num_steps * d) for d in drops)
        section.schedule.args.scale = scale
    return section


def fill(config: ConfigDict) -> None:
    """Networks, data, teacher and the student's 120 epochs; `config` has the section `model`."""
    config.study.over_seeds = "map"  # vmapped convolutions are slow on CPUs
    config.study.seeds = (0, 1, 2, 3, 4)
    config.model.teacher, config.model.student = "pooled-16-2", "pooled-16-1"
    config.data = ConfigDict()
    config.data.name = "digits_pool"
    config.data.count = 100  # labelled examples of the student
    config.batch_size = 50  # labelled examples a step, and as many of the pool
    config.num_steps = 240
    config.optimizer = sgd(0.05, config.num_steps, (0.6, 0.85))
    config.teacher = ConfigDict()
    config.teacher.batch_size, config.teacher.num_steps = 64, 25 * 18
    config.teacher.optimizer = sgd(0.05, config.teacher.num_steps, (0.6, 0.85))
    config.steps_per_dispatch = 30
