"""The loop: phases, seeds, dispatches, resuming, devices, processes, guards."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from reprise.common.training import checkpoints, loop, run
from reprise.common.training.phase import Phase

TOY = Path(__file__).resolve().parents[2] / "toy.py"
sys.path.insert(0, str(TOY.parent))
import toy  # noqa: E402


def start(workdir, *fields, devices=1, env=()):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **dict(env)}
    return subprocess.Popen(
        [sys.executable, str(TOY), str(workdir), *fields],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, code=0, timeout=120):
    out, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, out
    return out


def metrics(workdir):
    return (Path(workdir) / "metrics.jsonl").read_bytes()


def rows(workdir):
    return [json.loads(line) for line in metrics(workdir).decode().splitlines()]


def final_state(workdir, config=None):
    return jax.device_get(run.train(toy.phases, config or toy.get_config(), workdir).state)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def close(one, other, tolerance=2e-5):
    assert [(r["phase"], r["step"], r["kind"]) for r in one] == [
        (r["phase"], r["step"], r["kind"]) for r in other
    ]
    for a, b in zip(one, other, strict=True):
        for name in ("loss", "grad_norm", "accuracy"):
            if name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An uninterrupted run of the toy recipe on one device."""
    workdir = tmp_path_factory.mktemp("plain")
    run.train(toy.phases, toy.get_config(), workdir)
    return workdir


def test_phases_hand_over_their_state_and_log_every_step(plain):
    found = rows(plain)
    train = [(r["phase"], r["step"]) for r in found if r["kind"] == "train"]
    assert train == [("warmup", t) for t in range(1, 5)] + [("main", t) for t in range(1, 13)]
    evals = [(r["phase"], r["step"]) for r in found if r["kind"] == "eval"]
    assert evals == [("warmup", 4), ("main", 6), ("main", 12)]
    by_step = {(r["phase"], r["step"]): r for r in found if r["kind"] == "train"}
    assert by_step["main", 1]["loss"] < by_step["warmup", 1]["loss"]


def test_a_finished_workdir_is_left_as_it_is(plain, caplog):
    before = metrics(plain)
    with caplog.at_level("INFO", "reprise"):
        again = run.train(toy.phases, toy.get_config(), plain)
    assert "finished; nothing to do" in caplog.text
    assert metrics(plain) == before
    assert again.metrics[0]["accuracy"] == rows(plain)[-1]["accuracy"]


def test_a_workdir_of_another_config_is_refused_by_field(plain):
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.001 -> 0.5"):
        run.train(toy.phases, toy.get_config(**{"optimizer.learning_rate": 0.5}), plain)


@pytest.mark.parametrize("trial", range(2))
def test_killed_at_any_moment_resumes_to_the_same_bits(plain, tmp_path, trial):
    rng = random.Random(trial)
    kills = 0
    for _ in range(3):
        process = start(tmp_path, "model.delay=0.15")
        # Kill at a moment of the training proper, wherever that is on this machine.
        deadline = time.monotonic() + 60
        written = (tmp_path / "metrics.jsonl").stat().st_size if kills else 0
        path = tmp_path / "metrics.jsonl"
        while time.monotonic() < deadline and process.poll() is None:
            if path.exists() and path.stat().st_size > written:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.8))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
    assert kills
    finish(start(tmp_path, "model.delay=0.0"), code=1)  # another config: refused
    finish(start(tmp_path, "model.delay=0.15"))
    assert metrics(tmp_path) == metrics(plain)
    config = toy.get_config(**{"model.delay": 0.15})
    assert_same(final_state(tmp_path, config), final_state(plain))


def test_sigterm_saves_exits_0_and_continues_to_the_same_bits(plain, tmp_path):
    process = start(tmp_path, "model.delay=0.3", "checkpoint.every=0")
    while not (tmp_path / "metrics.jsonl").exists() or not metrics(tmp_path).count(b"main"):
        assert process.poll() is None
        time.sleep(0.02)
        # Rows are buffered until a checkpoint or the end: look at the folder instead.
        if (tmp_path / "checkpoints" / "1-main").exists():
            time.sleep(0.8)
            break
    process.send_signal(signal.SIGTERM)
    assert "phase main: saved step" in finish(process)
    assert "continues" not in finish(start(tmp_path, "model.delay=0.3"))
    assert metrics(tmp_path) == metrics(plain)


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    plain, tmp_path, harm, caplog
):
    run.train(toy.phases, toy.get_config(), tmp_path)
    newest = tmp_path / "checkpoints" / "1-main" / "12"
    if harm == "empty":
        newest = newest.with_name("99")
        newest.mkdir()
    else:
        path = max((newest / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
        data = bytearray(path.read_bytes())
        if harm == "flip":
            data[len(data) // 2] ^= 1
        path.write_bytes(data if harm == "flip" else data[: len(data) // 2])
    (tmp_path / "checkpoints" / "1-main" / "13.orbax-checkpoint-tmp").mkdir()
    with caplog.at_level("WARNING", "reprise"):
        run.train(toy.phases, toy.get_config(), tmp_path)
    assert f"checkpoint {newest} is damaged" in caplog.text
    assert "13.orbax-checkpoint-tmp was half written" in caplog.text
    assert newest.with_name(f"damaged-{newest.name}").exists()
    assert metrics(tmp_path) == metrics(plain)
    assert_same(final_state(tmp_path), final_state(plain))


def test_a_whole_checkpoint_of_another_program_is_an_error_not_a_damage(tmp_path):
    kept = checkpoints.Checkpoints(tmp_path, 2)
    kept.save(1, {"a": np.zeros(3, np.float32)})
    kept.wait()
    target = {"b": jax.ShapeDtypeStruct((4,), np.float32)}
    with pytest.raises(ValueError, match="does not hold the state of this program"):
        kept.restore(target)
    kept.close()


@pytest.mark.parametrize("mesh", [(8, 1), (2, 4)])
def test_8_devices_give_the_numbers_of_1(plain, tmp_path, mesh):
    finish(start(tmp_path, f"mesh.data={mesh[0]}", f"mesh.fsdp={mesh[1]}", devices=8))
    close(rows(tmp_path), rows(plain))


def test_a_run_moves_to_another_number_of_devices(plain, tmp_path):
    process = start(tmp_path, "model.delay=0.25", "mesh.fsdp=2", devices=8)
    while not (tmp_path / "checkpoints" / "1-main" / "4.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert "saved step" in finish(process)
    finish(start(tmp_path, "model.delay=0.25"))
    close(rows(tmp_path), rows(plain))


def test_fsdp_splits_large_parameters_and_their_moments():
    code = """
import sys; sys.path.insert(0, sys.argv[1])
import jax, toy
from reprise.common.training import program, sharding
config = toy.get_config(**{"mesh.fsdp": 4, "model.width": 4096})
mesh = sharding.make_mesh(config.mesh)
built = program.build(toy.phases(config)[0], mesh)
large = built.state.params["w"], built.state.opt_state[0][0].mu["w"]
leaves = [*large, built.state.params["v"], built.state.step]
print([tuple(x.sharding.spec) for x in leaves])
"""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    args = [sys.executable, "-c", code, str(TOY.parent)]
    out = subprocess.run(args, env=env, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[(None, 'fsdp'), (None, 'fsdp'), ('fsdp',), ()]"


@contextlib.contextmanager
def two_processes(workdir, *fields):
    """The toy on two processes of two devices each; what still runs at the end is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    pair = [
        start(workdir, *fields, devices=2, env={**cluster, "JAX_PROCESS_ID": str(i)})
        for i in range(2)
    ]
    try:
        yield pair
    finally:
        for process in pair:
            process.kill()


def test_two_processes_match_one(plain, tmp_path):
    with two_processes(tmp_path) as pair:
        for process in pair:
            finish(process)
    close(rows(tmp_path), rows(plain))
    assert (tmp_path / "checkpoints" / "1-main" / "12").is_dir()
    assert (tmp_path / "figures" / "shape.txt").read_text() == "8"


def test_a_state_split_over_processes_is_drawn_by_one(tmp_path):
    fields = ("num_steps=3", "mesh.fsdp=4", "model.width=4096")
    with two_processes(tmp_path, *fields) as pair:
        for process in pair:
            finish(process)
    assert (tmp_path / "figures" / "shape.txt").read_text() == "8"


def test_sigterm_to_one_of_two_processes_stops_both_and_they_continue(plain, tmp_path):
    # Two steps a dispatch, in the second phase: the numbers of steps jump and begin again.
    fields = ("steps_per_dispatch=2", "checkpoint.every=0", "model.delay=0.3")
    with two_processes(tmp_path, *fields) as pair:
        while not (tmp_path / "checkpoints" / "1-main").exists():
            assert all(process.poll() is None for process in pair)
            time.sleep(0.02)
        pair[1].send_signal(signal.SIGTERM)
        for process in pair:
            assert "phase main: saved step" in finish(process)
    with two_processes(tmp_path, *fields) as pair:
        for process in pair:
            finish(process)
    close(rows(tmp_path), rows(plain))


def test_many_steps_a_dispatch_are_the_same_steps(plain, tmp_path):
    run.train(toy.phases, toy.get_config(steps_per_dispatch=3), tmp_path)
    close(rows(tmp_path), rows(plain), 1e-6)


@pytest.mark.parametrize("over_seeds", ["vmap", "map"])
def test_seeds_together_are_the_seeds_alone(plain, over_seeds):
    config = toy.get_config(**{"study.over_seeds": over_seeds})
    together = run.train(toy.phases, config, seeds=(3, 0)).history
    close([r for r in together if r["seed"] == 0], rows(plain), 1e-5)
    assert [r["loss"] for r in together if r["seed"] == 3 and "loss" in r] != [
        r["loss"] for r in together if r["seed"] == 0 and "loss" in r
    ]


def test_dispatches_end_where_the_config_says_not_where_a_run_was_cut():
    config = toy.get_config(steps_per_dispatch=5, eval_every=7, **{"checkpoint.every": 4})
    ends = [0]
    while ends[-1] < 20:
        ends.append(loop.chunk_end(ends[-1], 20, config))
    assert ends == [0, 4, 5, 7, 8, 10, 12, 14, 15, 16, 20]


def test_a_non_finite_step_changes_nothing_and_is_counted():
    config = toy.get_config(max_nonfinite=100, **{"model.poison": 5})
    done = run.train(toy.phases, config)
    healthy = run.train(toy.phases, toy.get_config(num_steps=15))
    found = {(r["phase"], r["step"]): r for r in done.history if r["kind"] == "train"}
    assert found["main", 5]["nonfinite"] == 0
    assert found["main", 12]["nonfinite"] == 7
    assert np.isfinite(jax.tree.leaves(done.state.params)[0]).all()
    assert int(done.state.nonfinite[1]) == 7
    # The parameters are those after the last good step.
    assert not np.allclose(done.state.params["w"], healthy.state.params["w"])


def test_too_many_non_finite_steps_stop_the_run_and_overwrite_nothing(tmp_path):
    config = toy.get_config(max_nonfinite=3, **{"model.poison": 5})
    with pytest.raises(FloatingPointError, match=r"'main', step 8: .* 3 steps in a row"):
        run.train(toy.phases, config, tmp_path)
    names = {path.name for path in (tmp_path / "checkpoints" / "1-main").iterdir()}
    assert names == {"4", "4.json"}


def test_accumulation_and_remat_change_cost_not_numbers(plain):
    quiet = {"model.noise": 0.0}
    reference = run.train(toy.phases, toy.get_config(**quiet)).history
    split = run.train(toy.phases, toy.get_config(accumulate=4, remat=True, **quiet)).history
    close(split, reference, 1e-5)


def test_ema_follows_the_parameters():
    state = run.train(toy.phases, toy.get_config(ema_decay=0.5)).state
    assert not np.allclose(state.ema["w"], state.params["w"])
    assert np.abs(state.ema["w"] - state.params["w"]).max() < 0.01


def test_the_average_is_what_is_judged():
    [_, main] = toy.phases(toy.get_config(ema_decay=0.9))
    done = run.train(toy.phases, toy.get_config(ema_decay=0.9, **{"optimizer.learning_rate": 0.1}))
    average = done.state._replace(params=done.state.ema)
    assert done.metrics[0] == main.evaluate(average)
    assert done.metrics[0] != main.evaluate(done.state)


def test_an_average_that_no_phase_keeps_is_refused():
    def without(config):
        init = lambda key, previous: {"w": jax.numpy.zeros(())}  # noqa: E731
        return [Phase("main", 1, init, lambda state, batch, key: (state, {}))]

    with pytest.raises(ValueError, match=r"config\.ema_decay = 0\.9: the recipe of toy keeps no"):
        run.train(without, toy.get_config(ema_decay=0.9))


def test_a_config_cut_off_by_a_crash_is_never_seen(tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run.train(toy.phases, toy.get_config(), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(plain):
    done = run.train(toy.phases, toy.get_config(precision="bfloat16"))
    assert done.state.params["w"].dtype == np.float32
    a = np.array([r["loss"] for r in done.history if "loss" in r])
    b = np.array([r["loss"] for r in rows(plain) if "loss" in r])
    assert 0 < np.abs(a - b).max() < 0.02


def test_resident_arrays_and_phases_without_batches():
    config = toy.get_config(num_steps=4)
    data = np.arange(6, dtype=np.float32)

    def phases(config):
        def step(state, batch, key):
            state = state + (0 if batch is None else batch["x"].sum())
            return state, {"noise": jax.random.uniform(key)}

        start = Phase("start", 3, lambda key, previous: jax.numpy.zeros(()), step)
        full = Phase("full", 2, lambda key, previous: previous, step, {"x": data})
        score = Phase("score", 0, lambda key, previous: previous, step, None, lambda s: {"s": s})
        return [start, full, score]

    done = run.train(phases, config, seeds=(0, 1))
    assert [m["s"] for m in done.metrics] == [30.0, 30.0]
    noise = [r["noise"] for r in done.history if "noise" in r]
    assert len(set(noise)) == len(noise) > 1


@pytest.mark.parametrize("state", [jax.numpy.zeros(()), ()], ids=["array", "nothing"])
def test_an_evaluation_cut_off_before_its_checkpoint_is_written_once(tmp_path, state):
    def step(state, batch, key):
        return state, {}

    def phases(config):
        return [Phase("score", 0, lambda key, previous: state, step, None, lambda s: {"s": 1.0})]

    run.train(phases, toy.get_config(), tmp_path)
    whole = metrics(tmp_path)
    assert run.train(phases, toy.get_config(), tmp_path).metrics == [{"s": 1.0}]
    shutil.rmtree(tmp_path / "checkpoints")
    run.train(phases, toy.get_config(), tmp_path)
    assert metrics(tmp_path) == whole and len(rows(tmp_path)) == 1


def test_a_reusable_phase_is_trained_once(tmp_path, caplog):
    config = toy.get_config(cache_dir=str(tmp_path / "cache"))

    def phases(config):
        teacher, main = toy.phases(config)
        kept = {"num_steps": teacher.num_steps, "width": config.model.width}
        return [Phase(**{**vars(teacher), "reuse": kept}), main]

    first = run.train(phases, config)
    with caplog.at_level("INFO", "reprise"):
        second = run.train(phases, config)
    assert "phase warmup: taken from" in caplog.text
    assert not [r for r in second.history if r["phase"] == "warmup" and r["kind"] == "train"]
    assert_same(jax.device_get(first.state), jax.device_get(second.state))
    (kept,) = (tmp_path / "cache").iterdir()
    for path in kept.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    third = run.train(phases, config)
    assert f"phase warmup: {kept} is damaged" in caplog.text
    assert_same(jax.device_get(first.state), jax.device_get(third.state))
    found = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert found == sorted([kept.name, f"damaged-{kept.name}"])
    caplog.clear()
    run.train(phases, toy.get_config(cache_dir=str(tmp_path / "cache"), **{"model.width": 16}))
    assert "taken from" not in caplog.text


def test_the_first_of_two_runs_that_keep_the_same_tree_wins(tmp_path, monkeypatch):
    path, wrapped = tmp_path / "teacher", checkpoints._wrapped

    def meanwhile(tree):  # another run, which is faster
        monkeypatch.setattr(checkpoints, "_wrapped", wrapped)
        checkpoints.save_tree(path, {"w": np.ones(3)})
        return wrapped(tree)

    monkeypatch.setattr(checkpoints, "_wrapped", meanwhile)
    checkpoints.save_tree(path, {"w": np.zeros(3)})
    np.testing.assert_array_equal(checkpoints.load_tree(path, {"w": np.zeros(3)})["w"], 1.0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["teacher"]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda s, b, k: (s, {"loss": s}), r"metric 'loss' has shape \(3,\)"),
        (lambda s, b, k: (s[:2], {}), r"from float32\[3\] into float32\[2\]"),
        (lambda s, b, k: ((s, s), {}), "another structure"),
    ],
)
def test_a_wrong_step_is_told_before_compilation(step, message):
    phase = Phase("wrong", 1, lambda key, previous: jax.numpy.zeros(3), step)
    with pytest.raises(ValueError, match=message):
        run.train(lambda config: [phase], toy.get_config())


def test_tensorboard_timing_and_profiler_traces(tmp_path):
    config = toy.get_config(profile_steps=(2, 3), **{"log.tensorboard": True})
    run.train(toy.phases, config, tmp_path)
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert timing[-1]["steps_per_second"] > 0 and timing[-1]["examples_per_second"] > 0


class Recorder:
    """What a W&B run was told, in place of the package."""

    def __init__(self):
        self.opened, self.logged, self.finished = [], [], 0

    def init(self, **options):
        self.opened.append(options)
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, row):
        self.logged.append(row)

    def finish(self):
        self.finished += 1


def test_weights_and_biases_gets_every_row_of_one_run_per_workdir(tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "wandb")
    config = toy.get_config(**{"log.wandb": "project"})
    for workdir in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        run.train(toy.phases, config, workdir)
        shutil.rmtree(workdir)
    ids = [options["id"] for options in recorder.opened]
    assert ids[0] == ids[1] != ids[2] and recorder.finished == 3
    assert {options["project"] for options in recorder.opened} == {"project"}
    assert any("main/train/seed0/loss" in row and row["step"] > 0 for row in recorder.logged)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"config.log.wandb = 'project': .* pip install wandb"):
        run.train(toy.phases, config, tmp_path)
