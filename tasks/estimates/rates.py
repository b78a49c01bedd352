"""What pieces of work take: measured on 2 cores in the demo, but where it says otherwise."""

PROCESS_BYTES = 700_000_000
"""Memory of a step's process that has loaded the models' libraries; in the demo 0.70 to 0.80 GB."""

LIGHT_PROCESS_BYTES = 300_000_000
"""Memory of one that has not; likewise 0.21 to 0.34 GB."""

START_SECONDS = 1.0
"""Of a step's process; the smallest steps of the demo take 1.0 s."""

READ_SECONDS = 0.0012
"""To open and convert a small image, without its pixels: features of 3,500 Scenes."""

PIXEL_SECONDS = 2e-8
"""To decode, resize and convert a pixel: an assumption, of Pillow's JPEG decoder and its bicubic filter."""

FIND_SECONDS = 0.0025
"""To choose an image's boxes from a detector's outputs and to collect them: detections in 3,500 Scenes."""

LOSS_SECONDS = 0.0035
"""To assign an image's boxes to a detector's outputs and back, and to augment it: training on Scenes."""

BATCH_SECONDS = 0.001
"""To assemble what the generator is trained on of an image: prompt, canvas, masks."""

SCENE_PIXEL_SECONDS = 6.6e-6
"""To draw a pixel of Scenes, labels included: 4,000 images of 64 pixels a side in 54 s on 2 cores."""

CHECK_SECONDS = 0.004
"""To look at a user's image at ingest: an assumption."""

TILE_PIXEL_SECONDS = 7e-8
"""To cut a pixel of a tile and compress it: 30 tiles of 864 pixels a side in 1.5 s, of a photograph."""

OBJECT_SECONDS = 1.3e-5
"""To read an object, its mask drawn: 860,001 in 11 s (docs/measured.md, benchmarks/ingest.py)."""

LABEL_SECONDS = 0.0004
"""To match an image's boxes: attributes of 4,000 Scenes in 1.7 s."""

MEASURE_SECONDS = 0.003
"""To measure what a judge finds in an image: 2,344 of them in 7.2 s."""

COMPARE_SECONDS = 0.008
"""To compare an image's detections, resampled: 2 detectors on 500 images in 8.3 s."""

REPORT_SECONDS = 5.0
"""To draw the report's pictures and curves."""

REPORT_BYTES = 1_600_000

BACKWARD_TOO = 3
"""A pass forward and backward takes as much as so many forward."""

OPTIMIZER_BYTES = 60
"""Of memory read and written for a trained parameter in a step: AdamW's moments, clipping, the average."""

OPTIMIZER_KERNELS = 12
"""Operators for a trained tensor in a step, likewise."""

STATE_BYTES = 20
"""In memory for a trained parameter: weight, gradient, two moments, average; float32."""

CHECKPOINT_BYTES = 12
"""In a checkpoint: weight and two moments; the average is `WEIGHT_BYTES` more."""

SAVED_BY_8_BITS = 6
"""Bytes of a trained parameter where its moments have 8 bits in place of 32."""

CHECKPOINTS = 3
"""Kept at once of a training: two, and the one that is written."""

WEIGHT_BYTES = 4
"""Of a parameter in a file."""

SCENE_PNG = 1.0
"""Bytes of a pixel of a Scene in a PNG file: 4 kB for 64 × 64."""

OBJECT_BYTES = 140
"""Of an object in an ingested data set, tables and COCO file: 31,885 of Scenes take 4.3 MB."""

SCENE_OBJECT_BYTES = 520
"""The same with Scenes' own COCO files."""

ATTRIBUTE_BYTES = 20
"""Of an object with its attribute."""

DETECTIONS_BYTES, STRONG_DETECTIONS_BYTES = 1000, 290
"""Of an image's detections: 430 to 2,200 in the demo, by detector; and of those above a threshold."""

TABLES_BYTES = 25_000
"""Of small tables and a card."""

INCEPTION_FLOPS = 2 * 5.7e9
"""InceptionV3 of an image of 299 × 299: torchvision's table of models, 5.71 G multiply-adds."""

FEATURE_BYTES = {"inception": 4 * 2048, "random": 5 * 123}
"""Of an image's features in Parquet."""

CHOSEN_3_TO_8 = {"train": 47_429 / 118_287, "val": 3_097 / 5_000}
"""Share of COCO's images that have 3 to 8 objects, by the papers' counts (docs/method.md)."""
