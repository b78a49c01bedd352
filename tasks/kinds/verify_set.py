"""Kind `verify-set`: what a detector's findings leave of the labels of a synthetic set."""

import msgspec
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.attributes.options import VerificationOptions
from data.attributes.verification import (
    unasked_counts,
    verification_counts,
    verified_annotations,
    verify,
)
from data.coco.files import write_coco
from data.coco.image_sets import SyntheticSet
from data.errors import InvalidConfig
from data.vocabulary.tables import write_table
from tasks.execution.context import StepContext, Summary
from tasks.pages.cards import markdown_table, write_card
from tasks.pages.detections import DETECTIONS_NAME

_JUDGES = {
    "scorer": "Judged by the run's independent detector.",
    "detector": "**Judged by the detector that gave the attributes: it is not independent, and what it does "
    "not find is what it calls hard.**",
}


def run(context: StepContext[VerificationOptions]) -> Summary:
    """Write labels and provenance of the images that stay; the image files stay in the set.

    Raises:
        InvalidConfig: no image stays.
    """
    options, drawn = context.options, SyntheticSet(context.inputs["set"])
    document = msgspec.json.decode(drawn.instances.read_bytes())
    images, annotations = document["images"], document["annotations"]
    names = {item["id"]: item["name"] for item in document["categories"]}
    found = pq.read_table(context.inputs["detections"] / DETECTIONS_NAME)
    result = verify(annotations, found, options)
    kept_ids = {item["id"] for item in images}
    if options.action == "drop-image":
        pairs = zip(annotations, result.kept, strict=True)
        kept_ids -= {item["image_id"] for item, kept in pairs if not kept}
    if not kept_ids:
        raise InvalidConfig(
            f"retrain.verification leaves none of the {len(images)} images of the set: in each an object is "
            "not found. Take another action than drop-image, or lower its thresholds"
        )
    verified = SyntheticSet(drawn.folder, context.out)
    sizes = {item["id"]: (item["width"], item["height"]) for item in images}
    write_coco(
        verified.instances,
        [item for item in images if item["id"] in kept_ids],
        verified_annotations(annotations, result, sizes),
        names,
    )
    stays = pc.field("image_id").isin(list(kept_ids))
    write_table(drawn.provenance.filter(stays), verified.provenance_file)
    unasked = unasked_counts(result, names)
    counts = {
        "images": len(images),
        "images kept": len(kept_ids),
        "objects": len(annotations),
        "found": int(result.found.sum()),
        "kept": int(result.kept.sum()),
        "moved": int(result.moved.sum()),
        "found unasked": sum(unasked.values()),
    }
    tables = verification_counts(annotations, result, names)
    write_card(
        context.out,
        f"Verified synthetic data set: {options.action}",
        _JUDGES[options.by],
        markdown_table([counts]),
        *(f"## By {title}\n\n{markdown_table(rows)}" for title, rows in tables.items()),
        "## Found, and nobody asked for it",
        markdown_table([{"class": name, "objects": count} for name, count in unasked.items()]),
    )
    return {"counts": counts, "by": tables, "unasked": unasked}
