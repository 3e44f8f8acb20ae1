"""Every test sees one CPU device and a compilation cache of its own."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: so it takes less than half as long.
FLAGS = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):  # later ones do not know this flag
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)

import jax  # noqa: E402
import pytest  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
import annotated  # noqa: E402

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "xla"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
annotated.install()


@pytest.fixture(autouse=True)
def no_home(tmp_path, monkeypatch):
    """Keeps caches and data of the person who runs the tests out of them."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
