"""Evaluation sees every example once, whatever the size of the set and the number of devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from reprise.common import data
from reprise.common.evaluation.over_set import over_set

ROOT = Path(__file__).resolve().parents[3]


def judge(state, batch):
    # A padded row must not count even where its value is not a number.
    return {"scaled": state * batch["x"], "inverse": 1 / (batch["x"] - batch["x"][-1] + 1e9)}


@pytest.mark.parametrize("count", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_the_mean_is_over_the_examples(count, batch_size):
    x = np.random.default_rng(0).normal(size=count).astype(np.float32)
    found = over_set(judge, {"x": x}, batch_size)(jnp.float32(3.0))
    assert found["scaled"] == pytest.approx(3 * x.mean(), rel=1e-5)
    source = data.generated("numbers", lambda i: {"x": x[i]}, count)
    assert over_set(judge, source, batch_size)(jnp.float32(3.0)) == pytest.approx(found)


def test_padded_rows_may_be_anything():
    def poisoned(state, batch):
        first = jnp.arange(len(batch["x"])) < 3
        return {"x": jnp.where(first, batch["x"], jnp.nan)}

    found = over_set(poisoned, {"x": np.arange(3, dtype=np.float32)}, 8)(None)
    assert found["x"] == 1.0


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="no examples"):
        over_set(judge, {"x": np.zeros(0)}, 4)


DEVICES = """
import sys; sys.path.insert(0, "tests/common/evaluation")
import jax, jax.numpy as jnp, numpy as np
from reprise.common import config as configs
from reprise.common.evaluation.over_set import over_set
from reprise.common.training import sharding
from reprise.launch import initialize_distributed
initialize_distributed(asked=False)
mesh = sharding.make_mesh(configs.defaults("p", "a", ("a",)).mesh)
x = np.arange(21, dtype=np.float32)
with jax.set_mesh(mesh):
    found = over_set(lambda s, b: {"x": s * b["x"]}, {"x": x}, 10)(jnp.float32(2.0))
assert found == {"x": 20.0}, found
print("ok", jax.device_count())
"""


def run(devices, **env):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **env}
    return subprocess.Popen(
        [sys.executable, "-c", DEVICES],
        env=env,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_on_8_devices():
    out, err = run(8).communicate(timeout=100)
    assert out.strip() == "ok 8", err[-2000:]


def test_on_two_processes():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    pair = [run(2, **common, JAX_PROCESS_ID=str(i)) for i in range(2)]
    try:
        for process in pair:
            out, err = process.communicate(timeout=100)
            assert out.splitlines()[-1] == "ok 4", err[-2000:]
    finally:
        for process in pair:
            process.kill()
