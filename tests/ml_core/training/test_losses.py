"""Losses against numbers worked out by hand and by other libraries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (everybody's name for it)

from ml_core.errors import ConfigError
from ml_core.planning.hyperparameters import LOSSES
from ml_core.training.losses import counted_by_masks, counted_by_place, make_loss, near_border


def batch(classes: int = 3, spatial: tuple[int, ...] = (12, 10)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(classes, (2, *spatial), generator=generator)
    return torch.randn(2, classes, *spatial, generator=generator), labels


@pytest.mark.parametrize("spatial", [(12, 10), (4, 6, 5)])
@pytest.mark.parametrize("name", list(LOSSES))
def test_better_logits_make_every_loss_smaller(name: str, spatial: tuple[int, ...]) -> None:
    logits, labels = batch(spatial=spatial)
    logits.requires_grad_()
    loss_of = make_loss(name)
    loss = loss_of(logits, labels)
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert loss_of(logits.detach() - 0.5 * len(labels.flatten()) * logits.grad, labels) < loss
    right = F.one_hot(labels, 3).movedim(-1, 1).float() * 30
    assert loss_of(right, labels) == pytest.approx(0, abs=1e-4)


def test_both_ways_of_counting_agree_also_backward() -> None:
    _, labels = batch(classes=4)
    values = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2))
    slopes, sums = [], []
    for counted in (counted_by_place, counted_by_masks):
        own = values.clone().requires_grad_()
        hit, real = counted(own, labels, 5)  # the last class has no pixel
        (hit**2).sum().backward()
        assert own.grad is not None
        slopes.append(own.grad)
        sums.append(torch.cat([hit.detach(), real]))
    torch.testing.assert_close(sums[1], sums[0])
    torch.testing.assert_close(slopes[1], slopes[0])
    assert sums[0][-1] == sums[0][4] == 0


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
def test_the_terms_are_those_of_other_libraries(weights: list[float] | None) -> None:
    from segmentation_models_pytorch.losses import DiceLoss, TverskyLoss

    logits, labels = batch()
    expected = F.cross_entropy(logits, labels, None if weights is None else torch.tensor(weights))
    assert make_loss("ce", class_weights=weights)(logits, labels) == pytest.approx(float(expected), rel=1e-5)
    dice = float(DiceLoss("multiclass")(logits, labels))
    assert make_loss("dice")(logits, labels) == pytest.approx(dice, rel=1e-5)
    both = make_loss("dice_ce", class_weights=weights)(logits, labels)
    assert both == pytest.approx(float(expected) + dice, rel=1e-5)
    tversky = float(TverskyLoss("multiclass", alpha=0.3, beta=0.7)(logits, labels))
    found = make_loss("tversky", class_weights=weights)(logits, labels)
    assert found == pytest.approx(tversky + float(expected), rel=1e-5)


def test_a_class_that_the_batch_lacks_is_left_out_of_dice() -> None:
    logits, _ = batch()
    labels = torch.zeros(2, 12, 10, dtype=torch.long)
    labels[0, 0, 0] = 1
    two = torch.softmax(logits, 1)
    dice = [2 * two[:, k][labels == k].sum() / (two[:, k].sum() + (labels == k).sum()) for k in (0, 1)]
    assert make_loss("dice")(logits, labels) == pytest.approx(1 - float(sum(dice)) / 2, rel=1e-5)


def test_deep_supervision_halves_from_level_to_level() -> None:
    logits, labels = batch(spatial=(8, 8))
    coarse = torch.randn(2, 3, 4, 4)
    loss_of = make_loss("dice_ce")
    single = loss_of(logits, labels), loss_of(coarse, labels[:, 1::2, 1::2])
    assert loss_of([logits, coarse], labels) == pytest.approx(float(single[0] + single[1] / 2) / 1.5, rel=1e-5)


def test_borders_are_where_another_class_is_near() -> None:
    labels = torch.zeros(1, 1, 9, dtype=torch.long)
    labels[..., 5:] = 2
    assert near_border(labels, 2).tolist() == [[[0, 0, 0, 1, 1, 1, 1, 0, 0]]]
    generator = torch.Generator().manual_seed(0)
    volume = (torch.rand(2, 5, 6, 7, generator=generator) > 0.97).long()
    pooled = [F.max_pool3d(item[:, None].float(), 3, 1, 1)[:, 0] for item in (volume, -volume)]
    assert torch.equal(near_border(volume, 1), (pooled[0] != -pooled[1]).float())


def test_bfloat16_is_summed_exactly() -> None:
    logits, labels = batch(spatial=(64, 64))
    rough = make_loss("dice_ce")(logits.bfloat16(), labels)
    assert rough.dtype == torch.float32
    assert rough == pytest.approx(float(make_loss("dice_ce")(logits.bfloat16().float(), labels)))


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="hinge"):
        make_loss("hinge")
