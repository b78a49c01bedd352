"""Hundreds of damaged files: each ends in tables that account for every record, or is refused."""

import json
import random
from functools import partial

import pyarrow.parquet as pq
import pytest

from data.coco import stream as coco_stream
from data.errors import InvalidDataset
from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig, SplitConfig

NUM_CASES = 20
"""Of each kind of damage and size of chunk, always the same; MORE_CASES, which begin with them, as faults."""

MORE_CASES = 50

OF_ANNOTATIONS = ("annotation ", "box ", "unknown ", "duplicate annotation id")
MENDED = ("(clipped)", "(box kept)", "(mask's taken)", "(box's taken)")


def valid_document():
    polygon = [1, 1, 5, 1, 5.5, 4, 1, 4.25]
    masks = [
        [polygon],
        None,
        [],
        {"size": [8, 9], "counts": [10, 5, 57]},
        {"size": [8, 9], "counts": ":5i1"},
        [polygon, polygon],
    ]
    return {
        "info": {"note": 'tricky: }, { "images": [', "more": [{"a": []}, {}]},
        "images": [
            {"id": i, "file_name": f"ö/{i}.png", "width": 9, "height": 8, "tags": [{}, {"x": "]"}]}
            for i in range(4)
        ],
        "annotations": [
            {
                "id": 10 + i,
                "image_id": i % 4,
                "category_id": 1 + i % 2,
                "bbox": [1, 1.5, 4, 3],
                "area": 12.0,
                "iscrowd": 0,
                "segmentation": mask,
                "note": "},{",
            }
            for i, mask in enumerate(masks)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dög", "supercategory": ""}],
    }


def flip_bytes(draw, text):
    damaged = bytearray(text)
    for _ in range(draw.choice([1, 1, 2, 5])):
        damaged[draw.randrange(len(damaged))] = draw.choice(b'\x00\xff"{}[],:\\0-9eE. nul')
    return bytes(damaged)


def cut(draw, text):
    return text[: draw.randrange(len(text))]


def lose_bytes(draw, text):
    start = draw.randrange(len(text))
    return text[:start] + text[start + draw.choice([1, 1, 3, 30]) :]


def repeat_bytes(draw, text):
    start = draw.randrange(len(text))
    end = start + draw.choice([1, 5, 60, 400])
    return text[:end] + text[start:end] + text[end:]


def holders(value):
    """Every dict and list in a document, the document first."""
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from holders(item)


VALUES = [
    None, True, -1, 0, 2**31, 2**63, 2**64, 10**400, 1.5, 1e308, -1e308, float("nan"), float("inf"),
    12.0, "", "12", "\ud800", "../../x", "\0", "a" * 5000, [], {}, [[]], [[1, 2]], [None], [{}],
    {"size": [8, 9], "counts": "0" * 50}, {"size": [8, 9], "counts": "oooo"},
    {"size": [8, 9], "counts": [-5, 77]}, [[1e9, 1, 2, 2, 3, 3]], {"counts": []},
]  # fmt: skip


def swap_value(draw, text):
    document = json.loads(text)
    for _ in range(draw.choice([1, 1, 1, 3])):
        holder = draw.choice([item for item in holders(document) if item])
        key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
        holder[key] = draw.choice(VALUES)
    return json.dumps(document).encode()


def delete_key(draw, text):
    document = json.loads(text)
    holder = draw.choice([item for item in holders(document) if item])
    del holder[draw.choice(list(holder)) if isinstance(holder, dict) else 0]
    return json.dumps(document, ensure_ascii=False).encode()


def shuffle_keys(draw, text):
    def shuffled(value):
        if isinstance(value, dict):
            names = draw.sample(list(value), len(value))
            return {name: shuffled(value[name]) for name in names}
        return list(map(shuffled, value)) if isinstance(value, list) else value

    return json.dumps(shuffled(json.loads(text)), indent=draw.choice([None, 0, 2])).encode()


MUTATIONS = (
    flip_bytes, cut, lose_bytes, repeat_bytes, swap_value, delete_key, shuffle_keys,
)  # fmt: skip


def python_reads(text):
    """The document as Python's own reader sees it, None where it sees none."""
    try:
        return json.loads(text.decode("utf-8", "surrogateescape").removeprefix("\ufeff"))
    except ValueError:
        return None


def num_dropped(folder):
    return sum(
        row["record"].startswith("train/")
        for row in pq.read_table(folder / "refused.parquet").to_pylist()
        if row["reason"].startswith(OF_ANNOTATIONS) and not row["reason"].endswith(MENDED)
    )


@pytest.mark.parametrize("mutate", MUTATIONS)
@pytest.mark.parametrize("chunk_bytes", [64, 1 << 21])
@pytest.mark.parametrize(
    "num_cases", [NUM_CASES, pytest.param(MORE_CASES, marks=pytest.mark.faults)]
)
def test_a_damaged_file_is_accounted_for_or_refused(
    tmp_path, monkeypatch, mutate, chunk_bytes, num_cases
):
    monkeypatch.setattr(coco_stream, "CHUNK_BYTES", chunk_bytes)
    text = json.dumps(valid_document(), ensure_ascii=False).encode()
    (tmp_path / "val.json").write_bytes(text)
    split = partial(SplitConfig, images=tmp_path)
    path = tmp_path / "train.json"
    config = IngestConfig(
        train=split(instances=path), val=split(instances=tmp_path / "val.json"), check_images=False
    )
    draw = random.Random(f"{mutate.__name__} {chunk_bytes}")  # noqa: S311
    num_refused = 0
    for _ in range(num_cases):
        damaged = mutate(draw, text)
        path.write_bytes(damaged)
        try:
            ingest(config, tmp_path / "out")
        except InvalidDataset:
            num_refused += 1
            continue
        document = python_reads(damaged)
        assert document is not None
        filters = [("split", "==", "train")]
        table = pq.read_table(tmp_path / "out/objects.parquet", filters=filters)
        assert table.num_rows + num_dropped(tmp_path / "out") == len(document["annotations"])
    assert (num_refused == num_cases) == (mutate is cut)


def test_the_undamaged_file_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_stream, "CHUNK_BYTES", 64)
    (tmp_path / "a.json").write_text(json.dumps(valid_document()))
    split = SplitConfig(instances=tmp_path / "a.json", images=tmp_path)
    summary = ingest(
        IngestConfig(train=split, val=split, check_images=False), tmp_path / "out", num_workers=2
    )
    assert summary["refused"] == []
    assert summary["counts"]["train"]["things"] == 6
