"""Ahead-of-time compilation for topologies that are not here."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from reprise.common.training import compile_for
from reprise.common.training import run as training

ROOT = Path(__file__).resolve().parents[3]


def run(code, *args):
    # A process of its own: libtpu wants these before jax starts, and must not meet other tests.
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    command = [sys.executable, *(["-c", code] if code else []), *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)


def test_collective_bytes_are_read_from_the_program():
    text = """
      %a = f32[8,128]{1,0} all-reduce(%x), replica_groups={}
      %b = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%y), dimensions={0}
      %c = bf16[16]{0} all-gather-done(%b)
      %d = pred[3]{0} all-to-all(%z)
      %e = f32[] add(%p, %q)
    """
    found = compile_for.collective_bytes(text)
    assert found == {"all-reduce": 4096, "all-gather": 8 + 32, "all-to-all": 3}


SCALING = """
from reprise.common import config as configs
from reprise.common.training import compile_for, run
config = configs.apply_overrides(run.load_config("fixed_point_layer:maze"), {"batch_size": 64})
flops = {}
for topology in ("v5p:2x2x1", "v5p:4x4x4"):
    devices = compile_for.topology_devices(topology)
    compiled = compile_for.compile_phases(config, devices)[-1]
    flops[len(devices)] = compiled.flops
    assert compiled.collective_bytes.get("all-reduce", 0) > 0
print(flops[4] / (flops[64] * 16))
"""


@pytest.mark.skipif(not compile_for.libtpu_installed(), reason="needs the extra [tpu]")
def test_flops_a_chip_fall_as_one_over_the_chips():
    done = run(SCALING)
    assert done.returncode == 0, done.stderr
    assert 0.95 <= float(done.stdout.splitlines()[-1]) <= 1.05


@pytest.mark.skipif(not compile_for.libtpu_installed(), reason="needs the extra [tpu]")
def test_a_recipe_of_imagenets_size_compiles_for_64_chips():
    # Fewer channels than the recipe's: the compiler's time grows with them.
    done = run(
        "",
        "launch.py",
        "--config=configs/fixed_point_layer.py:imagenet",
        "--config.model.features=8",
        "--compile-for=v5p:4x4x4",
    )
    assert done.returncode == 0, done.stderr
    for word in ("of 95 GiB", "FLOPs", "all-reduce", "roofline"):
        assert word in done.stdout


@pytest.mark.skipif(not compile_for.libtpu_installed(), reason="needs the extra [tpu]")
def test_a_small_recipe_is_reported_and_a_wrong_batch_refused():
    args = ["launch.py", "--config=configs/fixed_point_layer.py:maze", "--compile-for=v5e:4x4"]
    done = run("", *args)
    assert done.returncode == 0, done.stderr
    for word in ("memory", "of 16 GiB", "FLOPs", "collectives", "all-reduce", "roofline", "batch"):
        assert word in done.stdout
    wrong = run("", *args, "--config.batch_size=24")
    assert wrong.returncode == 1
    assert "config.batch_size = 24: must divide by 16 devices" in wrong.stderr
    unknown = run("", *args[:2], "--compile-for=v5e:5x5")
    assert unknown.returncode == 1 and "--compile-for=v5e:5x5" in unknown.stderr


def test_a_state_that_does_not_fit_is_told(monkeypatch):
    huge = compile_for.Compiled("main", 4, 2**40, 0, 1.0, 1.0, {}, [])
    monkeypatch.setattr(compile_for, "topology_devices", lambda topology: [FakeChip()] * 4)
    monkeypatch.setattr(compile_for, "compile_phases", lambda config, devices: [huge])
    with pytest.raises(ValueError, match="phase 'main' needs 1024 GiB, a chip has 16 GiB: use"):
        compile_for.report(type("C", (), {"paper": "p", "variant": "v"}), "v5e:2x2")


def test_a_program_that_the_compiler_refuses_is_told_without_a_traceback(monkeypatch):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(error)

    def built(*args, **options):
        dispatch = SimpleNamespace(lower=lambda *args: Lowered())
        return SimpleNamespace(state=(), batch=(), dispatch=dispatch)

    monkeypatch.setattr(compile_for.program, "build", built)
    config = training.load_config("fixed_point_layer:maze")
    error = "RESOURCE_EXHAUSTED: Used 30.0G of 15.8G hbm.\nmore"
    with pytest.raises(ValueError, match=r"phase 'train' does not fit 1 x cpu: .* hbm: use more"):
        compile_for.compile_phases(config, jax.devices())
    error = "INTERNAL: a bug"
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        compile_for.compile_phases(config, jax.devices())


class FakeChip:
    device_kind = "TPU v5 lite"


def test_chips_are_found_by_their_longest_name():
    from reprise.common.training import cost

    assert cost.chip(FakeChip()).memory == 16 * 2**30
    assert cost.chip(jax.devices("cpu")[0]) is None
