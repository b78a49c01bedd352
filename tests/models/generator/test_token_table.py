import pytest
import torch

from models.generator.token_table import RowAverage, synchronized_gradient


@pytest.mark.parametrize("decays", [[0.0, 0.5, 0.9, 0.99, 0.9, 0.7, 0.0, 0.3], [0.999] * 8])
def test_the_average_of_touched_rows_is_that_of_all_rows(decays):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(6, 3, generator=generator)
    average, dense = RowAverage(table), table.clone()
    for step, decay in enumerate(decays):
        rows = torch.randperm(5, generator=generator)[: step % 4]  # the last row is never touched
        average.catch_up(table, rows)
        table[rows] += torch.randn(len(rows), 3, generator=generator)
        average.step(table, rows, decay)
        dense = decay * dense + (1 - decay) * table
    torch.testing.assert_close(average.read(table), dense, atol=1e-6, rtol=1e-5)


def test_the_average_goes_on_from_its_state():
    table = torch.randn(4, 2)
    average, restored = RowAverage(table), RowAverage(torch.zeros(4, 2))
    rows = torch.tensor([1, 3])
    table[rows] += 1
    average.step(table, rows, 0.9)
    restored.load_state_dict(average.state_dict())
    for item in (average, restored):
        item.step(table, rows, 0.5)
    assert torch.equal(average.read(table), restored.read(table))


def test_a_sparse_gradient_is_the_mean_of_the_processes():
    here, there = (torch.nn.Embedding(5, 2, sparse=True) for _ in range(2))
    here(torch.tensor([1, 1, 4])).sum().backward()
    there(torch.tensor([0, 1, 2])).sum().backward()
    others = iter([there.weight.grad._indices()[0], there.weight.grad._values() / 2])
    gradient = synchronized_gradient(
        here.weight.grad, lambda item: torch.cat([item, next(others)]), num_processes=2
    )
    rows = [[0.5, 0.5], [1.5, 1.5], [0.5, 0.5], [0.0, 0.0], [0.5, 0.5]]
    assert gradient.to_dense().tolist() == rows


def test_one_process_keeps_its_gradient():
    table = torch.nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 1, 4])).sum().backward()
    gradient = synchronized_gradient(table.weight.grad, None, num_processes=1)
    assert gradient.to_dense().tolist() == [[0, 0], [2, 2], [0, 0], [0, 0], [1, 1]]
