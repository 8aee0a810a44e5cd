"""Which image belongs to which mask, by the names in an archive."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from ml_core.dataset import pairing
from ml_core.dataset.findings import DatasetRefusedError
from ml_core.dataset.pairing import Pairing, find_pairs
from ml_core.io import stem


def pairs(*names: str) -> dict[str, tuple[str, str]]:
    """name → (first image entry, mask) of a pairing that must be without findings."""
    found = find_pairs(names)
    assert found.issues == []
    return {pair.name: (pair.image[0], pair.mask) for pair in found.pairs}


def codes(found: Pairing) -> list[tuple[str, str]]:
    return [(issue.code, issue.file) for issue in found.issues]


FOLDERS = """images masks|Image LABEL|IMGS annotations|img gt|imagesTr labelsTr|data/images data/segmentations
|upload/My-data/images upload/My-data/groundtruth|images/images images/masks|masks/img masks/mask"""


@pytest.mark.parametrize(("images", "masks"), [line.split() for line in FOLDERS.split("|")])
def test_folders_are_found(images: str, masks: str) -> None:
    assert pairs(f"{images}/a.png", f"{masks}/a.png") == {"a": (f"{images}/a.png", f"{masks}/a.png")}


MISSING = {
    "a.png b/images/c.png": "b/images/",
    "scans/a.png reader/a.png": "reader/, scans/",
    "images/a.png reader/all.json": "images/, reader/",
    "a/b/c/images/a.png a/b/c/masks/a.png": "a/b/c/",
    "one/images/a.png two/masks/a.png": "one/images/, two/masks/",
    "": "no folders",
}


@pytest.mark.parametrize(
    "names",
    ["images/a.png annotations/all.json", "images/a.png labels/a.txt", "train/images/a.png train/labels/a.xml"],
)
def test_outlines_instead_of_masks_are_named(names: str) -> None:
    with pytest.raises(DatasetRefusedError) as caught:
        find_pairs(names.split())
    assert caught.value.code == "outlines"
    assert names.split()[1] in caught.value.reason


def test_an_image_with_several_masks_is_left_out_and_named() -> None:
    several = ["images/a.png", "masks/a_mask.png", "masks/a_mask_1.png"]
    numbered = ["images/c_1.png", "masks/c_1_mask.png", "images/c_2.png", "masks/c_2_mask.png"]
    found = find_pairs([*several, "images/b.png", "masks/b_mask.png", *numbered])
    assert [pair.name for pair in found.pairs] == ["b", "c_1", "c_2"]
    [issue] = found.issues
    assert (issue.code, issue.file) == ("several_masks", "images/a.png")
    assert "masks/a_mask.png, masks/a_mask_1.png" in issue.detail


@pytest.mark.parametrize(("names", "found"), MISSING.items())
def test_missing_folders_are_explained(names: str, found: str) -> None:
    with pytest.raises(DatasetRefusedError) as caught:
        find_pairs(names.split())
    assert caught.value.code == "no_folders"
    assert found in caught.value.reason
    assert "images/case1.png" in caught.value.cure


NAMES = """a.png a.tif a|a.nii.gz a.nii a|a.b.c.nii.gz a.b.c_seg.png a.b.c|A.PNG a_Mask.png A
|ISIC_01.jpg ISIC_01_segmentation.png ISIC_01|case-1.jpg case-1-gt.png case-1
|case_0000.nii.gz case.nii.gz case|case_0000.nii.gz case_seg_labels_0000.nii.gz case
|x_label.png x_label.png x_label|mask.png mask_mask.png mask|slice.IMA slice.png slice|IM0001 IM0001.dcm IM0001
|1.2.840.10008.1 1.2.840.10008.1.png 1.2.840.10008.1|Émile.png émile_GT.png Émile"""


@pytest.mark.parametrize(("image", "mask", "name"), [line.split() for line in NAMES.split("|")])
def test_files_are_paired_by_name(image: str, mask: str, name: str) -> None:
    assert pairs(f"images/{image}", f"masks/{mask}") == {name: (f"images/{image}", f"masks/{mask}")}


def test_order_is_natural_and_does_not_depend_on_the_archive() -> None:
    names = [f"{folder}/frame{number}.png" for folder in ("images", "masks") for number in (10, 9, 100, 1)]
    names += ["images/frame" + "9" * 5000 + ".png", "masks/frame" + "9" * 5000 + ".png"]
    found = find_pairs(names)
    assert [pair.name[:8] for pair in found.pairs] == ["frame1", "frame9", "frame10", "frame100", "frame999"]
    assert find_pairs(reversed(names)) == found


def test_numbered_frames_are_no_channels() -> None:
    names = [f"{folder}/frame_{number:04}.png" for folder in ("images", "masks") for number in range(3)]
    assert list(pairs(*names)) == ["frame_0000", "frame_0001", "frame_0002"]


def test_further_channels_are_refused_and_the_first_is_used() -> None:
    found = find_pairs(["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"])
    assert [(pair.name, pair.image) for pair in found.pairs] == [("a", ("imagesTr/a_0000.nii.gz",))]
    assert codes(found) == [("extra_channel", "imagesTr/a_0001.nii.gz")]


def test_findings_name_the_files() -> None:
    found = find_pairs(
        [
            *("images/good.png", "masks/good.png", "images/lonely.png", "masks/orphan.png"),
            *("images/two.png", "images/two.jpg", "masks/two.png"),
            *("images/same.png", "masks/same.png", "masks/same_seg.png"),
            *("images/photo.heic", "images/readme", "images/notes.txt", "masks/data.csv", "README.md"),
            *("dataset.json", "imagesTs/a.png", "imagesTs/b.png", "LICENSE", "top.png"),
        ]
    )
    assert [pair.name for pair in found.pairs] == ["good", "same"]
    assert codes(found) == [
        ("no_mask", "images/lonely.png"),
        ("unsupported_format", "images/photo.heic"),
        ("duplicate_image", "images/two.jpg"),
        ("duplicate_image", "images/two.png"),
        ("no_image", "masks/orphan.png"),
        ("duplicate_mask", "masks/same_seg.png"),
        ("ignored_folder", "imagesTs"),
        ("ignored_folder", "top of the ZIP"),
    ]
    details = {issue.file: issue.detail for issue in found.issues}
    assert "images/two.png" in details["images/two.jpg"]
    assert "masks/same.png" in details["masks/same_seg.png"]
    assert "2 files" in details["imagesTs"]
    assert [issue.severity for issue in found.issues] == ["error"] * 6 + ["warning"] * 2


def test_mirrored_subfolders_and_several_wrappers_keep_names_apart() -> None:
    names = ["images/Train/a.png", "images/val/a.png", "masks/train/a.png", "masks/val/a.png"]
    assert list(pairs(*names)) == ["Train/a", "val/a"]
    names = [f"{split}/{folder}/a.png" for split in ("train", "val") for folder in ("images", "masks")]
    assert list(pairs(*names)) == ["train/a", "val/a"]
    names = ["images/train/1.dcm", "images/train/2.dcm", "masks/train/1.png", "masks/train/2.png"]
    assert list(pairs(*names)) == ["train/1", "train/2"]


def test_subfolder_without_a_mirror_is_one_finding() -> None:
    names = ["images/a.png", "masks/a.png", "images/b/1.png", "images/b/2.png", "masks/c/1.png"]
    assert codes(find_pairs(names)) == [("no_masks_folder", "images/b/"), ("no_images_folder", "masks/c/")]


def test_folder_of_slices_is_one_image() -> None:
    slices = ["images/P1/IM10", "images/P1/IM9", "images/P2/a.dcm", "images/P2/DICOMDIR"]
    found = find_pairs([*slices, "masks/P1.nii.gz", "masks/p2_seg.nii"])
    assert found.issues == []
    assert [(pair.name, pair.image, pair.mask, pair.is_series) for pair in found.pairs] == [
        ("P1", ("images/P1/IM9", "images/P1/IM10"), "masks/P1.nii.gz", True),
        ("P2", ("images/P2/a.dcm",), "masks/p2_seg.nii", True),
    ]
    nested = find_pairs(["images/train/P1/1.dcm", "images/train/P1/2.dcm", "masks/train/P1.nii.gz"])
    assert [(pair.name, len(pair.image)) for pair in nested.pairs] == [("train/P1", 2)]


def test_series_whose_mask_is_a_folder_is_refused() -> None:
    found = find_pairs(["images/P1/1.dcm", "images/P1/2.dcm", "masks/P1/1.dcm", "images/a.png", "masks/a.png"])
    assert [pair.name for pair in found.pairs] == ["a"]
    assert codes(found) == [("mask_is_folder", "images/P1")]
    assert "P1.nii.gz" in found.issues[0].detail


DICOM_HEAD = bytes(128) + b"DICM"
PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def test_content_tells_what_unknown_endings_do_not() -> None:
    heads = {"images/P1/1.bin": DICOM_HEAD, "images/P1/2.bin": DICOM_HEAD, "images/a.old": PNG_HEAD}
    names = [*heads, "images/x.heic", "masks/P1.nii.gz", "masks/a.png"]
    found = find_pairs(names, lambda name: heads.get(name, b""))
    assert [(pair.name, len(pair.image), pair.is_series) for pair in found.pairs] == [("a", 1, False), ("P1", 2, True)]
    assert codes(found) == [("unsupported_format", "images/x.heic")]


def test_pictures_without_ending_are_no_series() -> None:
    names = ["images/P1/1", "images/P1/2", "masks/P1/1.png", "masks/P1/2.png"]
    assert [pair.name for pair in find_pairs(names, lambda name: PNG_HEAD).pairs] == ["P1/1", "P1/2"]


def test_a_preview_among_slices_leaves_the_folder_a_series() -> None:
    names = ["images/P1/1.dcm", "images/P1/2.dcm", "images/P1/3", "images/P1/preview.jpg", "masks/P1.nii.gz"]
    found = find_pairs(names, lambda name: DICOM_HEAD if name.endswith("3") else b"\xff\xd8\xff")
    assert [(pair.name, pair.image) for pair in found.pairs] == [("P1", tuple(names[:4]))]
    assert codes(found) == []


def test_little_is_looked_into() -> None:
    looked = list[str]()

    def head_of(name: str) -> bytes:
        looked.append(name)
        return b""

    names = [f"{side}/{number}.png" for side in ("images", "masks") for number in range(50)]
    names += [f"{side}/sub/{number}.png" for side in ("images", "masks") for number in range(50)]
    names += [f"images/P1/{number}.dcm" for number in range(50)] + ["masks/P1.nii.gz"]
    assert len(find_pairs(names, head_of).pairs) == 101
    assert looked == ["images/sub/0.png"]


def test_a_folder_of_pictures_without_masks_stays_what_it_is() -> None:
    names = ["images/P1/1.dcm", "images/P1/2.png", "images/P1/3.png", "images/a.png", "masks/a.png"]
    assert codes(find_pairs(names)) == [("no_masks_folder", "images/P1/")]


def test_the_work_grows_with_the_number_of_files_only(monkeypatch: pytest.MonkeyPatch) -> None:
    parted = Mock(side_effect=stem)
    monkeypatch.setattr(pairing, "stem", parted)
    names = [f"{folder}/{number}.png" for folder in ("images", "masks") for number in range(5000)]
    assert len(find_pairs(names).pairs) == 5000
    assert parted.call_count <= 2 * len(names)
