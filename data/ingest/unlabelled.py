"""From folders of images without labels to the table `images`, with an account of what was refused."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from data.artifacts.digests import file_digest
from data.errors import InvalidDataset
from data.ingest.image_checks import ImageContext, printable, unlabelled_rows
from data.ingest.options import UnlabelledConfig
from data.ingest.refusals import Refusals
from data.ingest.table_writer import TableWriter
from data.progress import Progress, silent
from data.scenes.scenes import write_unlabelled_scenes
from data.vocabulary.splits import split_folder
from data.vocabulary.tables import IMAGES, REFUSED
from data.workers import Workers

HELD_OUT = "a validation image"

_BATCH = 256


def ingest_unlabelled(
    config: UnlabelledConfig,
    out: Path,
    num_workers: int = 1,
    on_progress: Progress = silent,
    held_out: Iterable[Path] = (),
) -> dict[str, Any]:
    """Look at every image and write `images.parquet` and `refused.parquet`; Scenes are drawn first.

    An image's id is its place in the order of all file names.

    Args:
        out: exists; for Scenes the images are there too.
        on_progress: told of the images.
        held_out: image files that nothing may learn from; those of the same content are left out.

    Returns:
        The number of images and the refusals by reason.

    Raises:
        InvalidDataset: a folder does not exist, or there is no usable image.
    """
    if not config.folders:
        folder = out / split_folder("unlabelled")
        write_unlabelled_scenes(
            folder,
            config.num_scenes,
            size=config.size,
            seed=config.seed,
            num_workers=num_workers,
            on_progress=on_progress,
        )
        config, on_progress = UnlabelledConfig(folders=(folder,)), silent  # all images are there
    names = config.file_names()
    copies = set(_copies(names, config.root, held_out))
    files = [item for item in enumerate(names, start=1) if item[1] not in copies]
    context = ImageContext("unlabelled", config.root, look=True)
    num_images = 0
    with (
        TableWriter(out / "images.parquet", IMAGES) as images,
        TableWriter(out / "refused.parquet", REFUSED) as refused,
        Workers(context, num_workers) as workers,
    ):
        refusals = Refusals(refused)
        refusals.add_all((HELD_OUT, f"unlabelled/{printable(name)}") for name in sorted(copies))
        batches = [files[start : start + _BATCH] for start in range(0, len(files), _BATCH)]
        done = 0
        for rows in workers.map(unlabelled_rows, batches):
            refusals.add_all(rows.offences)
            images.write(rows.batch)
            num_images += rows.batch.num_rows
            done += rows.num_records
            on_progress(done, len(files), "images")
    if not num_images:
        folders = ", ".join(map(str, config.folders))
        raise InvalidDataset(f"{folders} (ingest.unlabelled): no usable image; {refusals}")
    return {"images": num_images, "refused": refusals.rows()}


def _copies(names: Sequence[str], root: Path, others: Iterable[Path]) -> Iterator[str]:
    """Names of files with the content of one of the others; of a file alone in its size nothing is read."""
    by_size = defaultdict[int, list[Path]](list)
    for path in others:
        with suppress(OSError):  # links to nowhere, which are refused by reason
            by_size[path.stat().st_size].append(path)

    @cache
    def contents(size: int) -> set[str]:
        return {file_digest(path) for path in by_size[size]}

    for name in names:
        with suppress(OSError):
            size = (root / name).stat().st_size
            if size in by_size and file_digest(root / name) in contents(size):
                yield name
