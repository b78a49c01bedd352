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
        average.catch_up(rows)
        table[rows] += torch.randn(len(rows), 3, generator=generator)
        average.step(rows, decay)
        dense = decay * dense + (1 - decay) * table
    torch.testing.assert_close(average.read(), dense, atol=1e-6, rtol=1e-5)


def test_the_average_goes_on_from_its_state():
    table = torch.randn(4, 2)
    average = RowAverage(table)
    rows = torch.tensor([1, 3])
    table[rows] += 1
    restored = RowAverage(table)
    average.step(rows, 0.9)
    restored.load_state_dict(average.state_dict())
    for item in (average, restored):
        item.step(rows, 0.5)
    assert torch.equal(average.read(), restored.read())


def test_the_table_has_its_average_for_a_while():
    table = torch.zeros(2, 2)
    average = RowAverage(table)
    table[1] += 1
    average.step(torch.tensor([1]), 0.75)
    with average.kept_table():
        average.copy_to_table()
        assert table.tolist() == [[0, 0], [0.25, 0.25]]
    assert table.tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("every", "least", "most"), [(1, 0.999, 1.001), (3, 1.1, 1.4), (100, 1.5, 2.8)]
)
def test_rarely_touched_rows_move_less_than_under_dense_adam(every, least, most):
    """What `embedding_rows = "touched"` changes, as docs/method.md says."""
    moved = []
    for sparse in (False, True):
        generator = torch.Generator().manual_seed(0)
        table = torch.nn.Parameter(torch.zeros(64, 32))
        kind = torch.optim.SparseAdam if sparse else torch.optim.Adam
        optimizer = kind([table], lr=1e-3)
        for _ in range(3000):
            rows = (torch.rand(64, generator=generator) < 1 / every).nonzero()[:, 0]
            gradient = torch.zeros(64, 32)
            gradient[rows] = torch.randn(len(rows), 32, generator=generator)
            indices = torch.sparse_coo_tensor(
                rows[None], gradient[rows], table.shape, check_invariants=False
            )
            table.grad = indices if sparse else gradient
            optimizer.step()
        moved.append(float(table.detach().norm(dim=1).mean()))
    assert least < moved[0] / moved[1] < most


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
