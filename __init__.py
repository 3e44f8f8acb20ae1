"""reprise: research methods you can import, in JAX.

    from reprise.papers.fixed_point_layer import fixed_point

Importing a paper's public names loads jax (and flax for layers), nothing else.
`reprise.run(config)` trains a recipe in a notebook; `python launch.py --config=configs/<slug>.py`
does the same from the shell.
"""

__version__ = "0.1.0"


def run(config, **kwargs):
    """Trains `config` here and now; see `reprise.common.training.run.run`."""
    from reprise.common.training.run import run as _run

    return _run(config, **kwargs)
