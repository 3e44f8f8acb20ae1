"""Data sets: `describe`, `available`, `load`, `stream`.

from reprise.common import data

source = data.load("digits", "train")                 # random access, lazy
batches = data.stream(source, 32, seed=0)             # a Stream for a Phase
"""

from reprise.common.data.catalog import CATALOG, DataInfo, describe
from reprise.common.data.errors import DataError, MissingData
from reprise.common.data.sources import Source, available, from_arrays, generated, load

__all__ = [
    "CATALOG",
    "DataError",
    "DataInfo",
    "MissingData",
    "Source",
    "available",
    "describe",
    "from_arrays",
    "generated",
    "load",
    "stream",
]


def __getattr__(name: str):
    # grain is only needed where batches are drawn.
    if name == "stream":
        from reprise.common.data.pipeline import stream

        return stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
