"""Runs a recipe, or its study.

    python launch.py --config=configs/<slug>.py[:variant] [--config.field=value] [--workdir=DIR]
    python launch.py --config=configs/<slug>.py --study
    python launch.py --config=configs/<slug>.py --compile-for=v5p:4x4x4
    python launch.py --list

One laptop core, one GPU, a host with several and every host of a TPU pod run the same line.
"""

import logging
import os
import sys
from typing import Any


def _packaged(argv: list[str]) -> list[str]:
    """Lets `--config=gala:cora` name a packaged config by its slug; refuses what there is not."""
    from reprise.common.training.run import config_path, load_config

    resolved = []
    for arg in argv:
        flag, is_config, value = arg.partition("=")
        if is_config and flag.lstrip("-") == "config":
            name, colon, variant = value.partition(":")
            arg = f"{flag}={config_path(name)}{colon}{variant}"
            load_config(f"{config_path(name)}{colon}{variant}")
        resolved.append(arg)
    return resolved


def initialize_distributed(asked: bool) -> None:
    """Joins the other processes where the config asks for it or the environment tells of them."""
    import jax

    env = os.environ
    if "JAX_COORDINATOR_ADDRESS" in env:
        jax.distributed.initialize(
            env["JAX_COORDINATOR_ADDRESS"],
            num_processes=int(env["JAX_NUM_PROCESSES"]),
            process_id=int(env["JAX_PROCESS_ID"]),
        )
        return
    workers = env.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    tasks = max(int(env.get(name, "1")) for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    if asked or workers > 1 or tasks > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in env:
        jax.distributed.initialize()


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python launch.py` and of the command `reprise`."""
    argv = list(sys.argv if argv is None else argv)
    if any(arg.lstrip("-").startswith("compile-for") for arg in argv):
        # libtpu compiles here; nothing may look for a TPU. Before jax is imported.
        os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    if "--list" in argv:
        from reprise.common.studies import listing

        print(listing.table())
        return

    from absl import app, flags
    from ml_collections import config_flags

    config = config_flags.DEFINE_config_file("config", None, "path.py[:variant] or slug[:variant]")
    flags.DEFINE_string(
        "workdir",
        None,
        "keeps metrics, checkpoints and figures; continued if it "
        "holds a stopped run of the same config (default: runs/<slug>-<variant>)",
    )
    flags.DEFINE_bool("study", False, "run every arm over the seeds and write the results")
    flags.DEFINE_string("results", None, "where a study's results go (default: results)")
    flags.DEFINE_string(
        "compile-for",
        None,
        "compile for this TPU topology, e.g. v5p:4x4x4, and print what it needs; runs nothing",
    )
    flags.DEFINE_bool("list", False, "list papers, variants and their data")
    flags.mark_flag_as_required("config")
    try:
        argv = _packaged(argv)
        app.run(lambda _: _run(config.value, flags.FLAGS), argv=argv, flags_parser=_parsed)
    except ValueError as error:
        sys.exit(f"error: {error}")


def _parsed(argv: list[str]) -> list[str]:
    """The arguments that are no flags; a field that the config does not have is one line."""
    from absl import app

    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        # ml_collections quotes its own message, twice.
        said = str(error).replace("\\", "").replace("'nDid", ". Did").strip("'\"")
        sys.exit(f"error: the config has no field {said}")
    except TypeError as error:
        sys.exit(f"error: {error}")


def _run(config: Any, flags: Any) -> None:
    ours = logging.getLogger("reprise")
    ours.setLevel(logging.INFO)
    ours.addHandler(logging.StreamHandler())
    ours.propagate = False
    logging.getLogger("absl").setLevel(logging.ERROR)
    if flags["compile-for"].value:
        from reprise.common.training import compile_for

        print(compile_for.report(config, flags["compile-for"].value))
        return
    initialize_distributed(config.distributed)
    from reprise.common.studies import run_study, summary
    from reprise.common.training import loop, run

    workdir = flags.workdir or f"runs/{config.paper}-{config.variant}"
    if flags.study:
        workdir = flags.workdir or f"runs/{config.paper}-{config.variant}-study"
    try:
        if flags.study:
            print(run_study.run_study(config, workdir, flags.results))
        else:
            print(summary.of_run(run.run(config, workdir), workdir))
    except loop.Preempted as stopped:
        print(f"{stopped}; the same command continues it")
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
