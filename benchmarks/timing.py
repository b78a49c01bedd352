"""Timing contestants side by side, and the verdict on the last line."""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any


def scale_option(description: str | None) -> float:
    """Read `--scale` from the command line: 1 is COCO's size."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scale", type=float, default=1.0, help="share of COCO's size")
    return float(parser.parse_args().scale)


def best_seconds(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Run the contestants in turn, several rounds; the shortest time of each, in seconds.

    Each runs twice in its turn: the first time it pays for the memory that the one before gave back.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            for _ in range(2):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        print(f"{name:>28}  " + "  ".join(f"{value:8.3f}" for value in seconds) + "  s")
    return {name: min(seconds) for name, seconds in times.items()}


def verdict(title: str, ratios: Mapping[str, tuple[float, float]], equality: str) -> int:
    """Print the last line; 0 if every (ratio, goal) holds, else 1."""
    reached = all(ratio >= goal for ratio, goal in ratios.values())
    parts = ", ".join(f"{r:.1f}x {name} (goal {goal:g}x)" for name, (r, goal) in ratios.items())
    print(f"{'PASS' if reached else 'FAIL'} {title}: {parts}; {equality}")
    return 0 if reached else 1
