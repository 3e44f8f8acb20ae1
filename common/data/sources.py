"""Random access to the examples of a data set."""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reprise.common.data.catalog import DataInfo, describe
from reprise.common.data.errors import DataError, MissingData

Example = dict[str, np.ndarray]

_SLICE = re.compile(r"^(?P<split>\w+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?$")

_VERSION = re.compile(r"\d+\.\d+\.\d+")


class Source:
    """A sequence of examples (dicts of numpy arrays), opened at first use.

    Attributes:
      info: what the catalog says.
      split: as it was asked for.
    """

    def __init__(self, info: DataInfo, split: str, open_: Callable[[], Any]):
        match = _SLICE.match(split)
        base = match["split"] if match else split
        if base not in info.splits:
            raise DataError(
                f"data set {info.name}: no split {split!r}; it has {', '.join(info.splits)}, and "
                "slices such as train[:1000] or train[90%:]"
            )
        self.info, self.split = info, split
        self._base, self._start, self._stop = base, match["start"], match["stop"]
        self._open = open_

    @functools.cached_property
    def _rows(self) -> tuple[Any, range]:
        rows = self._open()
        count = _count(rows)

        def position(text: str | None, default: int) -> int:
            if text is None:
                return default
            if text.endswith("%"):
                return round(count * int(text[:-1]) / 100)
            return int(text)

        start, stop = position(self._start, 0), position(self._stop, count)
        where = range(count)[start:stop]
        if not where:
            raise DataError(f"data set {self.info.name}: split {self.split!r} is empty")
        return rows, where

    def __len__(self) -> int:
        known = self.info.splits[self._base]
        if known is not None and self._start is None and self._stop is None:
            return known
        return len(self._rows[1])

    def __getitem__(self, index: int) -> Example:
        """One example. A record that can't be read is named: it is never skipped."""
        rows, where = self._rows
        record = where[index]
        try:
            if isinstance(rows, dict):
                return {name: values[record] for name, values in rows.items()}
            return {
                name: np.asarray(value, self._dtype(name)) for name, value in rows[record].items()
            }
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            raise DataError(
                f"data set {self.info.name}, split {self._base}, record {record} can't be read: "
                f"{reason}. Prepare it again: {prepare_command(self.info.name)}"
            ) from error

    def _dtype(self, name: str) -> Any:
        known = self.info.features.get(name)
        return known[1] if known and known[1] != "str" else None

    def arrays(self) -> dict[str, np.ndarray]:
        """All examples stacked, decoded once and kept in memory; for sets of one shape."""
        return self._arrays

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        rows, where = self._rows
        if isinstance(rows, dict):
            return {name: values[where.start : where.stop] for name, values in rows.items()}
        examples = [self[i] for i in range(len(where))]
        return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


def _count(rows: Any) -> int:
    return len(next(iter(rows.values()))) if isinstance(rows, dict) else len(rows)


def prepare_command(name: str) -> str:
    """The line that prepares a data set."""
    return f"python -m reprise.common.data.prepare {name} [--from=DIR]"


def default_data_dir() -> Path:
    """Where tfds keeps prepared data sets."""
    return Path("~/tensorflow_datasets").expanduser()


def copy_folder(name: str, data_dir: str | Path | None) -> Path | None:
    """The newest prepared copy `data_dir/name/x.y.z`, or None."""
    root = Path(data_dir).expanduser() if data_dir else default_data_dir()
    # Beside the versions tfds may have left an unfinished x.y.z.incompleteABC.
    versions = [
        p
        for p in (root / name).glob("*.*.*")
        if _VERSION.fullmatch(p.name) and (p / "features.json").is_file()
    ]
    return max(versions, key=lambda p: [int(x) for x in p.name.split(".")], default=None)


def available(name: str, data_dir: str | Path | None = None) -> tuple[bool, str]:
    """Whether a data set is here, and where; else the command that prepares it."""
    info = describe(name)
    if info.kind == "bundled":
        return True, "bundled"
    folder = copy_folder(name, data_dir)
    return (True, str(folder)) if folder else (False, prepare_command(name))


def load(name: str, split: str, *, data_dir: str | Path | None = None) -> Source:
    """A data set's split as a random-access source; nothing is read before its first use.

    Sources are cached: the same call returns the same object, and its arrays are decoded once.

    Args:
      name: a name of the catalog.
      split: one of its splits, or a slice of one: "train[:1000]", "train[90%:]".
      data_dir: where prepared copies lie; default: ~/tensorflow_datasets.

    Raises:
      ValueError: an unknown name or split.
      MissingData: at first use, where there is no prepared copy.
    """
    return _load(name, split, str(data_dir) if data_dir else None)


@functools.lru_cache(maxsize=32)
def _load(name: str, split: str, data_dir: str | None) -> Source:
    info = describe(name)
    base = split.partition("[")[0]
    if info.kind == "bundled":
        return Source(info, split, lambda: _BUNDLED[name](base))
    return Source(info, split, lambda: _open_copy(info, base, data_dir))


def _open_copy(info: DataInfo, split: str, data_dir: str | None) -> Any:
    folder = copy_folder(info.name, data_dir)
    if folder is None:
        root = Path(data_dir).expanduser() if data_dir else default_data_dir()
        raise MissingData(
            f"data set {info.name} is not prepared: looked for {root / info.name}/<version>. "
            f"Prepare it with: {prepare_command(info.name)}"
            + (f" --data_dir={data_dir}" if data_dir else "")
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
        source = builder.as_data_source(split=split)
        count = len(source)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise DataError(
            f"data set {info.name}: the copy {folder} can't be opened: {reason}. Delete it and "
            f"prepare it again: {prepare_command(info.name)}"
        ) from error
    expected = info.splits[split]
    if expected is not None and count != expected:
        raise DataError(
            f"data set {info.name}, split {split}: {folder} has {count} examples, expected "
            f"{expected}. Delete it and prepare it again: {prepare_command(info.name)}"
        )
    return source


def generated(
    name: str,
    function: Callable[[int], Mapping[str, Any]],
    length: int,
    num_classes: int | None = None,
) -> Source:
    """A source whose example i is a pure function of i.

    Args:
      name: for messages.
      function: i -> dict of arrays of fixed shapes.
      length: how many there are.
      num_classes: of `label`, if there is one.
    """
    if length < 1:
        raise ValueError(f"generated {name!r}: length = {length}: must be 1 or more")
    first = {key: np.asarray(value) for key, value in function(0).items()}
    features = {key: (value.shape, str(value.dtype)) for key, value in first.items()}
    info = DataInfo(name, "generated", {"all": length}, features, num_classes, "generated", "none")
    return Source(info, "all", lambda: _Generated(function, length))


class _Generated:
    def __init__(self, function: Callable[[int], Mapping[str, Any]], length: int):
        self.function, self.length = function, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.function(index)


def from_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> Source:
    """A source over arrays with one leading axis."""
    lengths = {key: len(value) for key, value in arrays.items()}
    if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        raise ValueError(f"from_arrays {name!r}: lengths must be equal and positive, got {lengths}")
    features = {key: (value.shape[1:], str(value.dtype)) for key, value in arrays.items()}
    info = DataInfo(
        name, "generated", {"all": next(iter(lengths.values()))}, features, None, "arrays", "none"
    )
    return Source(info, "all", lambda: dict(arrays))


def _digits(split: str) -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    part = slice(0, 1437) if split == "train" else slice(1437, None)
    image = (data.images[part, :, :, None] / 16).astype(np.float32)
    return {"image": image, "label": data.target[part].astype(np.int32)}


# Whole photographs are kept apart, so that no patch of a test photograph is trained on.
_PHOTOS = {
    "train": (
        "astronaut.png",
        "brick.png",
        "grass.png",
        "gravel.png",
        "rocket.jpg",
        "motorcycle_left.png",
        "china.jpg",
    ),
    "test": ("camera.png", "chelsea.png", "coffee.png", "flower.jpg"),
}


class _Photos:
    def __init__(self, split: str):
        import skimage
        import sklearn.datasets

        folders = (
            Path(skimage.__file__).parent / "data",
            Path(sklearn.datasets.__file__).parent / "images",
        )
        self.paths = [
            next(folder / name for folder in folders if (folder / name).is_file())
            for name in _PHOTOS[split]
        ]

    def __len__(self) -> int:
        return len(self.paths)

    @functools.lru_cache(maxsize=16)  # noqa: B019 (lives as long as the cached source)
    def __getitem__(self, index: int) -> Example:
        from PIL import Image

        return {"image": np.asarray(Image.open(self.paths[index]).convert("RGB"))}


def _karate(split: str) -> dict[str, np.ndarray]:
    import networkx as nx

    graph = nx.karate_club_graph()
    clubs = [club != "Mr. Hi" for _, club in graph.nodes(data="club")]
    return {
        "features": np.eye(len(clubs), dtype=np.float32)[None],
        "labels": np.asarray(clubs, np.int32)[None],
        "edges": np.asarray(graph.edges, np.int32)[None],
    }


_BUNDLED: dict[str, Callable[[str], Any]] = {
    "digits": _digits,
    "photos": _Photos,
    "karate": _karate,
}
