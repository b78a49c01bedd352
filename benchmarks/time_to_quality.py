"""Minutes of training until the demo's generated images meet their boxes as real ones do.

`python benchmarks/time_to_quality.py [--steps 950 1900 3800] [--seeds 0 1 2] [--goal 0.9]`. Generators are
trained whole for each number of steps, on which the learning rate's schedule depends; the demo's independent
scorer gives AP75. What is in the store comes with the time that it took when it was made: run this where
nothing else runs.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from data.artifacts.digests import DigestMemory
from data.artifacts.store import ArtifactStore, default_root
from data.progress import silent
from flows.run_config import build_run
from flows.run_graph import run_graph
from tasks.execution.graph import Graph, Step
from tasks.execution.workshop import Workshop

GUIDANCE = 2.5
"""With more than the demo's edges are sharper."""


def needed(graph: Graph, last: Step) -> list[Step]:
    """A step and those that it needs, each once and after its inputs."""
    wanted = {last.identity.reference}
    for step in reversed(list(graph)):
        if step.identity.reference in wanted:
            wanted |= {source.identity.reference for source in step.inputs.values()}
    return [step for step in graph if step.identity.reference in wanted]


def measured(store: ArtifactStore, digests: DigestMemory, steps: int, seed: int) -> np.ndarray:
    """Minutes that a generator was trained for, AP75 of its images and of the real ones."""
    graph = run_graph(
        build_run(
            "demo",
            {
                "train_generator": {"num_steps": steps, "seed": seed},
                "synthesize": {"sampling": {"guidance_scale": GUIDANCE}},
            },
        ),
        digests,
    )
    workshop, last = Workshop(store, graph), graph.find("measure")
    steps_needed = needed(graph, last)
    workshop.prepare(steps_needed)
    made = {step.identity.reference: workshop.obtain(step, silent)[0] for step in steps_needed}
    results = made[last.identity.reference].summary["results"]
    minutes = made[graph.find("train generator").identity.reference].seconds / 60
    return np.array([minutes, results["score_ap75_origin"], results["score_ap75_real"]])


def minutes_to(goal: float, minutes: Sequence[float], shares: Sequence[float]) -> float:
    """When a share is reached, between lengths by the logarithm of the minutes; infinity if it is not."""
    for (early, low), (late, high) in pairwise(zip(minutes, shares, strict=True)):
        if low < goal <= high:
            return float(np.exp(np.interp(goal, [low, high], np.log([early, late]))))
    return minutes[0] if shares[0] >= goal else float("inf")


def main() -> int:
    """Print the table; 1 if a seed does not reach the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[950, 1900, 3800])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--goal", type=float, default=0.9, help="share of the real images' AP75")
    given = parser.parse_args()
    store, reached = ArtifactStore(default_root()), []
    store.create_root()
    with DigestMemory(store.root) as digests:
        for seed in given.seeds:
            minutes, shares = [], []
            for steps in sorted(given.steps):
                taken, origin, real = measured(store, digests, steps, seed)
                print(
                    f"seed {seed}, {steps} steps: {taken:.1f} min, AP75 {origin:.3f} of {real:.3f}",
                    flush=True,
                )
                minutes.append(float(taken))
                shares.append(float(origin / real))
            reached.append(minutes_to(given.goal, minutes, shares))
    listed = ", ".join(f"{value:.1f}" for value in reached)
    print(f"minutes until AP75 is {given.goal:g} of the real images', by seed: {listed}")
    return int(float("inf") in reached)


if __name__ == "__main__":
    sys.exit(main())
