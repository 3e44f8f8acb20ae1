"""Few-shot tasks drawn from a classification set, as a pure function of (seed, step)."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from reprise.common.data.errors import DataError
from reprise.common.data.sources import Source

Transform = Callable[[np.ndarray], np.ndarray]


class EpisodeStream:
    """Endless meta-batches of tasks; see `episodes`."""

    def __init__(
        self,
        source: Source,
        ways: int,
        shots: int,
        queries: int,
        tasks: int,
        seed: int,
        classes: Sequence[int] | None,
        transform: Transform | None,
        hosts: tuple[int, int] | None,
    ):
        self.source, self.seed, self.classes = source, seed, classes
        self.ways, self.shots, self.queries, self.tasks = ways, shots, queries, tasks
        self.transform, self._hosts = transform, hosts
        for name in ("ways", "shots", "queries", "tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"episodes: {name} = {getattr(self, name)}: must be 1 or more")
        for name in ("image", "label"):
            if name not in source.info.features:
                raise ValueError(
                    f"episodes: data set {source.info.name} has no {name!r}; it has "
                    f"{', '.join(source.info.features)}"
                )
        if classes is not None:
            self._enough(list(classes))

    def _enough(self, classes: list[int]) -> None:
        if len(set(classes)) < self.ways:
            raise DataError(
                f"episodes of {self.source.info.name}: {len(set(classes))} classes {classes} are "
                f"fewer than ways = {self.ways}"
            )

    @functools.cached_property
    def spec(self) -> Any:
        """One global batch; needs no data."""
        shape, dtype = self.source.info.features["image"]
        blank = np.zeros((1, *shape), dtype)
        image = blank if self.transform is None else self.transform(blank)
        out = {}
        for name, per_class in (("support", self.shots), ("query", self.queries)):
            rows = (self.tasks, self.ways * per_class)
            out[f"{name}_images"] = jax.ShapeDtypeStruct((*rows, *image.shape[1:]), image.dtype)
            out[f"{name}_labels"] = jax.ShapeDtypeStruct(rows, np.int32)
        return out

    @functools.cached_property
    def _rows(self) -> list[np.ndarray]:
        """The examples of each class that may be drawn."""
        labels = self.source.arrays()["label"]
        classes = np.unique(labels) if self.classes is None else np.unique(list(self.classes))
        self._enough(classes.tolist())
        rows = [np.flatnonzero(labels == label) for label in classes]
        needed = self.shots + self.queries
        for label, own in zip(classes, rows, strict=True):
            if len(own) < needed:
                raise DataError(
                    f"episodes of {self.source.info.name}: class {label} has {len(own)} examples, "
                    f"shots + queries = {needed} are needed"
                )
        return rows

    def episode(self, position: int) -> dict[str, np.ndarray]:
        """Task `position` of the endless sequence; class c of the task is label c, in order."""
        rng = np.random.default_rng((self.seed, position))
        drawn = rng.choice(len(self._rows), self.ways, replace=False)
        needed = self.shots + self.queries
        own = np.stack([rng.choice(self._rows[c], needed, replace=False) for c in drawn])
        images = self.source.arrays()["image"]

        def taken(part: np.ndarray) -> np.ndarray:
            chosen = images[part.ravel()]
            return chosen if self.transform is None else self.transform(chosen)

        label = np.arange(self.ways, dtype=np.int32)
        return {
            "support_images": taken(own[:, : self.shots]),
            "support_labels": label.repeat(self.shots),
            "query_images": taken(own[:, self.shots :]),
            "query_labels": label.repeat(self.queries),
        }

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This host's tasks of meta-batch `step`."""
        host, hosts = self._hosts or (jax.process_index(), jax.process_count())
        if self.tasks % hosts:
            raise ValueError(f"episodes: tasks = {self.tasks}: must divide by {hosts} hosts")
        rows = self.tasks // hosts
        first = step * self.tasks + host * rows
        each = [self.episode(position) for position in range(first, first + rows)]
        return {name: np.stack([task[name] for task in each]) for name in each[0]}

    def iterate(self, start: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields meta-batches start, start + 1, ... without end."""
        while True:
            yield self.batch(start)
            start += 1


def episodes(
    source: Source,
    *,
    ways: int,
    shots: int,
    queries: int,
    tasks: int,
    seed: int,
    classes: Sequence[int] | None = None,
    transform: Transform | None = None,
    hosts: tuple[int, int] | None = None,
) -> EpisodeStream:
    """N-way K-shot tasks with Q queries a class, in batches of several tasks.

    Task i of the endless sequence depends on (seed, i) alone, so batch t on (seed, t): not on how
    many hosts share it, nor on where a run resumed. Support and query never share an example. Give
    held-out `classes` for tasks of classes that training never saw.

    Args:
      source: examples with `image` and `label` of one shape; kept in memory.
      ways, shots, queries: N, K and Q.
      tasks: of the GLOBAL batch.
      seed: of the tasks.
      classes: labels that may be drawn; default: all.
      transform: images [n, ...] -> images [n, ...] of one shape, deterministic.
      hosts: (index, count) of this host; default: jax's.

    Returns:
      A `Stream` of {"support_images" [T, N K, ...], "support_labels" [T, N K], "query_images"
      [T, N Q, ...], "query_labels" [T, N Q]}, labels 0..N-1; `episode(i)` gives one task.

    Raises:
      ValueError: sizes below 1; fewer classes than `ways`; at first use, a class with fewer
        examples than shots + queries.
    """
    return EpisodeStream(source, ways, shots, queries, tasks, seed, classes, transform, hosts)
