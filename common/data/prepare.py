"""Prepares data sets as array_record copies that tfds reads without TensorFlow.

    python -m reprise.common.data.prepare NAME [--from=DIR] [--data_dir=DIR]
    python -m reprise.common.data.prepare --list

Without --from a set of tfds's own is downloaded by tfds. With it, `mnist` and `fashion_mnist` are
made from the four official archives in DIR, and the sets that tfds lacks from their original files;
`mini_imagenet` and `tiered_imagenet` from images DIR/<split>/<class>/*.jpg.
"""

import argparse
import gzip
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from reprise.common.data import originals
from reprise.common.data.catalog import CATALOG, FOLDERS, OWN, DataInfo, describe
from reprise.common.data.errors import DataError
from reprise.common.data.sources import available, default_data_dir

IDX_SETS = ("mnist", "fashion_mnist")


def prepare(
    name: str, from_dir: str | Path | None = None, data_dir: str | Path | None = None
) -> Path:
    """Prepares one data set and returns the folder of the copy.

    Raises:
      DataError: unknown or bundled name, no --from where it is needed, or a file that is missing,
        truncated, of a wrong checksum or shape; the message says which and what to do.
    """
    info = describe(name)
    here, where = available(name, data_dir)
    if here:
        return Path(where)
    root = Path(data_dir).expanduser() if data_dir else default_data_dir()
    if name in OWN:
        if from_dir is None:
            raise DataError(
                f"{name} is not served by tfds: get its original files (folder {info.source}) and "
                f"call: python -m reprise.common.data.prepare {name} --from=DIR"
            )
        folder_name, reader = originals.READERS[name]
        folder = originals.Folder(Path(from_dir), originals.checksums(folder_name))
        return write_copy(info, reader(folder), root)
    if name in FOLDERS:
        if from_dir is None:
            raise DataError(
                f"{name} is not served by tfds: get its images, {info.source}, as "
                f"DIR/{{{','.join(info.splits)}}}/<class>/*.jpg and call: "
                f"python -m reprise.common.data.prepare {name} --from=DIR"
            )
        size = int(info.features["image"][0][0])
        return write_copy(info, originals.class_folders(Path(from_dir), info.splits, size), root)
    if from_dir is not None:
        if name not in IDX_SETS:
            allowed = ", ".join(sorted({*OWN, *IDX_SETS, *FOLDERS}))
            raise DataError(f"{name}: --from works for {allowed}")
        return _prepare_idx(name, Path(from_dir), root)
    return _download(name, root)


def _feature(shape: tuple[Any, ...], dtype: str) -> Any:
    import tensorflow_datasets as tfds

    kind = np.dtype(dtype)
    if not shape:
        return tfds.features.Scalar(dtype=np.int64)
    # zlib needs no image library, and is fast enough to decode.
    encoding = tfds.features.Encoding.ZLIB
    return tfds.features.Tensor(shape=shape, dtype=kind, encoding=encoding)


def write_copy(info: DataInfo, pairs: Any, root: Path) -> Path:
    """Writes (split, example) pairs as the tfds copy `root/<name>/1.0.0` in array_record.

    An example may be a function that makes it, called when it is written.
    """
    import tensorflow_datasets as tfds

    splits: dict[str, list[Any]] = {}
    for split, example in pairs:
        splits.setdefault(split, []).append(example)
    missing = sorted(set(info.splits) - set(splits))
    if missing:
        raise DataError(f"{info.name}: the original files hold nothing for {', '.join(missing)}")
    for split, examples in splits.items():
        expected = info.splits[split]
        if expected is not None:
            originals.expect(f"{info.name}, split {split}: examples", len(examples), expected)

    base: Any = tfds.core.GeneratorBasedBuilder

    class Builder(base, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")
        name = info.name

        def _info(self) -> Any:
            features = {key: _feature(*value) for key, value in info.features.items()}
            # The documented order of the examples is part of the data set.
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {
                split: ((i, e() if callable(e) else e) for i, e in enumerate(examples))
                for split, examples in splits.items()
            }

        def _generate_examples(self) -> Any:
            raise NotImplementedError

    builder = Builder(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(compute_stats=_no_stats())
    )
    return Path(builder.data_dir)


def _no_stats() -> Any:
    import tensorflow_datasets as tfds

    return tfds.download.ComputeStatsMode.SKIP


def _prepare_idx(name: str, source: Path, root: Path) -> Path:
    """mnist and fashion_mnist by tfds's own builder, without the TensorFlow it opens files with."""
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.image_classification import mnist as builders

    folder = originals.Folder(source, originals.checksums(name))
    extracted = root / "downloads" / "extracted" / name
    extracted.mkdir(parents=True, exist_ok=True)
    for file in folder.names(".gz"):
        (extracted / f"GZIP.{file}").write_bytes(gzip.decompress(folder.read(file)))

    def png(pixels: np.ndarray) -> io.BytesIO:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        out.seek(0)
        return out

    def images(path: str, count: int) -> list[io.BytesIO]:
        raw = np.frombuffer(Path(path).read_bytes(), np.uint8, 784 * count, 16)
        return [png(pixels) for pixels in raw.reshape(count, 28, 28)]

    def labels(path: str, count: int) -> np.ndarray:
        return np.frombuffer(Path(path).read_bytes(), np.uint8, count, 8).astype(np.int64)

    before = builders._extract_mnist_images, builders._extract_mnist_labels
    builders._extract_mnist_images, builders._extract_mnist_labels = images, labels
    try:
        builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
        config = tfds.download.DownloadConfig(
            manual_dir=str(source.resolve()), extract_dir=str(extracted)
        )
        builder.download_and_prepare(download_dir=str(root / "downloads"), download_config=config)
    finally:
        builders._extract_mnist_images, builders._extract_mnist_labels = before
    return Path(builder.data_dir)


def _download(name: str, root: Path) -> Path:
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
    try:
        builder.download_and_prepare()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        hint = ", or from local archives with --from=DIR" if name in IDX_SETS else ""
        raise DataError(
            f"{name}: tfds could not prepare it in {root}: {reason}. Check the network{hint}; sets "
            "that tfds encodes itself need `pip install tensorflow-cpu` once, for preparing only"
        ) from error
    return Path(builder.data_dir)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", help="see --list")
    parser.add_argument("--from", dest="from_dir", help="folder of original files or archives")
    parser.add_argument("--data_dir", help=f"where copies go (default: {default_data_dir()})")
    parser.add_argument("--list", action="store_true", help="show the data sets and which are here")
    arguments = parser.parse_args(argv)
    if arguments.list or arguments.name is None:
        for name, info in CATALOG.items():
            here, where = available(name, arguments.data_dir)
            print(f"{name:24} {'here:' if here else 'missing:':9} {where}   [{info.licence}]")
        return
    try:
        print(prepare(arguments.name, arguments.from_dir, arguments.data_dir))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
