"""What a recipe gives the loop: everything that a training procedure is."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

State = Any  # any pytree of arrays
Batch = Any  # any pytree of arrays with a leading batch axis
Metrics = Mapping[str, Any]  # name -> scalar array


class Stream(Protocol):
    """A deterministic stream of batches: batch t depends on the seed and t alone."""

    spec: Any  # pytree of jax.ShapeDtypeStruct: one GLOBAL batch

    def iterate(self, start: int) -> Iterator[Batch]:
        """Yields this process's rows (numpy) of batches start, start + 1, ... without end.

        Process p of n has rows [p B/n, (p + 1) B/n) of the global batch of B, in order.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Phase:
    """One training procedure.

    `init` and `step` are pure and must be the same functions for every seed: a study runs them
    under `vmap` over seeds, and takes only `batches` and `evaluate` from the other seeds' phases.

    Attributes:
      name: unique in the recipe; names the checkpoint folder and the rows of metrics.jsonl.
      num_steps: how often `step` is called. 0 for a phase that only evaluates.
      init: (key, previous) -> state. `previous` is the final state of the phase before, or None.
      step: (state, batch, key) -> (state, metrics). Metrics are scalars. The key is a pure
        function of (seed, phase name, step number). The batch is the GLOBAL batch.
      batches: a `Stream`; or a pytree of arrays that is put on the devices once and handed to
        every step whole (a graph, a small data set, weights of a teacher); or None.
      evaluate: (state) -> {name: float}, on the host. Called every `config.eval_every` steps and
        after the last. Must be deterministic. Where the state keeps an average of its
        parameters, it is handed over with that as `params`; so it is to `figures`.
      figures: (state, directory) -> paths of the pictures it drew there, after the last step.
      examples_per_step: for the throughput display; taken from the stream where there is one.
      reuse: what the final state depends on, as plain data (model, data set, optimiser, ...), for
        a phase whose result other runs want (a teacher, a supernet). The final state is then kept
        in `config.cache_dir` under the hash of this and of the code version, and taken from there.
    """

    name: str
    num_steps: int
    init: Callable[[jax.Array, State | None], State]
    step: Callable[[State, Batch, jax.Array], tuple[State, Metrics]]
    batches: Any = None
    evaluate: Callable[[State], Mapping[str, float]] | None = None
    figures: Callable[[State, Path], list[Path]] | None = None
    examples_per_step: int | None = None
    reuse: Mapping[str, Any] | None = None

    def is_streamed(self) -> bool:
        """True where `batches` is a Stream rather than resident arrays or None."""
        return hasattr(self.batches, "iterate")
