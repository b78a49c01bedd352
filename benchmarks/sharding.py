"""Small images in shards: Ray against processes of our own at equal cores, two workers against one."""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data.artifacts.options import Execution, ShardedOptions
from data.scenes.writing import write_unlabelled_scenes
from models.metrics.features import RandomFeatures, image_features
from tasks.execution.context import StepContext
from tasks.execution.shards import Make, run_shards

RAY_GOAL = 1.1
WORKERS_GOAL = 1.7
_SIZE = 64
_DIFFERENT = 100


def prepare(resolution: int) -> Make[Path]:
    """Load the fixed random network."""
    extractor = RandomFeatures()

    def make(images: Sequence[Path], shard: Path) -> None:
        np.save(shard / "features.npy", image_features(extractor, images, resolution))

    return make


def timed(images: Sequence[Path], executor: str, num_workers: int) -> tuple[float, list[bytes]]:
    """Seconds from the first shard to the last, less the start of workers; and all bytes."""
    times: list[float] = []
    execution = Execution.model_validate({"executor": executor, "num_workers": num_workers})
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        context = StepContext(
            options=ShardedOptions(execution=execution),
            inputs={},
            out=work,
            work=work,
            key="key",
            root=work,
            num_workers=num_workers,
            progress=lambda *report: times.append(time.perf_counter()),
        )
        shards = run_shards(
            context, partial(prepare, _SIZE), images, _SIZE, name=str, unit="images"
        )
        content = [(shard / "features.npy").read_bytes() for shard in shards]
    begun, first, *_, last = times
    print(f"{executor}, workers: {num_workers}: {last - first:.1f} s, after {first - begun:.1f} s")
    return last - first, content


def main() -> int:
    """Print the ratios; 1 where a goal is missed or bytes differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    num_images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        write_unlabelled_scenes(Path(folder), _DIFFERENT)
        different = sorted(Path(folder).rglob("*.png"))
        images = [different[number % _DIFFERENT] for number in range(num_images)]
        one, expected = timed(images, "local", 1)
        results = {name: timed(images, name, 2) for name in ("local", "ray")}
    (two, _), (ray, _) = results["local"], results["ray"]
    equal = all(content == expected for _, content in results.values())
    print(
        f"sharding: Ray takes {ray / two:.2f}× as long (goal {RAY_GOAL}×), two workers are {one / two:.2f}× "
        f"as fast as one (goal {WORKERS_GOAL}×); bytes are {'equal' if equal else 'DIFFERENT'}"
    )
    return 0 if ray <= RAY_GOAL * two and one >= WORKERS_GOAL * two and equal else 1


if __name__ == "__main__":
    sys.exit(main())
