"""Every shared field is checked before any compute, in one line: field, value, what is allowed."""

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from reprise.common import config as configs
from reprise.common.training import optimizers


def make(**fields):
    return configs.apply_overrides(configs.defaults("paper", "a", ("a", "b")), fields)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_steps", -1, "config.num_steps = -1: must be 0 or more"),
        ("batch_size", 0, "config.batch_size = 0: must be 1 or more"),
        ("batch_size", 12, "config.batch_size = 12: must divide by 8 devices x 1 microbatches"),
        ("accumulate", 3, "config.batch_size = 32: must divide by 8 devices x 3 microbatches"),
        ("precision", "fp16", "config.precision = 'fp16': allowed are float32, bfloat16"),
        ("ema_decay", 1.0, r"config.ema_decay = 1.0: must be in \[0, 1\)"),
        ("mesh.fsdp", 3, "config.mesh.fsdp = 3: must divide the 8 devices present"),
        ("mesh.data", 3, r"config.mesh.data = 3: data \* fsdp must be the 8 devices present"),
        ("study.seeds", (1, 1), r"config.study.seeds = \(1, 1\): must not repeat a seed"),
        ("study.seeds", (), r"config.study.seeds = \(\): needs a seed"),
        (
            "study.over_seeds",
            "pmap",
            "config.study.over_seeds = 'pmap': allowed are vmap, map",
        ),
        ("checkpoint.keep", 0, "config.checkpoint.keep = 0: 1 or more"),
        ("profile_steps", (3, 2), r"config.profile_steps = \(3, 2\): must be \(first, last\)"),
        ("profile_steps", (3,), r"config.profile_steps = \(3,\): must be \(first, last\)"),
        ("seed", -1, "config.seed = -1: must be 0 or more"),
        ("study.seeds", (0, -1), r"config.study.seeds = \(0, -1\): must be 0 or more"),
        ("optimizer.name", "adma", "config.optimizer.name = 'adma': allowed are adabelief"),
        ("optimizer.learning_rate", -1.0, "config.optimizer.learning_rate = -1.0: must be 0"),
        ("optimizer.schedule.name", "cos", "config.optimizer.schedule.name = 'cos': allowed are"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(field, value, message):
    with pytest.raises(ValueError, match=message):
        configs.validate(make(**{field: value}), num_devices=8)


def test_the_defaults_are_valid():
    configs.validate(make(), num_devices=8)


def test_processes_must_divide_the_batch():
    with pytest.raises(ValueError, match="must divide by the 3 processes"):
        configs.validate(make(batch_size=8), num_devices=1, num_processes=3)


def test_unknown_fields_and_wrong_types_are_refused():
    with pytest.raises(KeyError, match="batchsize"):
        make(batchsize=3)
    with pytest.raises(TypeError):
        make(batch_size="many")
    with pytest.raises(ValueError, match="variant 'c' of paper: allowed are a, b"):
        configs.defaults("paper", "c", ("a", "b"))


def test_overrides_leave_the_original_alone():
    config = configs.defaults("paper", "a", ("a",))
    assert configs.apply_overrides(config, {"optimizer.learning_rate": 0.5}) != config
    assert config.optimizer.learning_rate == 1e-3


def test_differences_name_the_fields():
    one, other = make(), make(**{"optimizer.learning_rate": 0.5, "num_steps": 7})
    assert configs.differences(configs.identity(one), configs.identity(other)) == [
        "num_steps: 1000 -> 7",
        "optimizer.learning_rate: 0.001 -> 0.5",
    ]


def test_how_a_run_is_watched_is_not_part_of_what_it_is():
    watched = make(**{"log.progress": False, "mesh.fsdp": 4, "checkpoint.every": 3})
    assert configs.identity(watched) == configs.identity(make())


def section(name="adam", learning_rate=0.1, schedule="constant", schedule_args=(), **args):
    made = configs.optimizer(name, learning_rate, **args)
    made.schedule.name = schedule
    made.schedule.args = ConfigDict(dict(schedule_args))
    return made


@pytest.mark.parametrize("name", optimizers.optimizer_names())
def test_every_optimiser_on_offer_makes_a_step(name):
    tx = optimizers.make(section(name), 10)
    params = {"w": jnp.ones((2, 2))}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].shape == (2, 2)


@pytest.mark.parametrize(
    ("schedule", "args", "values"),
    [
        ("constant", {}, {0: 0.1, 10: 0.1}),
        ("cosine_decay_schedule", {}, {0: 0.1, 5: 0.05, 10: 0.0}),
        ("warmup_cosine_decay_schedule", {"warmup_steps": 2}, {0: 0.0, 2: 0.1, 10: 0.0}),
        ("piecewise_constant_schedule", {"boundaries": (4, 8)}, {3: 0.1, 5: 0.01, 9: 0.001}),
        ("linear_schedule", {"end_value": 0.0}, {0: 0.1, 5: 0.05, 10: 0.0}),
    ],
)
def test_schedules_start_or_peak_at_the_learning_rate(schedule, args, values):
    rate = optimizers.make_schedule(
        section(schedule=schedule, schedule_args=args).schedule, 0.1, 10
    )
    for step, value in values.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (section(beta=0.9), "config.optimizer.args.beta = 0.9: adam has no such argument"),
        (section(schedule="linear_schedule"), "linear_schedule also needs end_value"),
        (
            section(schedule="piecewise_constant_schedule"),
            "takes boundaries",
        ),
        (
            section(schedule="cosine_decay_schedule", schedule_args={"steps": 3}),
            "config.optimizer.schedule.args.steps = 3: cosine_decay_schedule has no such argument",
        ),
    ],
)
def test_arguments_of_optimisers_and_schedules_are_checked(made, message):
    with pytest.raises(ValueError, match=message):
        optimizers.make(made, 10)


def test_clipping_and_l2_come_before_the_optimiser():
    made = section("sgd", 1.0)
    made.clip_norm, made.l2 = 1.0, 0.5
    tx = optimizers.make(made, 10)
    params = {"w": jnp.array([2.0])}
    updates, _ = tx.update({"w": jnp.array([10.0])}, tx.init(params), params)
    assert float(updates["w"][0]) == pytest.approx(-(1.0 + 0.5 * 2.0))
