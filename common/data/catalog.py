"""What is known of each data set without opening it."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class DataInfo(NamedTuple):
    """Static description of a data set.

    Attributes:
      name: as `load` takes it.
      kind: "bundled" (inside a dependency), or "tfds" (a prepared copy is needed).
      splits: name -> number of examples, None where it is not known beforehand.
      features: name -> (shape of one example, None where it varies; dtype).
      num_classes: of `label`, or None.
      source: where it comes from; for our own builders the folder of original files.
      licence: what its makers say of its use.
    """

    name: str
    kind: str
    splits: Mapping[str, int | None]
    features: Mapping[str, tuple[tuple[int | None, ...], str]]
    num_classes: int | None
    source: str
    licence: str


_UNSTATED = "not stated by the source: research use only, do not redistribute"


def _image(height: Any, width: Any, channels: int) -> tuple[tuple[Any, ...], str]:
    return (height, width, channels), "uint8"


_LABEL: tuple[tuple[int | None, ...], str] = ((), "int32")


def _graph(nodes: int, features: int) -> dict[str, Any]:
    out: dict[str, Any] = {"features": ((nodes, features), "float32")} if features else {}
    return out | {
        "labels": ((nodes,), "int32"),
        "edges": ((None, 2), "int32"),
        "train_mask": ((nodes,), "bool"),
        "validation_mask": ((nodes,), "bool"),
        "test_mask": ((nodes,), "bool"),
    }


_UCR = (
    "Beef",
    "Car",
    "Coffee",
    "ECG200",
    "FaceFour",
    "GunPoint",
    "Lightning2",
    "Lightning7",
    "OliveOil",
    "Plane",
    "SyntheticControl",
    "Trace",
)

_MVTEC = (
    "bottle",
    "cable",
    "capsule",
    "carpet",
    "grid",
    "hazelnut",
    "leather",
    "metal_nut",
    "pill",
    "screw",
    "tile",
    "toothbrush",
    "transistor",
    "wood",
    "zipper",
)

_ALL = [
    DataInfo(
        "digits",
        "bundled",
        {"train": 1437, "test": 360},
        {"image": ((8, 8, 1), "float32"), "label": _LABEL},
        10,
        "scikit-learn load_digits, in its order: the last 360 are the test set",
        "CC BY 4.0 (UCI)",
    ),
    DataInfo(
        "photos",
        "bundled",
        {"train": 7, "test": 4},
        {"image": _image(None, None, 3)},
        None,
        "photographs inside scikit-image and scikit-learn, whole photographs apart for testing",
        "public domain or CC0/CC BY, see the two packages",
    ),
    DataInfo(
        "karate",
        "bundled",
        {"full": 1},
        {
            "features": ((34, 34), "float32"),
            "labels": ((34,), "int32"),
            "edges": ((78, 2), "int32"),
        },
        2,
        "networkx karate_club_graph; the features are the nodes themselves, the classes its clubs",
        "facts published in Zachary 1977",
    ),
    DataInfo(
        "bibtex",
        "tfds",
        {"train": 4880, "test": 2515},
        {"features": ((1836,), "uint8"), "labels": ((159,), "uint8")},
        None,
        "bibtex",
        _UNSTATED,
    ),
    DataInfo("cora", "tfds", {"full": 1}, _graph(2708, 1433), 7, "planetoid", "MIT (repository)"),
    DataInfo(
        "citeseer", "tfds", {"full": 1}, _graph(3327, 3703), 6, "planetoid", "MIT (repository)"
    ),
    DataInfo("pubmed", "tfds", {"full": 1}, _graph(19717, 0), 3, "planetoid", "MIT (repository)"),
    DataInfo(
        "set5", "tfds", {"test": 5}, {"image": _image(None, None, 3)}, None, "CSet5", _UNSTATED
    ),
    DataInfo(
        "set14", "tfds", {"test": 14}, {"image": _image(None, None, 3)}, None, "CSet14", _UNSTATED
    ),
    DataInfo(
        "bsd68", "tfds", {"test": 68}, {"image": _image(None, None, 1)}, None, "BSD68", _UNSTATED
    ),
    DataInfo(
        "flyingchairs_examples",
        "tfds",
        {"test": 5},
        {
            "image0": _image(384, 512, 3),
            "image1": _image(384, 512, 3),
            "flow": ((384, 512, 2), "float32"),
        },
        None,
        "optical_flow",
        _UNSTATED,
    ),
    DataInfo(
        "cifar10_30k",
        "tfds",
        {"train": 18000, "validation": 2000, "test": 10000, "official_test": 1000},
        {"image": _image(32, 32, 3), "label": _LABEL},
        10,
        "cifar10",
        _UNSTATED,
    ),
    DataInfo(
        "omniglot_small1",
        "tfds",
        {"train": 2720},
        {"image": _image(105, 105, 1), "label": _LABEL, "alphabet": _LABEL},
        136,
        "omniglot",
        "MIT (repository)",
    ),
    DataInfo(
        "omniglot_small2",
        "tfds",
        {"train": 3120},
        {"image": _image(105, 105, 1), "label": _LABEL, "alphabet": _LABEL},
        156,
        "omniglot",
        "MIT (repository)",
    ),
    DataInfo(
        "nrsfm",
        "tfds",
        {"drink": 1, "pickup": 1, "yoga": 1, "stretch": 1, "dance": 1},
        {
            "shape": ((None, 3, None), "float32"),
            "observed": ((None, 2, None), "float32"),
            "camera": ((None, 2, 3), "float32"),
            "edges": ((None, 2), "int32"),
        },
        None,
        "nrsfm",
        _UNSTATED,
    ),
    DataInfo(
        "magnetic_tile",
        "tfds",
        {"train": 24, "test": 80},
        {"image": _image(None, None, 1), "mask": _image(None, None, 1), "label": _LABEL},
        6,
        "magnetic_tile",
        _UNSTATED,
    ),
    DataInfo(
        "mvtec_ad",
        "tfds",
        {f"{name}_{part}": None for name in _MVTEC for part in ("train", "test")},
        {"image": _image(None, None, 3), "mask": _image(None, None, 1), "label": _LABEL},
        None,
        "mvtec_ad, as its archive unpacks",
        "CC BY-NC-SA 4.0",
    ),
    DataInfo(
        "ucr",
        "tfds",
        {f"{name}_{part}": None for name in _UCR for part in ("train", "test")},
        {"series": ((None,), "float32"), "label": _LABEL},
        None,
        "ucr",
        _UNSTATED,
    ),
    DataInfo(
        "mnist",
        "tfds",
        {"train": 60000, "test": 10000},
        {"image": _image(28, 28, 1), "label": _LABEL},
        10,
        "mnist",
        _UNSTATED,
    ),
    DataInfo(
        "fashion_mnist",
        "tfds",
        {"train": 60000, "test": 10000},
        {"image": _image(28, 28, 1), "label": _LABEL},
        10,
        "fashion_mnist",
        "MIT",
    ),
    DataInfo(
        "cifar10",
        "tfds",
        {"train": 50000, "test": 10000},
        {"image": _image(32, 32, 3), "label": _LABEL},
        10,
        "tfds cifar10",
        _UNSTATED,
    ),
    DataInfo(
        "cifar100",
        "tfds",
        {"train": 50000, "test": 10000},
        {"image": _image(32, 32, 3), "label": _LABEL},
        100,
        "tfds cifar100",
        _UNSTATED,
    ),
    DataInfo(
        "mini_imagenet",
        "tfds",
        {"train": 38400, "validation": 9600, "test": 12000},
        {"image": _image(84, 84, 3), "label": _LABEL},
        100,
        "100 classes of ImageNet, 600 images each (Ravi and Larochelle, 2017): a folder a class",
        "image-net.org: research and education",
    ),
    DataInfo(
        "tiered_imagenet",
        "tfds",
        {"train": 448695, "validation": 124261, "test": 206209},
        {"image": _image(84, 84, 3), "label": _LABEL},
        608,
        "608 classes of ImageNet, split by category (Ren et al., 2018): a folder a class",
        "image-net.org: research and education",
    ),
    DataInfo(
        "imagenet2012",
        "tfds",
        {"train": 1281167, "validation": 50000},
        {"image": _image(None, None, 3), "label": _LABEL},
        1000,
        "tfds imagenet2012",
        "image-net.org: research and education",
    ),
]

CATALOG = {info.name: info for info in _ALL}

# Made from folders DIR/<split>/<class>/*.jpg; every source has encoded the images anew, so that
# there are no checksums, and examples are counted instead.
FOLDERS = ("mini_imagenet", "tiered_imagenet")

# Data sets with a builder here, from original files; the others are tfds's own.
OWN = frozenset(
    info.name
    for info in _ALL
    if info.kind == "tfds"
    and info.name not in ("mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet2012", *FOLDERS)
)


def describe(name: str) -> DataInfo:
    """The description of a data set.

    Raises:
      ValueError: an unknown name, with those there are.
    """
    if name not in CATALOG:
        raise ValueError(f"data set {name!r}: known are {', '.join(sorted(CATALOG))}")
    return CATALOG[name]
