"""The commands that look at a data set: to show it, and to propose options for it."""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from data.artifacts.files import storage_errors
from data.artifacts.store import ArtifactStore, default_root
from data.attributes.options import ATTRIBUTES_NAME
from data.errors import ArtifactMissing, InvalidConfig, InvalidDataset
from flows.results import newest_artifact
from tasks.execution.machine import available_cores

app = typer.Typer()


@app.command()
def inspect(
    dataset: Annotated[
        Path | None,
        typer.Argument(
            help="COCO instances JSON, or the folder of an ingest artifact; default: the newest."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Image folder, where DATASET is a COCO JSON.")
    ] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(help="attributes.parquet; default: the newest of the ingest artifact."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path(
        "inspect.html"
    ),
) -> None:
    """Show a data set on one HTML page.

    It has counts, images, what is hard, and problems found.
    """
    from data.vocabulary.tables import Dataset  # noqa: PLC0415  # loads what other commands need not
    from tasks.pages.inspection import ingest_file, write_inspection  # noqa: PLC0415  # matplotlib takes a second

    store = ArtifactStore(default_root())
    title = f"Data set {dataset or 'of the newest run'}"
    with tempfile.TemporaryDirectory() as temporary, storage_errors(store.root):
        if dataset is not None and dataset.is_file():
            if images is None:
                raise InvalidConfig(f"{dataset} needs --images, the folder of its image files")
            tables = Path(temporary) / "tables"
            found, warnings = ingest_file(dataset, images, tables, available_cores())
        else:
            found, warnings = Dataset(_ingested(store, dataset)), []
            attributes = attributes or _newest_attributes(store, found.folder)
        page = Path(temporary) / "page.html"
        write_inspection(found, attributes, page, title, warnings)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, output)
        except OSError as error:
            raise InvalidConfig(f"--output {output} cannot be written: {error.strerror}") from error
    typer.echo(output)


@app.command()
def new(
    instances: Annotated[Path, typer.Argument(help="Your COCO instances JSON.")],
    images: Annotated[Path, typer.Option(help="Folder that its file names are relative to.")],
    val: Annotated[
        Path | None,
        typer.Option(help="That of your validation images; none: INSTANCES is split, 4 to 1."),
    ] = None,
    val_images: Annotated[
        Path | None, typer.Option(help="Their folder; default: --images.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The new TOML file.")] = Path("my.toml"),
    group_by: Annotated[
        str | None,
        typer.Option(
            help="Regular expression: images whose names it matches alike, such as frames of a film by "
            "'(.*)_[0-9]+', are not torn apart. Default: one that keeps together images that are nearly the "
            "same, where many are and their names tell; else each image for itself."
        ),
    ] = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Look at a data set of yours, and write options for it.

    They are a TOML file for the preset fine-tune, with reasons.
    """
    from flows.new_config import write_config  # noqa: PLC0415  # loads what runs need not
    from flows.own_data import NewConfig  # noqa: PLC0415  # loads what runs need not

    asked = NewConfig(instances, images, val, val_images, out, group_by, force)
    for note in write_config(asked, available_cores()):
        typer.echo(note, err=True)
    for path in asked.files:
        typer.echo(path)


def _ingested(store: ArtifactStore, folder: Path | None) -> Path:
    if folder is None:
        newest = newest_artifact(store, "ingest", lambda manifest: True)
        if newest is None:
            raise ArtifactMissing(
                f"no ingested data set under {store.root}: give a COCO JSON, or run `detdiffusion run demo`"
            )
        folder = store.root / newest.reference
    if not (folder / "objects.parquet").is_file():
        raise InvalidDataset(f"{folder} is neither a COCO JSON file nor a folder that ingest wrote")
    return folder


def _newest_attributes(store: ArtifactStore, dataset: Path) -> Path | None:
    """Attributes of this very ingest artifact, where there are some."""
    source = f"ingest/{dataset.resolve().name}"
    newest = newest_artifact(
        store, "label-attributes", lambda item: item.inputs["ingest"] == source
    )
    return store.root / newest.reference / ATTRIBUTES_NAME if newest else None
