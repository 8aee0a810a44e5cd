"""Check a dataset for the platform, the command line and notebooks: first each pair, then all of them together.

`findings` holds every limit and every message, and `classes` the table of classes. To add a check, add its message
there and its condition here: in `check_pair` (image against mask), `read_pair` (one pair), `DatasetCheck.add` (one pair
against the earlier ones) or `DatasetCheck.finish` (the dataset as a whole).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ml_core.dataset import findings
from ml_core.dataset.classes import ClassTable, LabelClass
from ml_core.dataset.findings import Issue
from ml_core.dataset.fingerprint import ClassFingerprint, Fingerprint, FingerprintBuilder, count_values
from ml_core.dataset.near_duplicates import near_duplicate_groups, signature
from ml_core.dataset.patients import BY_NAME, groups_of_names
from ml_core.dataset.reading import Codes, Decision, Reading
from ml_core.dataset.survey import MaskFacts, MaskSurvey, has_too_many_values, may_number_objects
from ml_core.errors import ImageError, MLError, count_of
from ml_core.io import GREY_OR_COLOUR, Image, Mask, read_image, read_mask
from ml_core.io.grid import directions, directions_differ, origins_differ, spacings_differ


@dataclass(frozen=True)
class ReadPair:
    """An image and its mask that were read and fit together. Nothing in it depends on other pairs."""

    image: Image
    mask: Mask
    counts: dict[int, int]
    """Number of pixels per stored value (or packed colour) of the mask, ascending by value."""
    facts: MaskFacts
    """What the mask tells about how the dataset's masks are coded."""
    is_flat: bool
    """Whether each channel of the image has one value everywhere."""
    signature: NDArray[np.float16]
    """The image's fine structure, by which `ml_core.dataset.near_duplicates` compares images."""
    image_file: str
    """The name of the image file in messages."""
    mask_file: str
    """The name of the mask file in messages."""

    @classmethod
    def of(cls, image: Image, mask: Mask, image_file: str, mask_file: str) -> ReadPair:
        """Count the values of the mask, and compute the signature of the image."""
        present, numbers = count_values(mask.values)
        counts = dict(zip(present.tolist(), numbers.tolist(), strict=True))
        facts = MaskFacts.of(mask, counts)
        return cls(image, mask, counts, facts, _is_flat(image), signature(image), image_file, mask_file)

    @property
    def both(self) -> str:
        """Both file names, for a message about the pair."""
        return f"{self.image_file} and {self.mask_file}"


def _is_flat(image: Image) -> bool:
    pixels = image.array.reshape(image.channels, -1)
    # One value in the first thousand pixels is common; only then the whole image is looked at.
    return bool((pixels[:, :1000] == pixels[:, :1]).all() and (pixels == pixels[:, :1]).all())


def read_pair(image_path: Path, mask_path: Path, *, image_file: str, mask_file: str) -> ReadPair:
    """Read and check one pair. Messages call the files `image_file` and `mask_file`.

    Raises ImageError, whose `file` names the file or pair at fault.
    """
    with naming(image_file):
        image = read_image(image_path)
    with naming(mask_file):
        mask = read_mask(mask_path, like=image)
    with naming(f"{image_file} and {mask_file}"):
        check_pair(image, mask)
    return ReadPair.of(image, mask, image_file, mask_file)


class UndecidedError(Exception):
    """The masks are not plain numbers, and the check has to begin again with a decision how they are read.

    `decision` is None where the check was stopped early: the masks that it has not seen have to be looked at first.
    """

    def __init__(self, decision: Decision | None) -> None:
        super().__init__("The masks need a decision how they are read.")
        self.decision = decision


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Set `file` on an ImageError that does not name its file yet."""
    try:
        yield
    except ImageError as error:
        error.file = error.file or file
        raise


def check_pair(image: Image, mask: Mask) -> None:
    """Refuse a mask that does not lie on the grid of its image.

    The shapes must be equal. Spacing, origin and axes must agree but for rounding (`ml_core.io.grid`) if both files give
    them. A mask without geometry is accepted if the image keeps its stored order (raster files, single DICOM slices).
    For other images such a mask must be read with `read_mask(path, like=image)`, which turns it to the image's axes.
    Raises ImageError with code shape_mismatch, no_geometry, spacing_mismatch or geometry_mismatch.
    """
    image_shape, mask_shape = image.shape, tuple(mask.values.shape)
    if image_shape != mask_shape:
        if image.family == "raster" and image_shape[1:] == mask_shape:
            raise findings.PAGES_MISMATCH.error(pages=image_shape[0], mask=_text(mask_shape))
        turned = " They are turned by 90 degrees against each other." if image_shape == mask_shape[::-1] else ""
        raise findings.SHAPE_MISMATCH.error(image=_text(image_shape), mask=_text(mask_shape), turned=turned)
    if image.affine is None and mask.affine is not None:
        raise findings.IMAGE_WITHOUT_GEOMETRY.error()
    if image.grid.orientation is not None and mask.affine is None:
        raise findings.MASK_WITHOUT_GEOMETRY.error()
    two = findings.TWO_TRANSFORMS if image.grid.second is not None or mask.has_two_transforms else ""
    if image.spacing and mask.spacing and spacings_differ(image.spacing, mask.spacing):
        raise findings.SPACING_MISMATCH.error(image=_text(image.spacing), mask=_text(mask.spacing), two=two)
    if image.affine is not None and mask.affine is not None:
        one, other, axes = image.affine, mask.affine, image.dimensions
        if directions_differ(one, other, axes):
            ours_text, theirs_text = (_text(directions(affine, axes).T.ravel()) for affine in (one, other))
            raise findings.AXES_MISMATCH.error(image=ours_text, mask=theirs_text, two=two)
        if origins_differ(one, other, axes):
            raise findings.ORIGIN_MISMATCH.error(image=_text(one[:3, 3]), mask=_text(other[:3, 3]), two=two)


class CheckedCase(Protocol):
    """What `DatasetCheck.finish` needs to know about a pair that passed its own check."""

    name: str
    group: str
    """What must stay on one side of a split, such as the patient; "" if nothing is known."""
    signature: NDArray[np.float16]
    """The signature of `ReadPair`; empty if MAX_COMPARED cases came before this one."""

    @property
    def file(self) -> str:
        """The name of the image file in messages."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape of the image, (H, W) or (D, H, W)."""

    @property
    def content(self) -> str:
        """A checksum of the image file: equal for files with the same bytes."""


CaseT = TypeVar("CaseT", bound=CheckedCase)


@dataclass(frozen=True)
class CheckedDataset(Generic[CaseT]):
    """The result of checking a whole dataset."""

    cases: list[CaseT]
    """The cases that form the dataset."""
    left_out: list[CaseT]
    """The 2D images if most cases are volumes, or the volumes if most are 2D images."""
    dimensions: int
    """2 or 3."""
    classes: list[LabelClass]
    """[{value, name, color}]: the background, then the others ascending by value."""
    codes: Codes
    """Label value of each value in the masks; {} if each is its own."""
    decision: Decision
    """How the masks were read."""
    fingerprint: Fingerprint
    duplicates: list[int] | None
    """A group number per case, equal for near-duplicates; None if there were too many cases to compare."""


class DatasetCheck:
    """Collects every pair in order, then judges the dataset as a whole. `issues` grows while pairs are added.

    How masks are read is decided from all of them. One pass is enough while the masks are plain numbers whose lowest is
    the background. Otherwise UndecidedError asks for a second pass, with the decision in the class table.
    """

    def __init__(
        self,
        classes: ClassTable | None = None,
        *,
        reading: Reading | None = None,
        dimensions: int | None = None,
        channels: int | None = None,
        issues: Iterable[Issue] = (),
        names: Mapping[int, str] | None = None,
    ) -> None:
        """Start a check.

        `classes` is a class table with a decision how masks are read, such as that of an earlier version; without one
        the masks decide, as far as the user's `reading` leaves open, and `names` maps label values to class names. With
        `dimensions` (2 or 3) and `channels`, other cases are refused. `issues` are those found before, such as while
        pairing.
        """
        self.is_decided = classes is not None
        self.classes = ClassTable(names=names) if classes is None else classes
        self.issues = [*issues, *(self.classes.decision.issues if self.is_decided else ())]
        self._reading = reading or Reading()
        self._survey = MaskSurvey(reading)
        # Of an earlier version; empty where this is the first.
        self._known_labels = set(self.classes.colors()) if self.classes.has_history else set[int]()
        self._dimensions = dimensions
        # By dimensions: the channels of the images that were added.
        self._channels: dict[int, int] = {dimensions: channels} if dimensions and channels else {}
        background, ignored = self.classes.decision.background, self.classes.decision.ignored
        settled = None if self.classes.decision.is_plain else background
        self._builders = {number: FingerprintBuilder(settled, ignored) for number in (2, 3)}
        self._empty: list[str] = []
        self._count = 0

    def add(self, pair: ReadPair) -> NDArray[Any]:
        """Add a pair to the class table and the fingerprint, and return its mask in label values.

        Raises ImageError if the pair does not fit to the earlier ones, DatasetRefusedError if the dataset cannot be used
        whatever follows, and UndecidedError if the masks are clearly no plain numbers.
        """
        is_wanted = bool(self._reading.objects) or may_number_objects(pair.facts)
        if not self.is_decided and (pair.facts.is_rgb or is_wanted):
            raise UndecidedError(None)
        with naming(pair.mask_file):
            if has_too_many_values(pair.mask, len(pair.counts)) and not self.classes.decision.reading.objects:
                raise findings.TOO_MANY_VALUES.error(count=len(pair.counts))
        with naming(pair.both):
            if self._dimensions not in (None, pair.image.dimensions):
                raise _mixed_dimensions(self._dimensions)
            self._check_channels(pair.image)
            values, counts = self.classes.learn(pair.mask, pair.counts)
            if not set(counts) - set(self.classes.decision.ignored):
                raise findings.ALL_IGNORED.error()
        if not self.is_decided:
            self._survey.add(pair.facts)
        if len(self.classes) > findings.MAX_CLASSES:
            raise findings.TOO_MANY_CLASSES.refusal(self.issues)
        for file, notices in ((pair.image_file, pair.image.notices), (pair.mask_file, pair.mask.notices)):
            self.issues.extend(Issue("warning", notice.code, file, notice.text) for notice in notices)
        if pair.mask.lossy:
            self.issues.append(findings.LOSSY_MASK.issue(pair.mask_file))
        self._look_at(pair, counts)
        self._builders[pair.image.dimensions].add(pair.image, values, counts)
        return values

    def add_known(self, pair: ReadPair) -> NDArray[Any]:
        """Add a pair of an earlier version to the fingerprint, and return its mask in label values.

        The class table knows these values already.
        """
        values, counts = pair.mask.values, pair.counts
        # The numbers of objects were stored as they are, everything else in label values.
        if self.classes.decision.reading.objects:
            values, counts = self.classes.learn(pair.mask, pair.counts)
        self.classes.know(counts)
        self._builders[pair.image.dimensions].add(pair.image, values, counts)
        return values

    def _look_at(self, pair: ReadPair, counts: dict[int, int]) -> None:
        self._count += 1
        if len(set(counts) - set(self.classes.decision.ignored)) < 2:
            self._empty.append(pair.mask_file)
        if pair.is_flat:
            value = f"{pair.image.array.flat[0]:g}"
            self.issues.append(findings.FLAT_IMAGE.issue(pair.image_file, value=value))

    def _check_channels(self, image: Image) -> None:
        """Refuse an image whose channels differ from those before it. Grey and colour mix: a network is fed with either."""
        others = self._channels.setdefault(image.dimensions, image.channels)
        if image.channels != others and not {image.channels, others} <= GREY_OR_COLOUR:
            raise findings.MIXED_CHANNELS.error(channels=image.channels, others=others)

    def leave_out(self, error: MLError, name: str) -> None:
        """Record why a pair is left out. The issue is about `name` unless the error names a file."""
        self.issues.append(Issue("error", error.code, error.file or name, str(error)))

    def finish(self, cases: Sequence[CaseT]) -> CheckedDataset[CaseT]:
        """Judge the added cases as one dataset. Cases of one patient, as far as names show, get that patient as group.

        Raises DatasetRefusedError if too few cases remain, or if they have one class only. Raises UndecidedError if the
        masks, now that all are seen, are no plain numbers.
        """
        dimensions, kept, left_out = self._of_one_kind(cases)
        if len(kept) < findings.MIN_PAIRS:
            raise findings.too_few(len(kept), self.issues)
        decision = self.classes.decision
        if not self.is_decided:
            decision = self._survey.decide()
            if not decision.is_plain:
                raise UndecidedError(decision)
            self.issues += decision.issues
        fingerprint = self._builders[dimensions].result()
        used = {entry.value for entry in fingerprint.classes}
        self._check_classes(fingerprint.classes)
        for value in sorted(used - self._known_labels) if self._known_labels else []:
            self.issues.append(findings.NEW_VALUE.issue("masks", value=value))
        if self._empty:
            facts = {"count": len(self._empty), "all": self._count, "first": self._empty[0]}
            self.issues.append(findings.EMPTY_MASKS.issue("masks", **facts))
        self._find_same_images(kept)
        self._group_by_names(kept)
        duplicates = self._find_near_duplicates(kept)
        codes = self.classes.codes()
        classes = self.classes.rows(used)
        return CheckedDataset(kept, left_out, dimensions, classes, codes, decision, fingerprint, duplicates)

    def _of_one_kind(self, cases: Sequence[CaseT]) -> tuple[int, list[CaseT], list[CaseT]]:
        """Keep either the 2D images or the volumes, whichever are more, because they cannot be trained together.

        Returns the dimensions, the kept cases and the others. Each of the others becomes an issue.
        """
        flat_count = sum(len(case.shape) == 2 for case in cases)
        dimensions = 2 if flat_count >= len(cases) - flat_count else 3
        kept = [case for case in cases if len(case.shape) == dimensions]
        left_out = [case for case in cases if len(case.shape) != dimensions]
        for case in left_out:
            self.leave_out(_mixed_dimensions(dimensions), case.file)
        return dimensions, kept, left_out

    def _check_classes(self, entries: Sequence[ClassFingerprint]) -> None:
        if len(entries) < 2:
            raise findings.ONE_CLASS.refusal(self.issues, value=entries[0].value)
        for entry in entries:
            if entry.share < findings.MIN_CLASS_SHARE:
                pixels, cases = count_of(entry.pixels, "pixel"), count_of(entry.cases, "case")
                rare = findings.RARE_VALUE.issue("masks", value=entry.value, pixels=pixels, cases=cases)
                self.issues.append(rare)
        for value in sorted(set(self.classes.told_names) - {entry.value for entry in entries}):
            name = self.classes.told_names[value]
            self.issues.append(findings.UNUSED_NAME.issue("masks", name=name, value=value))

    def _find_same_images(self, cases: list[CaseT]) -> None:
        first_with: dict[str, str] = {}
        for case in cases:
            twin = first_with.setdefault(case.content, case.name)
            if twin != case.name:
                self.issues.append(findings.SAME_IMAGE.issue(case.file, twin=twin))

    def _group_by_names(self, cases: list[CaseT]) -> None:
        """Group the cases by the patients in their names, unless a case has a group from another source.

        In a later version of a dataset, groups that came from names are worked out again over all names.
        """
        if any(not case.group.startswith(BY_NAME) for case in cases if case.group):
            return
        for case, group in zip(cases, groups_of_names([case.name for case in cases]), strict=True):
            case.group = group
        sizes = Counter(case.group for case in cases if case.group)
        if sizes:
            [(largest, size)] = sizes.most_common(1)
            facts = {"count": len(sizes), "largest": largest.removeprefix(BY_NAME), "most": size}
            self.issues.append(findings.GROUPED_BY_NAME.issue("images", **facts))

    def _find_near_duplicates(self, cases: list[CaseT]) -> list[int] | None:
        """Return a group number per case, equal for near-duplicates, or None if there are too many cases to compare."""
        if len(cases) > findings.MAX_COMPARED or not all(case.signature.size for case in cases):
            self.issues.append(findings.NOT_COMPARED.issue("images"))
            return None
        groups = near_duplicate_groups([case.signature for case in cases])
        first: dict[int, CaseT] = {}
        contents = set[str]()
        for case, group in zip(cases, groups, strict=True):
            twin = first.setdefault(group, case)
            # An issue about identical files exists already, so a second one about their likeness is not needed.
            is_same = case.content in contents
            contents.add(case.content)
            if twin is not case and not is_same:
                self.issues.append(findings.NEAR_DUPLICATE.issue(case.name, name=case.name, twin=twin.name))
        return groups


def _mixed_dimensions(dimensions: int | None) -> ImageError:
    """The error for a volume in a dataset of 2D images, or for a 2D image in a dataset of volumes."""
    this, others = ("a volume", "pictures") if dimensions == 2 else ("a picture", "volumes")
    return findings.MIXED_DIMENSIONS.error(this=this, others=others)


def _text(numbers: Any) -> str:
    return " x ".join(str(n) if isinstance(n, int) else f"{float(n):.5g}" for n in numbers)
