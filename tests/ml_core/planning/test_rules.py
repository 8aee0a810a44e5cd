"""From a fingerprint to a plan: what is chosen, why, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ml_core.cases.preprocessing import preprocess
from ml_core.dataset.classes import LabelClass
from ml_core.dataset.fingerprint import Fingerprint, FingerprintBuilder
from ml_core.io import Image
from ml_core.io.image import Grid
from ml_core.planning.hyperparameters import specs
from ml_core.planning.plan import Machine, Plan
from ml_core.planning.request import ConfigErrors, TrainingRequest
from ml_core.planning.rules import balanced_weights, make_plan

CLASSES: list[LabelClass] = [
    {"value": 0, "name": "background", "color": "#000"},
    {"value": 1, "name": "thing", "color": "#f00"},
]
LAPTOP, GPU = Machine(cuda=False, cpus=2, bf16=True), Machine(cuda=True, cpus=16, bf16=True)


def fingerprint(shape: tuple[int, ...], spacing: tuple[float, ...] | None = None, thick: int = 6) -> Fingerprint:
    """Of one image with a strip `thick` pixels wide."""
    values = np.zeros(shape, np.uint8)
    values[..., 10 : 10 + thick] = 1
    array = (values * 100.0 + np.random.default_rng(0).normal(0, 5, shape)).astype(np.float32)[None]
    builder = FingerprintBuilder()
    image = Image(array, spacing, None, "nifti", None, None, Grid(shape))
    builder.add(image, values, {0: int((values == 0).sum()), 1: int((values == 1).sum())})
    return builder.result()


def plan(machine: Machine = LAPTOP, like: Fingerprint | None = None, **wanted: Any) -> Plan:
    return make_plan(TrainingRequest.from_json(wanted), like or fingerprint((256, 256)), CLASSES, machine)


def test_the_fingerprint_measures_how_thick_a_class_is() -> None:
    for thick in (6, 40):
        strip = fingerprint((256, 256), thick=thick).classes[1]
        assert strip.thickness == pytest.approx(thick, rel=0.2)
        assert strip.component_pixels == 256 * thick


def test_pictures_get_a_2d_network_and_thin_structures_their_own_pixels() -> None:
    made = plan()
    assert (made.configuration, made.patch, made.in_channels, made.spacing) == ("2d", (256, 256), 1, "")


def test_thick_structures_are_seen_on_a_coarser_grid() -> None:
    made = plan(like=fingerprint((1024, 1024), thick=200))
    assert made.preprocessing.spacing == [4.0, 4.0]
    assert "coarser still shows them" in made.reasons["spacing"]


def test_a_cpu_sees_volumes_coarser_and_says_what_may_be_lost() -> None:
    like = fingerprint((192, 192, 192), (1.0, 1.0, 1.0))
    made = plan(like=like)
    assert made.preprocessing.spacing == [2.0, 2.0, 2.0]
    assert "may be lost" in made.reasons["spacing"]
    assert plan(GPU, like=like).preprocessing.spacing == [1.0, 1.0, 1.0]


def spots(size: int, side: int = 1024, noise: float = 5.0) -> Fingerprint:
    """Of pictures with one large disc and thirty squares of `size` pixels, all of one class."""
    y, x = np.mgrid[:side, :side]
    values = ((y - 300) ** 2 + (x - 300) ** 2 < 150**2).astype(np.uint8)
    for place in range(30):
        row, column = 600 + 60 * (place // 6), 100 + 90 * (place % 6)
        values[row : row + size, column : column + size] = 1
    array = (values * 100.0 + np.random.default_rng(0).normal(0, noise, values.shape)).astype(np.float32)[None]
    builder = FingerprintBuilder()
    counts = {0: int((values == 0).sum()), 1: int((values == 1).sum())}
    builder.add(Image(array, None, None, "raster", None, None, Grid(values.shape)), values, counts)
    return builder.result()


def test_small_parts_of_a_class_keep_the_grid_fine_and_stray_pixels_do_not() -> None:
    assert spots(6).classes[1].thickness > 100  # the large disc has nearly all pixels of the class
    assert plan(like=spots(6)).preprocessing.spacing is None
    stray = plan(like=spots(1)).preprocessing.spacing
    assert stray is not None
    assert stray[0] > 2


def test_a_class_that_comes_late_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_core.dataset.fingerprint.MAX_CASES_OF_STRUCTURE", 1)
    builder, late = FingerprintBuilder(), np.zeros((1024, 1024), np.uint8)
    for thing in (None, slice(50, 54)):
        values = late.copy()
        values[200:800, 200:800] = 1
        if thing:
            values[thing, 100:900] = 2
        counts = {int(v): int((values == v).sum()) for v in np.unique(values)}
        image = Image(values[None].astype(np.float32), None, None, "raster", None, None, Grid(values.shape))
        builder.add(image, values, counts)
    found = builder.result()
    assert found.classes[2].thickness == pytest.approx(4, rel=0.2)
    made = make_plan(TrainingRequest(), found, [*CLASSES, {"value": 2, "name": "thread", "color": "#0f0"}], LAPTOP)
    assert made.preprocessing.spacing is None


def test_classes_that_common_limits_would_cut_off_keep_their_values() -> None:
    """Two kinds of spots, half a per mille each, far brighter than the noise: both would become its brightest value."""
    rng = np.random.default_rng(0)
    values = np.zeros((256, 256), np.uint8)
    values[40:45, 40:46], values[200:205, 100:106] = 1, 2
    pixels = rng.normal(10, 3, values.shape) + np.array([0, 90, 190])[values]
    image = Image(pixels.astype(np.float32)[None], None, None, "raster", None, None, Grid(values.shape))
    builder = FingerprintBuilder()
    builder.add(image, values, {v: int((values == v).sum()) for v in range(3)})
    made = make_plan(
        TrainingRequest(), builder.result(), [*CLASSES, {"value": 2, "name": "b", "color": "#0f0"}], LAPTOP
    )
    assert made.preprocessing.wide
    assert "instead of clipped" in made.reasons["normalisation"]
    seen = preprocess(image, made.preprocessing)[0, 0]
    assert seen[values == 2].min() > 1.5 * seen[values == 1].max() > 10
    assert abs(seen[values == 0].mean()) < 0.1
    assert seen[values == 0].std() == pytest.approx(1, abs=0.1)
    assert not plan().preprocessing.wide


def test_volumes_are_3d_where_they_are_about_as_fine_in_every_direction_else_25d() -> None:
    even = plan(like=fingerprint((64, 96, 96), (1.0, 1.0, 1.0)))
    assert (even.configuration, len(even.patch)) == ("3d", 3)
    flat = plan(like=fingerprint((40, 96, 96), (5.0, 0.8, 0.8)))
    assert (flat.configuration, flat.context, flat.in_channels) == ("2.5d", 1, 3)
    assert "6.2 times" in flat.reasons["configuration"]


def test_a_gpu_is_given_more_to_do() -> None:
    like = fingerprint((2048, 2048))
    small, large = plan(LAPTOP, like), plan(GPU, like)
    assert large.patch_size > small.patch_size
    assert large.encoder != small.encoder


@pytest.mark.parametrize("like", [fingerprint((256, 256)), fingerprint((64, 64, 64), (1.0, 1.0, 1.0))])
def test_every_value_has_its_reason_and_can_be_overridden(like: Fingerprint) -> None:
    made = plan(like=like)
    assert set(specs()) <= set(made.reasons)
    own: dict[str, Any] = {
        "learning_rate": 0.01,
        "foreground_share": 0.9,
        "loss": "focal",
        "weight_average": 0.5,
        "clip_norm": 1.0,
    }
    changed = plan(like=like, **own)
    assert {name: getattr(changed, name) for name in own} == own
    assert all(changed.reasons[name] == "You chose it." for name in own)


def test_the_encoder_alone_chooses_an_architecture_that_has_it() -> None:
    assert plan(encoder="resnet34").architecture == "unet"
    assert plan(encoder="plain-32").architecture == "plain-unet"
    volume = fingerprint((64, 64, 64), (1.0, 1.0, 1.0))
    assert plan(like=volume, architecture="unet").configuration == "2d"


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"configuration": "3d"}, "configuration"),
        ({"architecture": "plain-unet-3d"}, "architecture"),
        ({"patch_depth": 3}, "patch_depth"),
        ({"spacing": "1 1 1"}, "spacing"),
        ({"patch_size": 48, "architecture": "unet"}, "patch_size"),
    ],
)
def test_wishes_that_do_not_fit_pictures_name_the_field(wanted: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        plan(**wanted)
    assert field in caught.value.fields


def test_rare_classes_weigh_more_but_not_wildly() -> None:
    weights = balanced_weights([0.9, 0.09, 0.01, 0.0])
    assert sum(weights) / len(weights) == pytest.approx(1)
    assert weights == sorted(weights)
    assert weights[3] <= 10 * weights[0] * (1 + 1e-9)


def test_a_short_training_turns_pictures_but_no_bodies() -> None:
    body, picture = fingerprint((256, 256)), replace(fingerprint((256, 256)), families={"raster": 1})
    assert plan(like=picture).augmentation == "light"
    assert plan(like=body).augmentation == "intensity"
    assert plan(like=replace(body, modality="CT")).augmentation == "none"
    assert plan(like=fingerprint((64, 96, 96), (1.0, 1.0, 1.0))).augmentation == "intensity"
    for like in (body, picture):
        assert plan(like=like, time_budget_seconds=3600).augmentation == "standard"
        assert plan(GPU, like=like).augmentation == "standard"


@pytest.mark.parametrize(
    ("machine", "wanted", "optimizer"),
    [
        (LAPTOP, {}, "muon"),
        (GPU, {"architecture": "plain-unet"}, "muon"),
        (Machine(cuda=False, cpus=2, bf16=False), {}, "adamw"),
        (LAPTOP, {"epochs": 2}, "adamw"),
        (LAPTOP, {"epochs": 100}, "muon"),
        (LAPTOP, {"time_budget_seconds": 30}, "adamw"),
        (LAPTOP, {"time_budget_seconds": 600}, "muon"),
        (LAPTOP, {"encoder": "resnet34"}, "adamw"),
        (LAPTOP, {"encoder": "resnet34", "optimizer": "muon"}, "muon"),
    ],
)
def test_muon_moves_plain_u_nets_where_bfloat16_is_quick_and_time_is_enough(
    machine: Machine, wanted: dict[str, Any], optimizer: str
) -> None:
    assert plan(machine, **wanted).optimizer == optimizer
