"""Changes of a batch: seeded, image and labels together, as strong as the modality bears."""

from __future__ import annotations

import pytest
import torch

from ml_core.training.augmentation import PRESETS, Preset, augment


def boxes(*spatial: int, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """One box off the middle in each of six images, bright where its label is 1."""
    labels = torch.zeros(6, *spatial, dtype=torch.long)
    labels[(slice(None), *(slice(length // 4, length * 5 // 8) for length in spatial))] = 1
    return (labels.unsqueeze(1).float() * 4 - 2).repeat(1, channels, *[1] * len(spatial)), labels


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


GEOMETRY = Preset(warp_share=1.0, rotation=180, scale=0.2, elastic=2)


@pytest.mark.parametrize("anisotropic", [False, True])
@pytest.mark.parametrize("shape", [(32, 48), (16, 32, 32), (12, 20, 24)])
def test_geometry_keeps_labels_on_their_pixels(shape: tuple[int, ...], anisotropic: bool) -> None:
    images, labels = boxes(*shape)
    changed, moved = augment(images, labels, GEOMETRY, seeded(), anisotropic=anisotropic)
    assert changed.shape == images.shape
    assert set(moved.unique().tolist()) == {0, 1}
    assert ((changed[:, 0] > 0) == (moved == 1)).float().mean() > 0.97
    assert (moved != labels).any(dim=tuple(range(1, moved.ndim))).all()


def test_slices_far_apart_stay_in_their_place() -> None:
    images, labels = boxes(16, 32, 32)
    strong = Preset(flip=False, warp_share=1.0, rotation=180, scale=0.3, elastic=2)
    _, moved = augment(images, labels, strong, seeded(), anisotropic=True)
    held = (labels.sum((2, 3)) > 0) == (moved.sum((2, 3)) > 0)
    assert held.all()
    _, tilted = augment(images, labels, strong, seeded())
    assert ((labels.sum((2, 3)) > 0) != (tilted.sum((2, 3)) > 0)).any()


def test_without_rotation_and_scale_a_warp_changes_nothing() -> None:
    """The places that the image is read at are pixels' centres, also where it is not square."""
    images, labels = torch.randn(2, 1, 40, 56), torch.randint(3, (2, 40, 56))
    changed, moved = augment(images, labels, Preset(flip=False, warp_share=1.0), seeded())
    assert torch.allclose(changed, images, atol=1e-3)
    assert torch.equal(moved, labels)


def test_a_turn_is_a_turn_in_pixels_where_the_image_is_not_square() -> None:
    images, labels = boxes(32, 96)
    labels[:] = 0
    labels[:, 12:20, 44:52] = 1
    _, moved = augment(images, labels, Preset(warp_share=1.0, rotation=180), seeded())
    for item in moved[:, :, 32:64]:  # further out lie the reflections
        assert 52 <= int(item.sum()) <= 76  # of 64: nothing is stretched


@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_same_seed_does_the_same_and_the_arguments_stay(preset: str) -> None:
    images, labels = boxes(32, 32, channels=3)
    before = images.clone(), labels.clone()
    first = augment(images, labels, PRESETS[preset], seeded(), modality="colour")
    second = augment(images, labels, PRESETS[preset], seeded(), modality="colour")
    other = augment(images, labels, PRESETS[preset], seeded(4), modality="colour")
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[0], other[0]) == (preset == "none")
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def test_intensities_change_as_the_modality_bears() -> None:
    images, labels = boxes(32, 32, channels=3)
    plain = Preset(brightness=0.4, contrast=0.4, tint=0.3, gamma=0.3, gamma_share=1.0)

    def change(modality: str) -> torch.Tensor:
        return augment(images, labels, plain, seeded(), modality=modality)[0].mean((2, 3)) - images.mean((2, 3))

    assert change("CT").abs().mean() < 0.5 * change("MR").abs().mean()
    assert change("MR").std(1).max() < 1e-5
    assert change("colour").std(1).min() > 1e-3


def test_softening_takes_detail_away_and_keeps_the_mean() -> None:
    images, labels = torch.randn(4, 1, 64, 64), torch.zeros(4, 64, 64, dtype=torch.long)
    soft, _ = augment(images, labels, Preset(flip=True, soften=3.0, soften_share=1.0), seeded())
    assert soft.std() < 0.8 * images.std()
    assert float(soft.mean()) == pytest.approx(float(images.mean()), abs=0.02)


def test_intensity_changes_no_place() -> None:
    images, labels = boxes(8, 8, 8)
    changed, moved = augment(images, labels, PRESETS["intensity"], seeded())
    assert torch.equal(moved, labels)
    assert not torch.equal(changed, images)
    inside = labels.unsqueeze(1) == 1
    for item, box in zip(changed, inside, strict=True):
        assert float(item[box].min()) > float(item[~box].max())


@pytest.mark.parametrize("shape", [(32, 48), (8, 16, 16)])
def test_a_batch_stays_on_its_device(shape: tuple[int, ...]) -> None:
    """On "meta", which knows shapes and devices only: mixing it with the CPU's tensors would fail as it would on a GPU."""
    images, labels = boxes(*shape, channels=3)
    changed, moved = augment(images.to("meta"), labels.to("meta"), PRESETS["strong"], seeded(), modality="colour")
    assert (changed.device.type, changed.shape, changed.dtype) == ("meta", images.shape, images.dtype)
    assert (moved.device.type, moved.shape, moved.dtype) == ("meta", labels.shape, labels.dtype)
