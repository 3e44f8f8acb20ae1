"""Reads data sets from their makers' files, and refuses files that are not those.

Each reader takes the folder of original files and yields (split, example) pairs.
"""

import functools
import gzip
import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reprise.common.data.errors import DataError

Pair = tuple[str, Any]  # split, and the example or a function that makes it


class Folder:
    """A folder of original files with known checksums.

    Attributes:
      path: where it is.
      sums: file name below it -> sha256. A file without one is not part of the data set.
    """

    def __init__(self, path: Path, sums: Mapping[str, str]):
        self.path, self.sums = Path(path), dict(sums)
        if not self.path.is_dir():
            raise DataError(
                f"{self.path}: no such folder; --from takes the folder of original files"
            )

    def read(self, name: str) -> bytes:
        """The bytes of a file, after its checksum was compared."""
        path = self.path / name
        if not path.is_file():
            raise DataError(f"{path}: missing; it is one of the original files of this data set")
        data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != self.sums[name]:
            raise DataError(
                f"{path}: wrong checksum: sha256 {found[:16]}... of {len(data)} bytes, expected "
                f"{self.sums[name][:16]}...; the file is truncated or another version, get it again"
            )
        return data

    def names(self, suffix: str = "", prefix: str = "") -> list[str]:
        """The files of the data set, by name."""
        return sorted(n for n in self.sums if n.startswith(prefix) and n.endswith(suffix))


def expect(what: str, found: Any, expected: Any) -> None:
    """Refuses data of another shape than the data set has."""
    if found != expected:
        raise DataError(f"{what}: found {found}, expected {expected}; not the file it should be")


def checksums(folder: str) -> dict[str, str]:
    """Registered sha256 of the files of an original folder."""
    text = (Path(__file__).parent / "checksums.txt").read_text()
    pairs = (line.split() for line in text.splitlines())
    return {
        path.partition("/")[2]: digest for digest, path in pairs if path.partition("/")[0] == folder
    }


def _png(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)))


def bibtex(folder: Folder) -> Iterator[Pair]:
    """Mulan's sparse ARFF: 1836 binary features, then 159 binary labels."""
    for split, count in (("train", 4880), ("test", 2515)):
        name = f"bibtex-{split}.arff.gz"
        text = gzip.decompress(folder.read(name)).decode()
        _, _, body = text.partition("@data")
        lines = [line for line in body.splitlines() if line.startswith("{")]
        expect(f"{name}: rows", len(lines), count)
        for line in lines:
            row = np.zeros(1836 + 159, np.uint8)
            row[[int(entry.split()[0]) for entry in line.strip("{}").split(",") if entry]] = 1
            yield split, {"features": row[:1836], "labels": row[1836:]}


_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("scipy.sparse.csr", "csr_matrix"),
    ("scipy.sparse._csr", "csr_matrix"),
    ("collections", "defaultdict"),
    ("__builtin__", "list"),
    ("builtins", "list"),
}


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickles arrays, sparse matrices and plain containers, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise DataError(
                f"pickle asks for {module}.{name}: only numpy and scipy arrays are read"
            )
        if module == "scipy.sparse.csr":
            module = "scipy.sparse"
        if module == "numpy.core.multiarray":
            module = "numpy._core.multiarray"
        return super().find_class({"__builtin__": "builtins"}.get(module, module), name)


def restricted_loads(data: bytes) -> Any:
    """`pickle.loads` for Python 2 pickles of arrays, sparse matrices and plain containers."""
    return RestrictedUnpickler(io.BytesIO(data), encoding="latin1").load()


def planetoid(folder: Folder, name: str, nodes: int) -> Iterator[Pair]:
    """A citation graph with the public split; each undirected edge once, no self loops.

    Test rows come in the order of `test.index`; test nodes missing from it (isolated ones of
    Citeseer) keep zero features and label 0 and are in no mask.
    """

    def part(suffix: str) -> Any:
        return restricted_loads(folder.read(f"ind.{name}.{suffix}"))

    y, ty, ally, graph = (part(suffix) for suffix in ("y", "ty", "ally", "graph"))
    test = np.array([int(line) for line in folder.read(f"ind.{name}.test.index").split()])
    expect(f"ind.{name}.graph: nodes", len(graph), nodes)
    expect(f"ind.{name}.ty: rows", len(ty), len(test))
    labels = np.zeros(nodes, np.int32)
    labels[: len(ally)] = ally.argmax(1)
    labels[test] = ty.argmax(1)
    pairs = {(min(i, j), max(i, j)) for i, others in graph.items() for j in others if i != j}
    masks = {f"{split}_mask": np.zeros(nodes, bool) for split in ("train", "validation", "test")}
    masks["train_mask"][: len(y)] = True
    masks["validation_mask"][len(y) : len(y) + 500] = True
    masks["test_mask"][test] = True
    example = {"labels": labels, "edges": np.array(sorted(pairs), np.int32), **masks}
    if f"ind.{name}.allx" in folder.sums:
        allx, tx = part("allx"), part("tx")
        features = np.zeros((nodes, allx.shape[1]), np.float32)
        features[: allx.shape[0]] = allx.toarray()
        features[test] = tx.toarray()
        example["features"] = features
    yield "full", example


def image_folder(folder: Folder, channels: int) -> Iterator[Pair]:
    """Whole images, one file each; a grey one is repeated where three channels are expected."""
    for name in folder.names(".png"):
        image = _png(folder.read(name))
        image = image[..., None] if image.ndim == 2 else image[..., :3]
        if image.shape[-1] != channels:
            image = np.repeat(image[..., :1], channels, -1)
        yield "test", {"image": image}


def flyingchairs(folder: Folder) -> Iterator[Pair]:
    for name in folder.names("_flow.npz"):
        stem = name.removesuffix("_flow.npz")
        flow = np.load(io.BytesIO(folder.read(name)))["flow"]
        expect(f"{name}: shape", flow.shape, (384, 512, 2))
        images = {f"image{i}": _png(folder.read(f"{stem}_img{i}.png")) for i in (0, 1)}
        yield "test", {**images, "flow": flow.astype(np.float32)}


def cifar10(folder: Folder) -> Iterator[Pair]:
    """Mosaics of 40 images a row; train 0-17999, validation -19999, test -29999."""
    labels = np.load(io.BytesIO(folder.read("labels.npz")))

    def images(name: str) -> np.ndarray:
        mosaic = _png(folder.read(name))
        expect(f"{name}: width and channels", mosaic.shape[1:], (1280, 3))
        rows = mosaic.shape[0] // 32
        return mosaic.reshape(rows, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)

    index = 0
    for name in folder.names(".png", "train_"):
        for image in images(name):
            split = "train" if index < 18000 else "validation" if index < 20000 else "test"
            yield split, {"image": image, "label": int(labels["train"][index])}
            index += 1
    expect("cifar10: training images", index, 30000)
    for i, image in enumerate(images("test_00000-00999.png")):
        yield "official_test", {"image": image, "label": int(labels["test"][i])}


def omniglot(folder: Folder, part: str) -> Iterator[Pair]:
    """Drawings as 0 (paper) and 1 (ink); labels in the order of alphabet and character."""
    archive = zipfile.ZipFile(io.BytesIO(folder.read(f"images_background_{part}.zip")))
    names = sorted(n for n in archive.namelist() if n.endswith(".png"))
    characters = sorted({n.rpartition("/")[0] for n in names})
    alphabets = sorted({c.split("/")[1] for c in characters})
    for name in names:
        character = name.rpartition("/")[0]
        image = (_png(archive.read(name)) == 0).astype(np.uint8)[..., None]
        expect(f"{name}: shape", image.shape, (105, 105, 1))
        yield (
            "train",
            {
                "image": image,
                "label": characters.index(character),
                "alphabet": alphabets.index(character.split("/")[1]),
            },
        )


def nrsfm(folder: Folder) -> Iterator[Pair]:
    """Sequences of F frames and P points: shape [F, 3, P], observed [F, 2, P], camera [F, 2, 3]."""
    import scipy.io

    for name in folder.names(".mat"):
        data = scipy.io.loadmat(io.BytesIO(folder.read(name)))
        frames, points = data["S"].shape[0] // 3, data["S"].shape[1]
        expect(f"{name}: W", data["W"].shape, (2 * frames, points))
        camera = data["Rs"].reshape(frames, 2, 3) if "Rs" in data else np.zeros((frames, 2, 3))
        edges = data["list"].astype(np.int32) - 1 if "list" in data else np.zeros((0, 2), np.int32)
        yield (
            name.removesuffix(".mat"),
            {
                "shape": data["S"].reshape(frames, 3, points).astype(np.float32),
                "observed": data["W"].reshape(frames, 2, points).astype(np.float32),
                "camera": camera.astype(np.float32),
                "edges": edges,
            },
        )


def class_folders(root: Path, splits: Iterable[str], size: int) -> Iterator[Pair]:
    """Images of `root/<split>/<class>/` as squares; labels in the order of splits and classes."""
    from PIL import Image

    label = 0
    for split in splits:
        classes = sorted(p for p in (root / split).glob("*") if p.is_dir())
        if not classes:
            raise DataError(f"{root / split}: no folders of classes there")
        for folder in classes:
            for path in sorted(folder.iterdir()):
                try:
                    image: Any = Image.open(path).convert("RGB")
                    image = image.resize((size, size), Image.Resampling.BILINEAR)
                except OSError as error:
                    raise DataError(f"{path}: no readable image: {error}") from error
                yield split, {"image": np.asarray(image), "label": label}
            label += 1


TILE_KINDS = ("MT_Free", "MT_Blowhole", "MT_Break", "MT_Crack", "MT_Fray", "MT_Uneven")


def magnetic_tile(folder: Folder) -> Iterator[Pair]:
    """The first 24 defect-free tiles to train on; the other 10 and the defects to test."""
    for label, kind in enumerate(TILE_KINDS):
        for i, name in enumerate(folder.names(".jpg", f"{kind}/")):
            image = _png(folder.read(name))
            image = image[..., None] if image.ndim == 2 else image[..., :1]
            mask = np.zeros_like(image)
            if label:
                drawn = _png(folder.read(name.removesuffix(".jpg") + ".png"))
                drawn = drawn if drawn.ndim == 2 else drawn[..., 0]
                expect(f"{name}: mask", drawn.shape, image.shape[:2])
                mask = (drawn > 127).astype(np.uint8)[..., None]
            split = "train" if not label and i < 24 else "test"
            yield split, {"image": image, "mask": mask, "label": label}


def mvtec_ad(folder: Folder) -> Iterator[Pair]:
    """CLASS/train/good, CLASS/test/KIND and CLASS/ground_truth/KIND; label 0 is good.

    Nobody has registered checksums of its files, so shapes and counts are all that is checked. An
    example is decoded when it is written: the whole set does not fit in memory.
    """

    def decoded(path: Path, drawn: Path | None, label: int) -> dict[str, Any]:
        image = _png(path.read_bytes())
        image = np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image[..., :3]
        mask = np.zeros(image.shape[:2], np.uint8)
        if drawn is not None:
            if not drawn.is_file():
                raise DataError(f"{drawn}: missing; it is the mask of {path}")
            mask = (_png(drawn.read_bytes()) > 127).astype(np.uint8)
            expect(f"{path}: mask", mask.shape, image.shape[:2])
        return {"image": image, "mask": mask[..., None], "label": label}

    for kind in sorted(p for p in folder.path.glob("*/*/*") if p.is_dir()):
        part, category = kind.parent.name, kind.parent.parent.name
        if part not in ("train", "test"):
            continue
        siblings = sorted(p.name for p in kind.parent.iterdir() if p.name != "good")
        label = 0 if kind.name == "good" else 1 + siblings.index(kind.name)
        for path in sorted(kind.glob("*.png")):
            truth = kind.parent.parent / "ground_truth" / kind.name / f"{path.stem}_mask.png"
            drawn = truth if label else None
            yield f"{category}_{part}", functools.partial(decoded, path, drawn, label)


def ucr(folder: Folder) -> Iterator[Pair]:
    """Series of the official splits; labels are the original class codes."""
    small = np.load(io.BytesIO(folder.read("ucr_small.npz")))
    trace = np.load(io.BytesIO(folder.read("Trace.npz")))
    arrays = {key: small[key] for key in small.files}
    for part in ("train", "test"):
        arrays[f"Trace_x_{part}"] = trace[f"X_{part}"][..., 0]
        arrays[f"Trace_y_{part}"] = trace[f"y_{part}"]
    for key in sorted(k for k in arrays if "_x_" in k):
        name, _, part = key.partition("_x_")
        for series, label in zip(arrays[key], arrays[f"{name}_y_{part}"], strict=True):
            yield f"{name}_{part}", {"series": series.astype(np.float32), "label": int(label)}


# Data set -> (folder name in checksums.txt, reader).
READERS: dict[str, tuple[str, Callable[[Folder], Iterator[Pair]]]] = {
    "bibtex": ("bibtex", bibtex),
    "cora": ("planetoid", lambda f: planetoid(f, "cora", 2708)),
    "citeseer": ("planetoid", lambda f: planetoid(f, "citeseer", 3327)),
    "pubmed": ("planetoid", lambda f: planetoid(f, "pubmed", 19717)),
    "set5": ("CSet5", lambda f: image_folder(f, 3)),
    "set14": ("CSet14", lambda f: image_folder(f, 3)),
    "bsd68": ("BSD68", lambda f: image_folder(f, 1)),
    "flyingchairs_examples": ("optical_flow", flyingchairs),
    "cifar10_30k": ("cifar10", cifar10),
    "omniglot_small1": ("omniglot", lambda f: omniglot(f, "small1")),
    "omniglot_small2": ("omniglot", lambda f: omniglot(f, "small2")),
    "nrsfm": ("nrsfm", nrsfm),
    "magnetic_tile": ("magnetic_tile", magnetic_tile),
    "mvtec_ad": ("mvtec_ad", mvtec_ad),
    "ucr": ("ucr", ucr),
}
