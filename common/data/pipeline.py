"""Batches as a pure function of (seed, step), for any number of hosts."""

from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np

from reprise.common.data.sources import Example, Source

Transform = Callable[[Example, np.random.Generator], Example]

THREADS, BUFFER = 4, 8  # reading threads, and batches that they keep ready


class ExampleStream:
    """Endless shuffled batches of a source; see `stream`."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        transform: Transform | None,
        shuffle: bool,
        spec: Any,
        hosts: tuple[int, int] | None,
    ):
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.transform, self.shuffle, self._hosts = transform, shuffle, hosts
        self.spec = spec if spec is not None else self._infer_spec()
        # Threads must not each draw the permutation of a new epoch.
        self._orders: dict[int, np.ndarray] = {}

    def _infer_spec(self) -> Any:
        features = self.source.info.features
        if any(None in shape for shape, _ in features.values()):
            if self.transform is None:
                raise ValueError(
                    f"stream: examples of {self.source.info.name} vary in shape "
                    f"({dict(features)}); give a transform that makes them alike"
                )
            # Large enough for any crop.
            features = {
                k: (tuple(512 if n is None else n for n in s), d) for k, (s, d) in features.items()
            }
        example: Example = {
            name: np.zeros(shape, dtype) for name, (shape, dtype) in features.items()
        }
        if self.transform is not None:
            example = self.transform(example, np.random.default_rng(0))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.batch_size, *np.shape(x)), np.asarray(x).dtype),
            example,
        )

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            count = len(self.source)
            rng = np.random.default_rng((self.seed, epoch))
            order = rng.permutation(count) if self.shuffle else np.arange(count)
            self._orders = {k: v for k, v in self._orders.items() if abs(k - epoch) < 3}
            self._orders[epoch] = order
        return order

    def batch(self, step: int) -> Any:
        """This host's rows of batch `step`."""
        host, hosts = self._hosts or (jax.process_index(), jax.process_count())
        rows = self.batch_size // hosts
        first = step * self.batch_size + host * rows
        positions = np.arange(first, first + rows)
        epochs, within = np.divmod(positions, len(self.source))
        records = np.concatenate(
            [self._order(int(e))[within[epochs == e]] for e in np.unique(epochs)]
        )
        if self.transform is None:
            return {name: values[records] for name, values in self.source.arrays().items()}
        # Keyed by the position in the endless sequence: another number of hosts, or a resumed
        # run, augments the same example of the same epoch in the same way.
        examples = [
            self.transform(self.source[int(record)], np.random.default_rng((self.seed, int(p))))
            for record, p in zip(records, positions, strict=True)
        ]
        return jax.tree.map(lambda *xs: np.stack(xs), *examples)

    def iterate(self, start: int) -> Iterator[Any]:
        """Yields batches start, start + 1, ...; transforms run in threads ahead of their use."""
        if self.transform is None:
            while True:
                yield self.batch(start)
                start += 1
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BUFFER)
        steps = grain.MapDataset.range(start, 2**40).map(self.batch)
        yield from steps.to_iter_dataset(options)


def stream(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    transform: Transform | None = None,
    shuffle: bool = True,
    spec: Any = None,
    hosts: tuple[int, int] | None = None,
) -> ExampleStream:
    """Endless batches of a source; every epoch is a permutation of it.

    Batch t depends on (seed, t) alone: not on how many hosts share it, nor on where a run
    resumed.

    Args:
      source: the examples.
      batch_size: examples of the GLOBAL batch.
      seed: of the order and of the transform's random numbers.
      transform: (example, rng) -> example with arrays of fixed shapes. Its generator is keyed by
        (seed, position in the endless sequence). None: the arrays as they are, gathered at once.
      shuffle: a new permutation each epoch; else the source's order.
      spec: one global batch as jax.ShapeDtypeStructs; default: inferred by running the transform
        on zeros of the catalog's shapes (512 where one varies), without opening the data.
      hosts: (index, count) of this host; default: jax's.

    Raises:
      ValueError: examples of varying shape without a transform.
    """
    return ExampleStream(source, batch_size, seed, transform, shuffle, spec, hosts)
