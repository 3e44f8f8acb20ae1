"""One table of distillation methods: every arm builds on real networks, and one runs."""

import numpy as np
import pytest
from building import stepped

from reprise.common import config as configs
from reprise.common.training import distillation_setting, run
from reprise.papers.distillation_comparison import recipe


def phases(config, monkeypatch):
    def few(name, split, data_dir):
        rows = config.batch_size
        image = np.zeros((rows, 32, 32, 3), np.float32)
        return {"image": image, "label": np.zeros(rows, np.int32)}

    monkeypatch.setattr(distillation_setting, "_normalised", few)
    return recipe.phases(config)


@pytest.fixture(scope="module")
def teacher():
    """The state of the teacher, the same for every method."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        config = run.load_config("distillation_comparison:cifar10_30k")
        return stepped(phases(config, monkeypatch)[:1])


@pytest.mark.parametrize("name", recipe.ENTRIES)
def test_every_method_builds_on_one_pair(name, teacher, monkeypatch):
    config = run.load_config("distillation_comparison:cifar10_30k")
    arm = recipe.arm(config, name, recipe.ENTRIES[name].tries[-1])
    stepped(phases(configs.apply_overrides(config, arm.overrides), monkeypatch)[1:], teacher)


def test_the_variant_for_a_gpu_builds(monkeypatch):
    stepped(phases(run.load_config("distillation_comparison:cifar100"), monkeypatch))


def test_first_phases_are_taken_from_the_students_budget():
    config = run.load_config("distillation_comparison:cifar10_30k")
    for name, entry in recipe.ENTRIES.items():
        changed = configs.apply_overrides(config, recipe.arm(config, name, 1.0).overrides)
        total = changed.num_steps + config.init.num_steps * entry.initialises
        assert total == config.num_steps


def test_a_papers_section_takes_the_tuned_value():
    config = run.load_config("distillation_comparison:cifar10_30k")
    config.model.method, config.model.value = "activation_boundary", 0.5
    own = recipe.of_paper(config)
    assert own.model.scale == 0.5 and own.model.margin == 1.0
    assert own.num_steps == config.num_steps
    assert own.init == config.init
    # Networks beside a frozen teacher keep the paper's optimiser.
    config.model.method = "feed"
    init = recipe.of_paper(config).init
    assert init.optimizer.name == "adam" and init.num_steps == config.num_steps


def test_validation_chooses():
    tried = {
        "kd@1": {"val_accuracy": np.array([0.4]), "accuracy": np.array([0.9])},
        "kd@4": {"val_accuracy": np.array([0.5]), "accuracy": np.array([0.1])},
        "ce@0": {"val_accuracy": np.array([0.3]), "accuracy": np.array([0.3])},
    }
    assert recipe.chosen(tried) == ("chosen by validation accuracy: kd 4, ce 0", True)


def test_an_unknown_method_is_refused():
    config = run.load_config("distillation_comparison")
    config.model.method = "crd"
    with pytest.raises(ValueError, match="'crd': allowed are ce, kd"):
        recipe.phases(config)


def test_the_embedded_study_runs(tmp_path):
    config = run.load_config("distillation_comparison")
    few = {
        "model.teacher": "cnn-2",
        "model.student": "cnn-2",
        "teacher.num_steps": 0,
        "init.num_steps": 2,
        "num_steps": 2,
        "steps_per_dispatch": 1,
        "cache_dir": str(tmp_path / "cache"),
        "compilation_cache": "",
    }
    done = run.run(configs.apply_overrides(config, few), tmp_path / "run")
    assert 0 <= done.metrics[0]["accuracy"] <= 1
