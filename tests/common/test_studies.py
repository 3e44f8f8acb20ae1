"""Studies, results, tables, the command line."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reprise.common import config as configs
from reprise.common.studies import run_study, summary, tables
from reprise.common.studies.study import Arm, Study
from reprise.common.training import run

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import toy  # noqa: E402


class Recipe:
    phases = staticmethod(toy.phases)
    trained: tuple = ()

    @staticmethod
    def study(config):
        def claim(results):
            gain = results["wide"]["accuracy"] - results["narrow"]["accuracy"]
            return f"wider is better by {gain.mean():.3f}", bool(gain.mean() > 0)

        arms = {"wide": Arm(reported={"accuracy": 0.9}), "narrow": Arm({"model.width": 1})}
        return Study(arms, claim, select="accuracy")


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def study(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "recipe", lambda config: Recipe)
    config = toy.get_config(num_steps=60, eval_every=20, **{"study.seeds": (0, 5)})
    return config, tmp_path / "work", tmp_path / "results"


def test_a_study_writes_what_it_measured(study):
    config, work, results = study
    printed = run_study.run_study(config, work, results)
    record = json.loads((results / "toy" / "toy.json").read_text())
    assert record["seeds"] == [0, 5] and set(record["arms"]) == {"wide", "narrow"}
    row = record["arms"]["wide"]["metrics"]["accuracy"]
    assert row["mean"] == pytest.approx(np.mean(row["per_seed"]))
    assert row["std"] == pytest.approx(np.std(row["per_seed"], ddof=1))
    assert row["reported"] == 0.9
    assert record["arms"]["narrow"]["metrics"]["accuracy"]["reported"] is None
    assert {"command", "commit", "config_hash", "versions", "device", "claim"} <= set(record)
    assert record["versions"]["jax"] and record["arms"]["wide"]["seconds"] > 0
    for word in ("wide", "narrow", "(reported 0.9", "toy.json", "claim"):
        assert word in printed
    # The selected metric is the best of the evaluations, per seed.
    logged = rows(work / "wide")
    selected = record["arms"]["wide"]["metrics"]["accuracy@best"]["per_seed"]
    for seed, best in zip((0, 5), selected, strict=True):
        own = [r["accuracy"] for r in logged if r["kind"] == "eval" and r["seed"] == seed]
        assert best == max(own[1:])  # the first belongs to the phase before


def test_a_study_that_was_stopped_keeps_its_finished_arms(study, monkeypatch):
    config, work, results = study
    run_study.run_study(config, work, results)
    first = (results / "toy" / "toy.json").read_text()
    calls = []
    monkeypatch.setattr(
        "reprise.common.training.loop._device_batches",
        lambda *a: calls.append(a) or iter(()),
    )
    # Whatever is checked out by now: nothing is trained with it.
    monkeypatch.setattr(run_study, "commit", lambda: "another")
    run_study.run_study(config, work, results)
    assert not calls
    again, first = json.loads((results / "toy" / "toy.json").read_text()), json.loads(first)
    assert again["arms"] == first["arms"] and again["commit"] == first["commit"] != "another"
    # An arm that went on with other code says so.
    (work / "narrow" / "seconds.txt").unlink()
    run_study.run_study(config, work, results)
    again = json.loads((results / "toy" / "toy.json").read_text())
    assert again["commit"] == f"{first['commit']}, another"
    assert again["versions"] == first["versions"] and again["device"] == first["device"]


def test_more_seeds_train_alone_beside_those_that_are_there(study):
    config, work, results = study
    run_study.run_study(config, work, results)
    first = json.loads((results / "toy" / "toy.json").read_text())["arms"]
    before = (work / "wide" / "metrics.jsonl").read_bytes()
    more = configs.apply_overrides(config, {"study.seeds": (7, 0, 5)})
    run_study.run_study(more, work, results)
    assert (work / "wide" / "metrics.jsonl").read_bytes() == before
    assert {row["seed"] for row in rows(work / "wide" / "seeds-7")} == {7}
    for arm, found in json.loads((results / "toy" / "toy.json").read_text())["arms"].items():
        for metric, row in found["metrics"].items():
            assert row["per_seed"][1:] == first[arm]["metrics"][metric]["per_seed"]
        assert found["seconds"] > first[arm]["seconds"]
    # All of them are known the next time.
    assert [seeds for _, seeds in run_study._groups(work / "wide", (0, 5, 7))] == [(0, 5), (7,)]


def test_other_processes_of_a_cluster_know_the_rows_of_finished_arms(study, monkeypatch):
    config, work, results = study
    run_study.run_study(config, work, results)
    written = (results / "toy" / "toy.json").read_text()
    monkeypatch.setattr("reprise.common.training.logs.jax.process_index", lambda: 1)
    run_study.run_study(config, work, results)
    assert (results / "toy" / "toy.json").read_text() == written


def test_an_arm_that_diverged_is_written_as_what_it_is(study, monkeypatch):
    config, work, results = study

    def phases(config):
        first, main = toy.phases(config)
        narrow = config.model.width == 1
        judge = (lambda state: {"accuracy": float("nan")}) if narrow else main.evaluate
        return [first, dataclasses.replace(main, evaluate=judge)]

    monkeypatch.setattr(Recipe, "phases", staticmethod(phases))
    printed = run_study.run_study(config, work, results)
    record = json.loads((results / "toy" / "toy.json").read_text())
    row = record["arms"]["narrow"]["metrics"]["accuracy@best"]
    assert row["per_seed"] == [None, None] and row["mean"] is None
    assert not record["claim"]["holds"] and "not finite" in summary.of_study(record, work, [])
    assert "nan" in printed


def test_a_wrong_arm_is_told_before_the_first_one_trains(study, monkeypatch):
    config, work, results = study
    broken = Study({"a": Arm(), "b": Arm({"batch_size": 0})}, lambda r: ("", True))
    monkeypatch.setattr(Recipe, "study", staticmethod(lambda config: broken))
    with pytest.raises(ValueError, match=r"config.batch_size = 0"):
        run_study.run_study(config, work, results)
    assert not work.exists()


def test_the_command_names_what_was_changed():
    config = run.load_config("fixed_point_layer:maze")
    config = configs.apply_overrides(config, {"num_steps": 7, "log.every": 3, "data_dir": "x"})
    line = "python launch.py --config=configs/fixed_point_layer.py:maze --study"
    assert run_study.command(config) == f"{line} --config.num_steps=7"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.43412, "0.4341"),
        (28.0114, "28.01"),
        (0.0, "0.0000"),
        (123456.0, "123456"),
        (1e-7, "1e-07"),
    ],
)
def test_numbers_have_four_digits(value, text):
    assert summary.number(value) == text


def test_tables_are_made_from_the_results_and_stale_ones_are_noticed(tmp_path):
    record = {
        "paper": "p",
        "variant": "v",
        "command": "python launch.py",
        "commit": "abc",
        "versions": {"jax": "0"},
        "device": "CPU",
        "seeds": [0, 1],
        "arms": {
            "ours": {
                "metrics": {
                    "f1": {"per_seed": [0.4, 0.5], "mean": 0.45, "std": 0.07, "reported": 0.5},
                    "loss": {"per_seed": [1.0, 2.0], "mean": 1.5, "std": 0.7, "reported": None},
                },
                "seconds": 60.0,
            }
        },
        "claim": {"text": "I(x | y) works", "holds": False},
    }
    (tmp_path / "results" / "p").mkdir(parents=True)
    (tmp_path / "results" / "p" / "v.json").write_text(json.dumps(record))
    (tmp_path / "results" / "p" / "v-picture.png").write_bytes(b"")
    (tmp_path / "papers" / "p").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    config = tmp_path / "configs" / "p.py"
    text = "from reprise.common.config import defaults\n\ndef get_config(variant):\n"
    text += "    config = defaults('p', variant, ('v',))\n"
    text += "    config.study.columns = {}\n    return config\n"
    config.write_text(text.format(("f1",)))
    page = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    card_path = tmp_path / "papers" / "p" / "README.md"
    for path in (tmp_path / "README.md", card_path):
        path.write_text(page)
    made = tables.pages(tmp_path)
    readme, card = made[tmp_path / "README.md"], made[card_path]
    assert "| [p](papers/p/README.md) | v | I(x \\| y) works | **no** | 2 | CPU |" in readme
    assert "| ours | 0.4500 ± 0.0700 (reported 0.5000) |" in card
    assert "[v.json](../../results/p/v.json)" in card
    assert "![v-picture](../../results/p/v-picture.png)" in card
    assert readme.startswith("before\n") and readme.endswith("after\n") and "\nold\n" not in readme
    config.write_text(text.format(()))
    assert "(reported 0.5000) | 1.500 ± 0.7000 |" in tables.pages(tmp_path)[card_path]
    config.write_text(text.format(("f2",)))
    with pytest.raises(ValueError, match=r"config\.study\.columns of p:v names f2"):
        tables.pages(tmp_path)
    config.write_text(text.format(()).replace("'v',", "'w',"))
    with pytest.raises(ValueError, match="variant 'v' of p"):
        tables.pages(tmp_path)
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(ValueError, match="needs the lines"):
        tables.pages(tmp_path)


def launch(*args, **env):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **env}
    command = [sys.executable, "launch.py", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


def test_list_names_every_variant_and_what_it_needs():
    done = launch("--list")
    assert done.returncode == 0, done.stderr
    for word in ("fixed_point_layer:denoise", "learned_objective:flow", "bibtex", "--from=DIR"):
        assert word in done.stdout
    code = "import sys; from reprise.common.studies import listing; listing.table(); "
    code += "print([m for m in sys.modules if m.startswith('reprise.papers.')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout.strip() == "[]", out.stderr


TINY = (
    "--config=fixed_point_layer:maze",
    "--config.num_steps=2",
    "--config.batch_size=8",
    "--config.data.train=16",
    "--config.data.test=6",
    "--config.data.size=4",
    "--config.compilation_cache=",
)


def test_the_command_line_runs_a_packaged_config(tmp_path):
    done = launch(*TINY, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "rmse" in done.stdout and (tmp_path / "metrics.jsonl").exists()
    again = launch(*TINY, f"--workdir={tmp_path}")
    assert again.returncode == 0 and "finished; nothing to do" in again.stderr
    other = launch(*TINY, f"--workdir={tmp_path}", "--config.optimizer.learning_rate=0.5")
    assert other.returncode == 1
    assert "optimizer.learning_rate: 0.003 -> 0.5" in other.stderr
    assert "Traceback" not in other.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--config=nothing",), "--config=nothing: no such file, and packaged are"),
        ((*TINY, "--config.batch_sise=3"), "error: the config has no field batch_sise. Did you"),
        ((*TINY, "--config.batch_size=0"), "config.batch_size = 0: must be 1 or more"),
        (("--config=fixed_point_layer:nope",), "variant 'nope' of fixed_point_layer: allowed are"),
        (
            ("--config=fixed_point_layer:bibtex_nn", "--config.data_dir=/nowhere"),
            "data set bibtex is not prepared: looked for /nowhere/bibtex",
        ),
    ],
)
def test_wrong_command_lines_are_one_clear_error(args, message, tmp_path):
    done = launch(*args, f"--workdir={tmp_path / 'w'}")
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("paper", ["fixed_point_layer", "learned_objective"])
def test_importing_a_paper_costs_little_more_than_jax_and_flax(paper):
    code = (
        "import sys, time, jax, flax.linen; before = set(sys.modules); "
        f"import reprise.papers.{paper}; "
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new & {'tensorflow_datasets', 'grain', 'orbax', 'matplotlib', 'absl', "
        "'sklearn', 'scipy', 'ml_collections', 'tqdm'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
