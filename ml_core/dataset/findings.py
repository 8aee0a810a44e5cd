"""What a dataset may be: every limit, and every sentence that is said where it is not kept. `checks` looks for what is said here.

What a single file may be (its format, size and kind of pixels) is for its reader in `ml_core.io` to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ml_core.errors import ImageError, MLError

MIN_PAIRS = 2
MAX_CLASSES = 128
MAX_VALUES_OF_PICTURE = 64  # distinct numbers in one picture's mask; more means smoothing or a photograph
MIN_CLASS_SHARE = 1e-5  # of all pixels; a value that covers less may be a stray one
MAX_COMPARED = 20_000  # cases; comparing each with each takes a minute then, and four times as long for twice as many

WANTED = "Pack them as images/case1.png and masks/case1.png: one mask per image, with the same name."


@dataclass(frozen=True)
class Issue:
    """A finding about one file or folder. error: it is left out of the dataset; warning: worth knowing."""

    severity: Literal["error", "warning"]
    code: str
    file: str
    detail: str

    def __str__(self) -> str:
        return f"{'left out: ' if self.severity == 'error' else ''}{self.file}: {self.detail}"


class DatasetRefusedError(MLError):
    """The files were read, but there is no dataset in them; `issues` say what was found until then."""

    def __init__(self, code: str, reason: str, cure: str, issues: Iterable[Issue] = ()) -> None:
        super().__init__(code, reason, cure)
        self.issues = list(issues)


@dataclass(frozen=True)
class Finding:
    """What the check may say: `reason` and `cure` are sentences with {places} for the facts of a case.

    refusal: there is no dataset; error: the file or pair is left out; warning: worth knowing.
    """

    code: str
    severity: Literal["refusal", "error", "warning"]
    reason: str
    cure: str

    def issue(self, file: str, **facts: Any) -> Issue:
        """About a file that need not be read for it."""
        assert self.severity != "refusal"
        return Issue(self.severity, self.code, file, f"{self.reason} {self.cure}".strip().format(**facts))

    def error(self, **facts: Any) -> ImageError:
        """For a file that is being read; who knows its name sets `file`."""
        return ImageError(self.code, self.reason.format(**facts), self.cure.format(**facts))

    def refusal(self, issues: Iterable[Issue] = (), **facts: Any) -> DatasetRefusedError:
        return DatasetRefusedError(self.code, self.reason.format(**facts), self.cure.format(**facts), issues)


# Files and names.

NO_FOLDERS = Finding(
    "no_folders", "refusal", "The ZIP needs a folder of images beside a folder of masks. Found: {found}.", WANTED
)
IGNORED_FOLDER = Finding(
    "ignored_folder", "warning", "{count} files outside the image and mask folders were not read.", WANTED
)
UNSUPPORTED_FORMAT = Finding(
    "unsupported_format",
    "error",
    "Files of type {suffix} cannot be read.",
    "Convert it to PNG, TIFF, NIfTI or DICOM.",
)
MASK_IS_FOLDER = Finding(
    "mask_is_folder",
    "error",
    "The mask of this DICOM series is a folder.",
    "Give one file for all slices: {series}.nii.gz.",
)
NO_MASKS_FOLDER = Finding(
    "no_masks_folder", "error", "There is no folder of masks that belongs to this folder.", WANTED
)
NO_IMAGES_FOLDER = Finding(
    "no_images_folder", "error", "There is no folder of images that belongs to this folder.", WANTED
)
NO_MASK = Finding("no_mask", "error", "No mask is named {name}.", "Add one or drop this.")
NO_IMAGE = Finding("no_image", "error", "No image is named {name}.", "Add one or drop this.")
IMAGE_NAMED_TWICE = Finding("duplicate_image", "error", "It has the same name as {twin}.", "Keep one of them.")
MASK_NAMED_TWICE = Finding("duplicate_mask", "error", "It has the same name as {twin}.", "Keep one of them.")
EXTRA_CHANNEL = Finding("extra_channel", "error", "{case} has several channels.", "Keep the one ending in _0000.")

# One pair.

TWO_TRANSFORMS = (
    " A header has two transforms (sform and qform) that differ, so programs disagree about where the file lies; the sform "
    "is used here. A mask is also taken where it lies by the qform of its image."
)

SHAPE_MISMATCH = Finding(
    "shape_mismatch",
    "error",
    "The image is {image} and its mask is {mask}.{turned}",
    "Export the mask on the grid of its image.",
)
PAGES_MISMATCH = Finding(
    "shape_mismatch",
    "error",
    "The image is read as {pages} slices, because its pages have no names, and its mask is one of {mask}.",
    "If the pages are channels, save the image as an ImageJ TIFF or OME-TIFF with the axis C; if not, give a mask for all.",
)
IMAGE_WITHOUT_GEOMETRY = Finding(
    "no_geometry",
    "error",
    "The mask has a position in space and the image has none, so how the mask lies is not known.",
    "Save image and mask in the same format.",
)
MASK_WITHOUT_GEOMETRY = Finding(
    "no_geometry",
    "error",
    "The image has a position in space and the mask has none, so how the mask lies is not known.",
    "Save the mask as NIfTI, with the affine of its image.",
)
SPACING_MISMATCH = Finding(
    "spacing_mismatch",
    "error",
    "The image has a spacing of {image} mm and its mask of {mask} mm.{two}",
    "Resample the mask to the grid of its image, with nearest neighbour.",
)
AXES_MISMATCH = Finding(
    "geometry_mismatch",
    "error",
    "The image's axes point along {image} and its mask's along {mask} (RAS).{two}",
    "Export the mask with the orientation of its image.",
)
ORIGIN_MISMATCH = Finding(
    "geometry_mismatch",
    "error",
    "The image starts at {image} mm and its mask at {mask} mm (RAS).{two}",
    "Export the mask with the origin of its image.",
)
TOO_MANY_VALUES = Finding(
    "too_many_values",
    "error",
    "The mask has {count} different values, so it looks smoothed or like a photograph.",
    "Export it without smoothing, as PNG with one number per class.",
)
LOSSY_MASK = Finding(
    "lossy_mask",
    "warning",
    "The mask is a JPEG, which blurs the borders of classes; values were set to 0 or 255.",
    "Save masks as PNG.",
)

DROPPED_ALPHA = Finding(
    "dropped_alpha",
    "warning",
    "The file has an alpha channel (transparency) that varies, and it is not used.",
    "If it holds data, save it as a channel of its own.",
)

# A pair among the others.

MIXED_DIMENSIONS = Finding(
    "mixed_dimensions", "error", "It is {this} among {others}.", "Put it into a dataset of its own."
)
MIXED_CODING = Finding(
    "mixed_coding",
    "error",
    "This mask is coded otherwise than those before (colours or numbers).",
    "Code all masks in one way.",
)
MIXED_CHANNELS = Finding(
    "mixed_channels",
    "error",
    "It has {channels} channels, and the images before it have {others}.",
    "Save all images with the same channels, or put it into a dataset of its own.",
)
NOT_REPLACED = Finding("not_replaced", "warning", "The sample of the version before stays.", "")

# The dataset as a whole.

TOO_FEW_PAIRS = Finding("too_few_cases", "refusal", "{found}, and {needed} are needed.", "{first}")
TOO_MANY_CLASSES = Finding(
    "too_many_values",
    "refusal",
    f"The masks hold more than {MAX_CLASSES} different values.",
    "Store every class as one number in the mask, without smoothing or lossy compression.",
)
ONE_CLASS = Finding(
    "one_class",
    "refusal",
    "All masks hold the one value {value}, so there is nothing to tell apart.",
    "Check that the masks were exported with the structures drawn in.",
)
NOTHING_NEW = Finding("nothing_new", "refusal", "This would change nothing of version {version}.", "{first}")
BASE_DELETED = Finding(
    "base_deleted",
    "refusal",
    "Version {version}, which this one is based on, was deleted.",
    "Upload all images and masks as a new dataset.",
)
RARE_VALUE = Finding(
    "rare_value",
    "warning",
    "The mask value {value} covers only {pixels} pixels in {cases} cases.",
    "If it is a stray value and no class, correct the masks.",
)
UNUSED_NAME = Finding("unused_name", "warning", "No mask holds {name} ({value}), so it is no class of the model.", "")
SAME_IMAGE = Finding(
    "duplicate_image",
    "warning",
    "The image is the same as that of {twin}.",
    "Leave one of them out, or the numbers will flatter.",
)
NEAR_DUPLICATE = Finding(
    "near_duplicate",
    "warning",
    "{name} and {twin} look like one picture (copied, scaled, brightened, turned, or the next slice).",
    "They stay on one side of the split; leave one out unless both are cases of their own.",
)
NOT_COMPARED = Finding(
    "not_compared",
    "warning",
    f"There are more than {MAX_COMPARED:,} cases, so they were not searched for copies of one another.",
    "",
)
GROUPED_BY_NAME = Finding(
    "grouped_by_name",
    "warning",
    "By their names the images come from {count} patients, such as {largest} with {most} images. Each patient stays on one side of the "
    "split.",
    "If that is wrong, number the files in another way.",
)


def first_problem(issues: Iterable[Issue], otherwise: str) -> str:
    """The cure of a refusal: what was wrong first, or what to do where nothing was."""
    errors = (issue for issue in issues if issue.severity == "error")
    return next((f"The first problem: {issue.file}: {issue.detail}" for issue in errors), otherwise)


def too_few(good: int, issues: list[Issue], needed: int | None = None) -> DatasetRefusedError:
    """good: pairs that can be used; needed: MIN_PAIRS where it is left out."""
    needed = MIN_PAIRS if needed is None else needed
    some = "Only one image with its mask" if good == 1 else f"Only {good} images with their masks"
    found = f"{some} could be used" if good else "None of the images could be used"
    first = first_problem(issues, "Add images with masks of the same names.")
    pairs = f"{needed} pairs" if needed > 1 else "one"
    return TOO_FEW_PAIRS.refusal(issues, found=found, needed=pairs, first=first)
