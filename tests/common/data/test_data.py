"""Sources, streams, and the errors that name what is wrong."""

import gzip
import hashlib
import pickle

import numpy as np
import pytest

from reprise.common import data
from reprise.common.data import originals, prepare, sources
from reprise.common.data.catalog import CATALOG


def noisy(example, rng):
    return {"x": example["x"] + rng.normal(size=2).astype(np.float32), "id": example["id"]}


@pytest.fixture
def source():
    ids = np.arange(10, dtype=np.int32)
    return data.from_arrays("ten", {"x": np.zeros((10, 2), np.float32), "id": ids})


def take(stream, start, count):
    batches = stream.iterate(start)
    return [next(batches) for _ in range(count)]


def test_bundled_sets_are_what_the_catalog_says():
    for name in ("digits", "photos"):
        info = data.describe(name)
        for split, count in info.splits.items():
            found = data.load(name, split)
            assert len(found) == count == len([found[i] for i in range(len(found))])
            for key, (shape, dtype) in info.features.items():
                value = found[0][key]
                assert value.dtype == dtype and len(np.shape(value)) == len(shape)
    assert data.available("digits") == (True, "bundled")


def test_no_test_photograph_is_trained_on():
    train, test = (
        [data.load("photos", s)[i]["image"] for i in range(len(data.load("photos", s)))]
        for s in ("train", "test")
    )
    assert all(a.shape != b.shape or (a != b).any() for a in train for b in test)


@pytest.mark.parametrize(
    ("split", "ids"),
    [("train[:3]", (0, 3)), ("train[90%:]", (1293, 1437)), ("train[-2:]", (1435, 1437))],
)
def test_slices_of_splits(split, ids):
    whole, part = data.load("digits", "train"), data.load("digits", split)
    assert len(part) == ids[1] - ids[0]
    np.testing.assert_array_equal(part.arrays()["image"], whole.arrays()["image"][slice(*ids)])


def test_an_empty_slice_is_named():
    source = data.load("digits", "train[5:2]")
    with pytest.raises(data.DataError, match=r"digits: split 'train\[5:2\]' is empty"):
        data.stream(source, 4, seed=0).batch(0)


def test_an_unfinished_copy_is_not_one(tmp_path):
    folder = tmp_path / "bibtex" / "1.0.0.incompleteABC12"
    folder.mkdir(parents=True)
    (folder / "features.json").touch()
    assert data.available("bibtex", tmp_path)[0] is False


def test_the_same_call_gives_the_same_arrays():
    assert data.load("digits", "train").arrays() is data.load("digits", "train").arrays()


def test_unknown_names_and_splits_say_what_there_is():
    with pytest.raises(ValueError, match="data set 'digit': known are bibtex"):
        data.load("digit", "train")
    with pytest.raises(ValueError, match="digits: no split 'val'; it has train, test"):
        data.load("digits", "val")


def test_a_missing_set_names_itself_the_place_and_the_command(tmp_path):
    with pytest.raises(data.MissingData) as error:
        data.load("bibtex", "train", data_dir=tmp_path)[0]
    for word in ("bibtex", str(tmp_path / "bibtex"), "reprise.common.data.prepare bibtex"):
        assert word in str(error.value)
    assert data.available("bibtex", tmp_path)[0] is False


def test_descriptions_need_no_data():
    assert len(data.load("imagenet2012", "train", data_dir="/nowhere")) == 1281167


@pytest.mark.parametrize("transform", [None, noisy])
def test_an_epoch_is_a_permutation_and_the_next_another(source, transform):
    batches = take(data.stream(source, 5, seed=1, transform=transform), 0, 4)
    first, second = (np.concatenate([b["id"] for b in batches[i : i + 2]]) for i in (0, 2))
    assert sorted(first) == sorted(second) == list(range(10)) and (first != second).any()


@pytest.mark.parametrize("transform", [None, noisy])
def test_a_stream_resumes_at_any_step(source, transform):
    stream = data.stream(source, 4, seed=1, transform=transform)
    whole = take(stream, 0, 7)
    for start in (1, 4, 6):
        for a, b in zip(whole[start:], take(stream, start, 7 - start), strict=True):
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_batches_of_one_host(source, hosts):
    whole = take(data.stream(source, 8, seed=3, transform=noisy), 2, 3)
    parts = [
        take(data.stream(source, 8, seed=3, transform=noisy, hosts=(i, hosts)), 2, 3)
        for i in range(hosts)
    ]
    for step, batch in enumerate(whole):
        for key, value in batch.items():
            joined = np.concatenate([part[step][key] for part in parts])
            np.testing.assert_array_equal(joined, value)


def test_noise_differs_between_epochs_and_seeds(source):
    one = np.concatenate(
        [b["x"] for b in take(data.stream(source, 5, seed=1, transform=noisy), 0, 4)]
    )
    assert len(np.unique(one)) == one.size
    other = take(data.stream(source, 5, seed=2, transform=noisy), 0, 1)[0]["x"]
    assert not np.isin(other, one).any()


def test_the_spec_needs_no_data():
    spec = data.stream(data.load("mnist", "train", data_dir="/nowhere"), 64, seed=0).spec
    assert spec["image"].shape == (64, 28, 28, 1) and spec["image"].dtype == np.uint8
    with pytest.raises(ValueError, match="examples of photos vary in shape"):
        data.stream(data.load("photos", "train"), 4, seed=0)


def test_a_corrupt_record_is_named_not_skipped():
    def broken(index):
        if index == 7:
            raise OSError("bad bytes")
        return {"x": np.zeros(2)}

    source = data.generated("bad", broken, 10)
    stream = data.stream(source, 5, seed=0, transform=lambda e, rng: e)
    with pytest.raises(
        ValueError, match="data set bad, split all, record 7 can't be read: bad bytes"
    ):
        take(stream, 0, 2)


# Our own builders, on small stand-ins for the original files.


def arff(rows):
    lines = ["{" + ",".join(f"{i} 1" for i in row) + "}" for row in rows]
    text = "\n".join(["@relation r", "@data", *lines])
    return gzip.compress(text.encode())


def folder(path, files):
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return originals.Folder(path, {n: hashlib.sha256(c).hexdigest() for n, c in files.items()})


def test_a_prepared_copy_reads_back_in_order(tmp_path):
    info = data.describe("bibtex")._replace(name="tiny", splits={"train": 3, "test": 1})
    rng = np.random.default_rng(0)
    made = [
        {
            "features": rng.integers(0, 2, 1836).astype(np.uint8),
            "labels": rng.integers(0, 2, 159).astype(np.uint8),
        }
        for _ in range(4)
    ]
    pairs = [("train", e) for e in made[:3]] + [("test", made[3])]
    written = prepare.write_copy(info, pairs, tmp_path)
    assert (written / "features.json").is_file()
    rows = sources._open_copy(info, "train", str(tmp_path))
    for row, example in zip(rows, made, strict=False):
        for key, value in example.items():
            np.testing.assert_array_equal(row[key], value)
    # A copy of another size, and one whose records were damaged, are refused by name.
    with pytest.raises(ValueError, match=r"tiny, split train: .* has 3 examples, expected 5"):
        sources._open_copy(info._replace(splits={"train": 5, "test": 1}), "train", str(tmp_path))
    for path in written.glob("*train*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"tiny.*(can't be opened|can't be read)"):
        sources.Source(info, "train", lambda: sources._open_copy(info, "train", str(tmp_path)))[0]


def test_original_files_are_checked(tmp_path):
    files = {"bibtex-train.arff.gz": arff([[0, 1840]]), "bibtex-test.arff.gz": arff([[1]])}
    given = folder(tmp_path / "d", files)
    with pytest.raises(ValueError, match=r"bibtex-train.arff.gz: rows: found 1, expected 4880"):
        list(originals.bibtex(given))
    path = tmp_path / "d" / "bibtex-train.arff.gz"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"bibtex-train.arff.gz: wrong checksum: .*truncated"):
        list(originals.bibtex(given))
    path.unlink()
    with pytest.raises(ValueError, match=r"bibtex-train.arff.gz: missing"):
        list(originals.bibtex(given))
    with pytest.raises(ValueError, match="no such folder"):
        originals.Folder(tmp_path / "nowhere", {})


def test_folders_of_classes_become_labels(tmp_path, monkeypatch):
    from PIL import Image

    for split, names in (("train", ("a", "b")), ("validation", ("c",)), ("test", ("d",))):
        for name in names:
            (tmp_path / "from" / split / name).mkdir(parents=True)
            for i in range(2):
                picture = np.full((9, 7, 3), 10 * i, np.uint8)
                Image.fromarray(picture).save(tmp_path / "from" / split / name / f"{i}.png")
    info = data.describe("mini_imagenet")
    small = info._replace(splits={"train": 4, "validation": 2, "test": 2})
    monkeypatch.setitem(CATALOG, "mini_imagenet", small)
    with pytest.raises(ValueError, match=r"mini_imagenet is not served by tfds: .* --from=DIR"):
        prepare.prepare("mini_imagenet", None, tmp_path / "out")
    prepare.prepare("mini_imagenet", tmp_path / "from", tmp_path / "out")
    rows = sources._open_copy(small, "train", str(tmp_path / "out"))
    assert [int(row["label"]) for row in rows] == [0, 0, 1, 1]
    assert rows[1]["image"].shape == (84, 84, 3) and (rows[1]["image"] == 10).all()
    (tmp_path / "from" / "test" / "d" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"d/0.png: no readable image"):
        list(originals.class_folders(tmp_path / "from", small.splits, 84))
    with pytest.raises(ValueError, match=r"no folders of classes"):
        list(originals.class_folders(tmp_path, small.splits, 84))


def test_the_registered_checksums_are_used(tmp_path):
    (tmp_path / "bibtex-train.arff.gz").write_bytes(arff([[0]]))
    with pytest.raises(ValueError, match="wrong checksum"):
        prepare.prepare("bibtex", tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"bibtex is not served by tfds: .* --from=DIR"):
        prepare.prepare("bibtex", None, tmp_path / "out")


def test_every_own_set_has_a_reader_and_checksums():
    for name in sorted(n for n, i in CATALOG.items() if n in prepare.OWN):
        folder_name, _ = originals.READERS[name]
        assert originals.checksums(folder_name) or name == "mvtec_ad", name


def test_mvtec_ad_is_read_from_the_folders_of_its_archive(tmp_path):
    from PIL import Image

    def picture(name, value, shape=(6, 6)):
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(shape, value, np.uint8)).save(path)

    picture("grid/train/good/000.png", 7)  # grey, as three classes are
    picture("grid/test/good/000.png", 8, (6, 6, 3))
    picture("grid/test/bent/000.png", 9)
    picture("grid/test/thread/000.png", 10)
    picture("grid/ground_truth/bent/000_mask.png", 255)
    given = originals.Folder(tmp_path / "raw", {})
    info = data.describe("mvtec_ad")._replace(splits={"grid_train": 1, "grid_test": None})
    with pytest.raises(ValueError, match=r"000_mask.png: missing; it is the mask of .*thread/000"):
        prepare.write_copy(info, originals.mvtec_ad(given), tmp_path / "bad")
    picture("grid/ground_truth/thread/000_mask.png", 0)
    prepare.write_copy(info, originals.mvtec_ad(given), tmp_path / "out")
    rows = [dict(r) for r in sources._open_copy(info, "grid_test", str(tmp_path / "out"))]
    found = [(int(r["label"]), r["image"][0, 0].tolist(), int(r["mask"].sum())) for r in rows]
    assert found == [(1, [9, 9, 9], 36), (0, [8, 8, 8], 0), (2, [10, 10, 10], 0)]


def planetoid_files(test_index=(4, 6)):
    import scipy.sparse as sp

    dump = {
        "x": sp.csr_matrix(np.eye(2, 3, dtype=np.float32)),
        "allx": sp.csr_matrix(np.ones((4, 3), np.float32)),
        "tx": sp.csr_matrix(2 * np.ones((2, 3), np.float32)),
        "y": np.eye(2, dtype=np.int32),
        "ally": np.eye(2, dtype=np.int32)[[0, 1, 0, 1]],
        "ty": np.eye(2, dtype=np.int32)[[1, 1]],
        # A self loop and an edge in both directions; node 5 is isolated and has no features.
        "graph": {0: [1, 0], 1: [0, 2], 2: [1], 3: [4], 4: [3], 5: [], 6: [0]},
    }
    files = {f"ind.g.{k}": pickle.dumps(v, protocol=4) for k, v in dump.items()}
    return files | {"ind.g.test.index": "\n".join(map(str, test_index)).encode()}


def test_a_citation_graph_keeps_isolated_nodes_and_loses_loops_and_duplicates(tmp_path):
    ((split, graph),) = originals.planetoid(folder(tmp_path, planetoid_files()), "g", 7)
    assert split == "full"
    np.testing.assert_array_equal(graph["edges"], [[0, 1], [0, 6], [1, 2], [3, 4]])
    np.testing.assert_array_equal(graph["features"].sum(1), [3, 3, 3, 3, 6, 0, 6])
    np.testing.assert_array_equal(graph["labels"], [0, 1, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(np.flatnonzero(graph["test_mask"]), [4, 6])


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("true",)


@pytest.mark.parametrize("evil", [Evil(), [Evil()], {"a": eval}])
def test_pickles_that_could_run_code_are_refused(evil):
    with pytest.raises(ValueError, match="pickle asks for"):
        originals.restricted_loads(pickle.dumps(evil, protocol=2))


def test_importing_data_loads_no_heavy_library():
    import subprocess
    import sys

    code = (
        "import sys, reprise.common.data; "
        "print([m for m in ('tensorflow_datasets', 'grain', 'sklearn', 'scipy', 'PIL') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
