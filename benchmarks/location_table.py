"""Training a 256 × 256 location table by touched rows, against dense gradients, moments and average.

A text encoder of CLIP's width learns to tell apart what its location tokens say; both versions start
equal and see the same tokens.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from models.generator.token_table import RowAverage, synchronized_gradient

GOAL = 2.0
ROWS = 49_408 + 256 * 256 + 2
WIDTH = 768
BATCH, TOKENS = 8, 77
DECAY = 0.999
TOLERANCE = 0.03
"""Dense Adam also moves rows that are not touched, by what is left of their momentum."""

Step = Callable[[Tensor], float]


def new_model() -> tuple[CLIPTextModel, nn.Linear]:
    """A text encoder of one layer and a linear reader of positions; always the same weights."""
    torch.manual_seed(0)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1
        )
    )
    return encoder, nn.Linear(WIDTH, 2)


def loss_of(encoder: CLIPTextModel, reader: nn.Linear, ids: Tensor) -> Tensor:
    """Squared error of the grid position that is read from each location token."""
    cells = (ids - 49_408) % (256 * 256)
    places = torch.stack([cells % 256, cells // 256], dim=-1) / 255
    return (reader(encoder(ids).last_hidden_state) - places).square().mean()


def dense_steps() -> tuple[Step, Callable[[], int]]:
    """Adam and the average over every row."""
    encoder, reader = new_model()
    table = encoder.get_input_embeddings().weight
    rest = [p for p in (*encoder.parameters(), *reader.parameters()) if p is not table]
    optimizer = torch.optim.Adam([*rest, table], lr=1e-3, fused=True)
    average = EMAModel([table], decay=DECAY, foreach=True)

    def step(ids: Tensor) -> float:
        loss = loss_of(encoder, reader, ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.step([table])
        return float(loss.detach())

    return step, lambda: table.grad.nbytes


def sparse_steps() -> tuple[Step, Callable[[], int]]:
    """Adam and the average over touched rows."""
    encoder, reader = new_model()
    embedding = encoder.get_input_embeddings()
    embedding.sparse, table = True, embedding.weight
    rest = [p for p in (*encoder.parameters(), *reader.parameters()) if p is not table]
    optimizer = torch.optim.Adam(rest, lr=1e-3, fused=True)
    rows_optimizer = torch.optim.SparseAdam([table], lr=1e-3)
    average, size = RowAverage(table), [0]

    def step(ids: Tensor) -> float:
        loss = loss_of(encoder, reader, ids)
        optimizer.zero_grad()
        rows_optimizer.zero_grad()
        loss.backward()
        table.grad = synchronized_gradient(table.grad, lambda part: part, 1)
        rows, size[0] = table.grad.indices()[0], table.grad.values().nbytes
        average.catch_up(rows)
        optimizer.step()
        rows_optimizer.step()
        average.step(rows, DECAY)
        return float(loss.detach())

    return step, lambda: size[0]


def main() -> int:
    """Print times and memory; 1 below the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    num_steps = parser.parse_args().steps
    generator = torch.Generator().manual_seed(0)
    batches = torch.randint(49_408, ROWS - 2, (num_steps, BATCH, TOKENS), generator=generator)
    versions = {"dense": dense_steps(), "touched rows": sparse_steps()}
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    losses: dict[str, list[float]] = {name: [] for name in versions}
    for ids in batches:
        for name, (step, _) in versions.items():
            started = time.perf_counter()
            losses[name].append(step(ids))
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values[2:]) for name, values in seconds.items()}
    sizes = {name: gradient() for name, (_, gradient) in versions.items()}
    for name in versions:
        print(
            f"{name}: {medians[name] * 1e3:.0f} ms a step, gradient {sizes[name] / 1e6:.2f} MB, last "
            f"loss {losses[name][-1]:.5f}"
        )
    worst = max(abs(a / b - 1) for a, b in zip(*losses.values(), strict=True))
    ratio, equal = medians["dense"] / medians["touched rows"], worst < TOLERANCE
    print(
        f"location table: step {ratio:.1f}× as fast; goal {GOAL}×; gradient memory "
        f"{sizes['dense'] / sizes['touched rows']:.0f}× less; loss curves "
        f"{'equal' if equal else 'DIFFERENT'} (at most {worst:.2%} apart)"
    )
    return 0 if ratio >= GOAL and equal else 1


if __name__ == "__main__":
    sys.exit(main())
