"""Few-shot tasks: a pure function of (seed, step), shared by hosts, of held-out classes."""

import numpy as np
import pytest

from reprise.common import data
from reprise.common.data.episodes import episodes

CLASSES, PER_CLASS = 8, 6


@pytest.fixture(scope="module")
def source():
    """Every example's image is its own number."""
    ids = np.arange(CLASSES * PER_CLASS, dtype=np.float32)
    label = (np.arange(CLASSES * PER_CLASS) % CLASSES).astype(np.int32)
    return data.from_arrays("numbers", {"image": ids.reshape(-1, 1, 1, 1), "label": label})


def tasks_of(source, **changes):
    settings = dict(ways=3, shots=2, queries=1, tasks=4, seed=0) | changes
    return episodes(source, **settings)


def take(stream, start, count):
    batches = stream.iterate(start)
    return [next(batches) for _ in range(count)]


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_a_batch_depends_on_seed_and_step_alone(source):
    whole = take(tasks_of(source), 0, 5)
    for a, b in zip(take(tasks_of(source), 3, 2), whole[3:], strict=True):
        same(a, b)
    other = take(tasks_of(source, seed=1), 0, 1)[0]
    assert (other["support_images"] != whole[0]["support_images"]).any()
    assert (whole[1]["support_images"] != whole[0]["support_images"]).any()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_have_contiguous_rows_of_the_batch_of_one_host(source, hosts):
    for step, batch in enumerate(take(tasks_of(source), 0, 2)):
        parts = [tasks_of(source, hosts=(i, hosts)).batch(step) for i in range(hosts)]
        same({k: np.concatenate([part[k] for part in parts]) for k in batch}, batch)
    with pytest.raises(ValueError, match="tasks = 4: must divide by 3 hosts"):
        tasks_of(source, hosts=(0, 3)).batch(0)


def test_the_spec_is_what_comes(source):
    for transform in (None, lambda images: np.tile(images, (1, 2, 2, 1)).astype(np.float16)):
        stream = tasks_of(source, transform=transform)
        batch = stream.batch(0)
        assert stream.spec.keys() == batch.keys()
        for name, shape in stream.spec.items():
            assert (shape.shape, shape.dtype) == (batch[name].shape, batch[name].dtype), name
    spec = episodes(
        data.load("mnist", "train", data_dir="/nowhere"),
        ways=5, shots=1, queries=2, tasks=3, seed=0,
    ).spec  # fmt: skip
    assert spec["query_images"].shape == (3, 10, 28, 28, 1)


def test_support_and_query_are_different_examples_of_the_same_classes(source):
    for position in range(50):
        task = tasks_of(source).episode(position)
        support, query = task["support_images"].ravel(), task["query_images"].ravel()
        assert len(np.unique([*support, *query])) == 9
        classes = [np.unique(support[task["support_labels"] == c] % CLASSES) for c in range(3)]
        assert all(len(c) == 1 for c in classes) and len(np.unique(classes)) == 3
        for c in range(3):
            assert (query[task["query_labels"] == c] % CLASSES == classes[c]).all()


def test_held_out_classes_stay_out(source):
    drawn = np.concatenate(
        [b["query_images"].ravel() for b in take(tasks_of(source, classes=(1, 4, 6, 7)), 0, 20)]
    )
    assert set(np.unique(drawn % CLASSES)) == {1, 4, 6, 7}


def test_what_does_not_fit_is_named(source):
    with pytest.raises(ValueError, match=r"numbers: 2 classes \[1, 4\] are fewer than ways = 3"):
        tasks_of(source, classes=(1, 4))
    with pytest.raises(ValueError, match=r"8 classes .* are fewer than ways = 9"):
        tasks_of(source, ways=9).batch(0)
    with pytest.raises(ValueError, match=r"class 0 has 6 examples, shots \+ queries = 7 are"):
        tasks_of(source, queries=5).batch(0)
    with pytest.raises(ValueError, match="class 11 has 0 examples"):
        tasks_of(source, classes=(1, 2, 11)).batch(0)
    with pytest.raises(ValueError, match="episodes: shots = 0: must be 1 or more"):
        tasks_of(source, shots=0)
    with pytest.raises(ValueError, match="data set photos has no 'label'; it has image"):
        tasks_of(data.load("photos", "train"))
