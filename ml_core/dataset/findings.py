"""The rules for a dataset: every limit, and the message for each way to break a rule. `checks` applies them.

The rules for a single file (its format, size and pixel type) belong to its reader in `ml_core.io`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ml_core.errors import ImageError, MLError
from ml_core.io.formats import NAMES

MIN_PAIRS = 2
MAX_CLASSES = 128
# Distinct numbers in the mask of one 2D image. More mean that the mask was smoothed, or is a photograph.
MAX_VALUES_OF_PICTURE = 64
# Share of all pixels. A value that covers less may be a stray one.
MIN_CLASS_SHARE = 1e-5
# Cases that are compared with each other. This many take a minute, and twice as many take four times as long.
MAX_COMPARED = 20_000

WANTED = "Pack them as images/case1.png and masks/case1.png: one mask per image, with the same name."


@dataclass(frozen=True)
class Issue:
    """A finding about one file or folder.

    With severity "error" it is left out of the dataset; with "warning" it stays.
    """

    severity: Literal["error", "warning"]
    code: str
    file: str
    detail: str

    def __str__(self) -> str:
        return f"{'left out: ' if self.severity == 'error' else ''}{self.file}: {self.detail}"


class DatasetRefusedError(MLError):
    """The files were read, but they do not form a dataset. `issues` are the findings up to this refusal."""

    def __init__(self, code: str, reason: str, cure: str, issues: Iterable[Issue] = ()) -> None:
        super().__init__(code, reason, cure)
        self.issues = list(issues)


@dataclass(frozen=True)
class Finding:
    """A message of the check. `reason` and `cure` are sentences with {placeholders} for the facts.

    Severity "refusal" means that no dataset is made, "error" that the file or pair is left out, "warning" that it
    stays.
    """

    code: str
    severity: Literal["refusal", "error", "warning"]
    reason: str
    cure: str

    def issue(self, file: str, **facts: Any) -> Issue:
        """Make an issue about `file`, for a problem that does not stop the reading of a file."""
        assert self.severity != "refusal"
        return Issue(self.severity, self.code, file, f"{self.reason} {self.cure}".strip().format(**facts))

    def error(self, **facts: Any) -> ImageError:
        """Make an error for the file that is being read. The caller that knows its name sets `file` on it."""
        return ImageError(self.code, self.reason.format(**facts), self.cure.format(**facts))

    def refusal(self, issues: Iterable[Issue] = (), **facts: Any) -> DatasetRefusedError:
        """Make the error that refuses the dataset as a whole."""
        return DatasetRefusedError(self.code, self.reason.format(**facts), self.cure.format(**facts), issues)


# Files and names.

NO_FOLDERS = Finding(
    "no_folders", "refusal", "The ZIP needs a folder of images beside a folder of masks. Found: {found}.", WANTED
)
OUTLINES = Finding(
    "outlines",
    "refusal",
    "The annotations are outlines ({example}: {kind}), and the ZIP holds no pictures of masks.",
    "Export masks as PNG from the program that drew them: one mask for each image, with the image's name.",
)
SEVERAL_MASKS = Finding(
    "several_masks",
    "error",
    "The image has {count} masks ({files}).",
    "Put all structures of an image into one mask.",
)
IGNORED_FOLDER = Finding(
    "ignored_folder", "warning", "The check skipped {count} outside the image and mask folders.", WANTED
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

# Images without masks, such as those of a batch.

NO_IMAGE_FILE = Finding("unsupported_type", "error", "It is no image that can be read.", f"Use {NAMES}.")
NESTED_ARCHIVE = Finding(
    "nested_archive",
    "error",
    "This ZIP in the ZIP holds {what}, and only one DICOM series is read from it.",
    "Put the files of each series into a folder of its own, and zip the folders.",
)
SCOUT_LEFT_OUT = Finding(
    "localizer",
    "error",
    "Its header says that it is a localizer of the series beside it.",
    "Send it alone if it is to be segmented.",
)
SERIES_APART = Finding(
    "several_series",
    "warning",
    "The {files} DICOM files of this folder are {count} images, which were segmented one by one.",
    "",
)
SLICES_ALONE = Finding(
    "slices_alone",
    "warning",
    "The model was trained on pictures, so each of the {count} DICOM files of this folder was segmented by itself.",
    "Choose a model of volumes to get one result for a series.",
)

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


# A pair among the others.

MIXED_DIMENSIONS = Finding(
    "mixed_dimensions", "error", "It is {this} among {others}.", "Put it into a dataset of its own."
)
MIXED_CODING = Finding(
    "mixed_coding",
    "error",
    "This mask stores classes in another way (colours or numbers) than the masks before it.",
    "Code all masks in one way.",
)
MIXED_CHANNELS = Finding(
    "mixed_channels",
    "error",
    "It has {channels} channels, and the images before it have {others}.",
    "Save all images with the same channels, or put it into a dataset of its own.",
)
NOT_REPLACED = Finding("not_replaced", "warning", "The sample of the previous version was kept.", "")

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
    "The mask value {value} covers only {pixels} in {cases}.",
    "If it is a stray value and no class, correct the masks.",
)
UNUSED_NAME = Finding(
    "unused_name", "warning", "No mask holds {name} (value {value}), so the model does not learn this class.", ""
)
UNKNOWN_VALUE = Finding(
    "unknown_value",
    "refusal",
    "The reading names {value}, which no mask holds. The masks hold {held}.",
    "Correct the reading, and upload the ZIP again.",
)
NOTHING_LABELLED = Finding(
    "nothing_labelled",
    "refusal",
    "All values of the masks are ignored, so there is nothing to learn.",
    "Ignore fewer values.",
)
ALL_IGNORED = Finding(
    "all_ignored",
    "error",
    "All pixels of this mask are ignored, so nothing can be learnt from it.",
    "Label a part of it, or leave it out.",
)
NEW_VALUE = Finding(
    "new_value",
    "warning",
    "The mask value {value} is new in this version, and was read as a class.",
    "If nobody labelled these pixels, change how the masks are read.",
)
NEEDS_THE_FILES = Finding(
    "needs_the_files",
    "refusal",
    "A later version cannot merge values, or read objects as classes: the masks are stored as they were read.",
    "Upload the ZIP again as a new dataset and say there how it is to be read.",
)
BACKGROUND_CHOSEN = Finding(
    "background_chosen",
    "warning",
    "{value} was taken for the background: it fills {share} % of all masks and {border} % of their borders, and {usual} does not.",
    "If that is wrong, change how the masks are read.",
)
BACKGROUND_UNSURE = Finding(
    "background_unsure",
    "warning",
    "{usual} was taken for the background, although {value} fills {share} % of all masks and {border} % of their borders.",
    "If that is wrong, change how the masks are read.",
)
IGNORED_VALUE = Finding(
    "ignored_value",
    "warning",
    "The mask value {value} ({share} % of the pixels) was taken for pixels that nobody labelled: they are neither learnt from nor scored.",
    "If it is a class, change how the masks are read.",
)
MERGED_VALUES = Finding(
    "merged_values",
    "warning",
    "In {ones} masks the structure is 1 and in {fulls} it is {full}. Both were read as one class with the value {kept}.",
    "If they are two classes, upload the ZIP again with a reading that merges nothing.",
)
STRAY_VALUES = Finding(
    "stray_values",
    "warning",
    "Beside 0 and 255 the masks hold {count} values with {share} % of the pixels, as smoothing or lossy compression leaves them. They "
    "were set to the nearer of 0 and 255.",
    "Save masks as PNG without smoothing.",
)
OBJECT_NUMBERS = Finding(
    "object_numbers",
    "warning",
    "The values in the masks look like numbers of single objects (each is one connected piece, up to {most} in a mask), not like "
    "classes. All objects were read as one class.",
    "If the values are classes, upload the ZIP again with a reading that says so.",
)
FLAT_IMAGE = Finding(
    "flat_image",
    "warning",
    "The image has the one value {value} everywhere, so nothing can be seen in it.",
    "Export it again, or leave it out.",
)
EMPTY_MASKS = Finding(
    "empty_masks",
    "warning",
    "{count} of {all} masks hold background alone, such as that of {first}.",
    "If structures are there, draw them in; if not, nothing needs to be done.",
)
SAME_IMAGE = Finding(
    "duplicate_image",
    "warning",
    "The image is the same as that of {twin}.",
    "Leave one of them out; otherwise the model looks better than it is.",
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
    """Return the cure of a refusal: the first error among the issues, or `otherwise` if there is none."""
    errors = (issue for issue in issues if issue.severity == "error")
    return next((f"The first problem: {issue.file}: {issue.detail}" for issue in errors), otherwise)


def too_few(good: int, issues: list[Issue], needed: int | None = None) -> DatasetRefusedError:
    """Make the refusal for too few usable pairs: `good` of them, where `needed` (default MIN_PAIRS) are required."""
    needed = MIN_PAIRS if needed is None else needed
    usable = "Only one image with its mask" if good == 1 else f"Only {good} images with their masks"
    found = f"{usable} could be used" if good else "None of the images could be used"
    first = first_problem(issues, "Add images with masks of the same names.")
    pairs = f"{needed} pairs" if needed > 1 else "one"
    return TOO_FEW_PAIRS.refusal(issues, found=found, needed=pairs, first=first)
