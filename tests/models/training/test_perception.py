import torch

from models.training.perception import (
    InstanceHead,
    SemanticHead,
    captured_features,
    up_block_channels,
)


def test_features_are_the_up_blocks_outputs_and_hooks_are_gone_after(new_generator):
    unet = new_generator("tokens").model.unet
    latents, states = torch.randn(2, 12, 16, 16), torch.randn(2, 5, 32)
    with captured_features(unet) as features:
        unet(latents, 3, states)
    assert [item.shape[1] for item in features] == up_block_channels(unet)
    assert features[-1].shape[2:] == (16, 16)
    unet(latents, 3, states)
    assert len(features) == 2


def test_a_box_is_queried_by_its_own_tokens():
    head = InstanceHead([8, 4], text_channels=16)
    features = [torch.randn(1, 8, 4, 4), torch.randn(1, 4, 8, 8)]
    states = torch.randn(1, 6, 16)
    weights = torch.zeros(1, 2, 6)
    weights[0, 0, 1], weights[0, 1, 4] = 1, 1
    logits = head(features, states, weights, (8, 8))
    assert logits.shape == (1, 2, 8, 8)
    states[0, 4] += 1
    changed = head(features, states, weights, (8, 8))
    torch.testing.assert_close(changed[:, 0], logits[:, 0])
    assert not torch.allclose(changed[:, 1], logits[:, 1])


def test_it_learns_masks_from_features():
    torch.manual_seed(0)
    head = InstanceHead([4], text_channels=8, hidden_channels=16)
    target = torch.zeros(1, 1, 8, 8)
    target[..., 2:5, 3:7] = 1
    features = [torch.cat([target, 1 - target, target, target], dim=1)]
    states, weights = torch.randn(1, 3, 8), torch.tensor([[[0.0, 1.0, 0.0]]])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            head(features, states, weights, (8, 8)), target
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((head(features, states, weights, (8, 8)) > 0) == (target > 0.5)).all()


def test_semantic_targets_are_shares_of_each_cell():
    masks = torch.zeros(1, 3, 2, 2)
    masks[0, 0, 0, 0], masks[0, 1, 0, 0], masks[0, 1, 1, 1] = 1.0, 0.5, 0.25
    labels = torch.tensor([[2, 2, -1]])
    head = SemanticHead([4], num_categories=4)
    target, valid = head.targets(masks, labels, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(target.sum(dim=1), torch.ones(1, 2, 2))
    assert target[0, 2].tolist() == [[1.0, 0.0], [0.0, 0.25]]
    assert target[0, 4].tolist() == [[0.0, 1.0], [1.0, 0.75]]
    assert valid.tolist() == [[False, False, True, False, True]]


def test_the_semantic_head_learns_classes_from_features():
    torch.manual_seed(0)
    head = SemanticHead([2], num_categories=1, hidden_channels=8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 3:7] = 1
    labels, in_prompt = torch.tensor([[0]]), torch.tensor([[True]])
    target, valid = head.targets(mask, labels, in_prompt)
    features = [torch.cat([mask, 1 - mask], dim=1)]
    unused = torch.zeros(1, 3, 8), torch.zeros(1, 1, 3)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(60):
        masks, dice = head.losses(head(features, *unused, (8, 8)), target, valid)
        optimizer.zero_grad()
        (masks + dice).sum().backward()
        optimizer.step()
    assert (head.predicted(head(features, *unused, (8, 8)))[:, :1] == mask.bool()).all()
