import json
import tracemalloc

import numpy as np
import pytest

from data.coco import stream as coco_stream
from data.coco.files import CocoAnnotation
from data.coco.records import SpanJob, map_spans, open_index
from data.coco.stream import UnprovenIndex, exact_index, fast_index
from data.errors import InvalidDataset
from data.ingest.id_set import IdSet
from data.workers import Workers


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(coco_stream, "CHUNK_BYTES", 300)


def record(key, **more):
    return {"id": key, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], **more}


def write(path, annotations, **more):
    document = {"info": {}, "images": [], "annotations": annotations, "categories": [], **more}
    path.write_text(json.dumps(document))
    return path


def decode(_, job: SpanJob):
    return [item.id for item in job.decode(CocoAnnotation)[0]]


def read(index):
    return [key for ids in map_spans(index, "annotations", decode, Workers(None)) for key in ids]


@pytest.mark.parametrize("index", [fast_index, exact_index])
def test_both_indices_find_every_record_in_several_spans(tmp_path, index):
    found = index(write(tmp_path / "a.json", [record(i) for i in range(100)]))
    assert len(found.spans["annotations"]) > 10
    assert read(found) == list(range(100))


@pytest.mark.parametrize(
    "trap",
    [
        {"note": "},{" * 200},
        {"parts": [{"a": 1}, {"b": 2}] * 60},
        {"note": '\\", "images": [{}], "' * 20},
        {"note": '"annotations": [' * 30},
        {"note": "]" * 500 + "}"},
        {"note": "é" * 500},
        {"parts": [[[{}], {"x": '"'}]] * 50},
    ],
)
def test_records_that_look_like_boundaries_are_read_whole(tmp_path, trap):
    records = [record(i, **(trap if i % 7 == 3 else {})) for i in range(60)]
    path = write(
        tmp_path / "a.json", records, more={"deep": [records[3], "images", {"images": []}]}
    )
    assert read(open_index(path)) == list(range(60))
    assert read(exact_index(path)) == list(range(60))


def decode_all(path):
    for span in fast_index(path).spans["annotations"]:
        SpanJob(path, span, salvage=False).decode(CocoAnnotation)


@pytest.mark.parametrize("last", [{}, {"note": "},{" * 300}])
def test_a_span_that_does_not_parse_is_never_taken(tmp_path, last):
    records = [record(i, note="},{" * 300) for i in range(9)]
    path = write(tmp_path / "a.json", [*records, *(record(i, **last) for i in range(9, 20))])
    with pytest.raises(UnprovenIndex):
        decode_all(path)
    assert read(open_index(path)) == list(range(20))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('}, {"id": 50', '} {"id": 50'),
        lambda text: text.replace('}, {"id": 50', '},, {"id": 50'),
        lambda text: text.replace('], "categories"', ',], "categories"'),
        lambda text: text.replace('], "categories"', '}, "categories"'),
        lambda text: text[:-1],
        lambda text: text + "}",
        lambda text: text[:-1] + ', "annotations": []}',
    ],
)
def test_broken_grammar_is_refused_wherever_it_stands(tmp_path, change):
    path = write(tmp_path / "a.json", [record(i) for i in range(100)])
    text = change(path.read_text())
    path.write_text(text)
    with pytest.raises(InvalidDataset):
        read(open_index(path))


def test_nan_is_read_as_python_reads_it(tmp_path):
    records = [record(i, area=float("nan") if i == 30 else 1.0) for i in range(60)]
    assert read(open_index(write(tmp_path / "a.json", records))) == list(range(60))


def test_a_byte_order_mark_does_no_harm(tmp_path):
    path = write(tmp_path / "a.json", [record(1)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(open_index(path)) == [1]


def test_other_parts_of_a_file_are_not_kept_as_objects(tmp_path):
    tracks = [{"id": i, "spans": [i, i + 1]} for i in range(100_000)]
    path = write(tmp_path / "a.json", [record(1)], more={"tracks": tracks})
    tracemalloc.start()
    index = open_index(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read(index) == [1]
    assert peak < 3 * path.stat().st_size + 3 * coco_stream.CHUNK_BYTES


def test_nesting_without_end_is_refused(tmp_path):
    path = write(tmp_path / "a.json", [])
    path.write_text(path.read_text()[:-1] + ', "x": ' + "[" * 200_000)
    with pytest.raises(InvalidDataset):
        open_index(path)


def test_an_id_set_equals_a_python_set():
    draw = np.random.default_rng(0)
    seen, known = IdSet(), set()
    for _ in range(50):
        ids = draw.integers(-(2**62), 2**62, 40) // draw.choice([1, 2**56])
        for key, new in zip(ids.tolist(), seen.add(ids).tolist(), strict=True):
            assert new == (key not in known)
            known.add(key)
