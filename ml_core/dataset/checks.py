"""The check of a dataset, for the platform, the command line and notebooks alike: pair by pair, then as a whole.

`findings` has every limit and every sentence, `classes` the table of classes. A further check is a sentence there and a
condition here: in `check_pair` (image and mask), `read_pair` (one pair), `DatasetCheck.add` (a pair among the others) or
`DatasetCheck.finish` (the whole).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from ml_core.errors import ImageError, MLError
from ml_core.io import GREY_OR_COLOUR, Image, Mask, read_image, read_mask
from ml_core.io.grid import directions, directions_differ, origins_differ, spacings_differ


@dataclass(frozen=True)
class ReadPair:
    """An image and its mask, read and fitting together. Nothing of it depends on other pairs."""

    image: Image
    mask: Mask
    counts: dict[int, int]
    """Pixels per value (or colour) of the mask as its file has it."""
    signature: NDArray[np.float16]
    """Of ml_core.dataset.near_duplicates."""
    image_file: str
    mask_file: str

    @classmethod
    def of(cls, image: Image, mask: Mask, image_file: str, mask_file: str) -> ReadPair:
        present, numbers = count_values(mask.values)
        counts = dict(zip(present.tolist(), numbers.tolist(), strict=True))
        return cls(image, mask, counts, signature(image), image_file, mask_file)

    @property
    def both(self) -> str:
        return f"{self.image_file} and {self.mask_file}"


def read_pair(image_path: Path, mask_path: Path, *, image_file: str, mask_file: str) -> ReadPair:
    """Read and check one pair; the names are those that sentences use. Raises ImageError whose `file` names the culprit."""
    with naming(image_file):
        image = read_image(image_path)
    with naming(mask_file):
        mask = read_mask(mask_path, like=image)
    with naming(f"{image_file} and {mask_file}"):
        check_pair(image, mask)
    pair = ReadPair.of(image, mask, image_file, mask_file)
    is_picture = mask.coding == "values" and mask.values.ndim == 2
    if is_picture and len(pair.counts) > findings.MAX_VALUES_OF_PICTURE:
        with naming(mask_file):
            raise findings.TOO_MANY_VALUES.error(count=len(pair.counts))
    return pair


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Say which file an ImageError is about, where it does not say so itself."""
    try:
        yield
    except ImageError as error:
        error.file = error.file or file
        raise


def check_pair(image: Image, mask: Mask) -> None:
    """Refuse a mask that does not lie on the image's grid.

    Shapes must be equal; spacing, and where both are known origin and direction, agree but for rounding (`ml_core.io.grid`). A mask without
    geometry is accepted for images in their stored order (raster, DICOM slices); for others only when it was read with
    `read_mask(path, like=image)`, which turns it. Raises ImageError with code shape_mismatch, no_geometry, spacing_mismatch or
    geometry_mismatch.
    """
    ours, theirs = image.shape, tuple(mask.values.shape)
    if ours != theirs:
        if image.family == "raster" and ours[1:] == theirs:
            raise findings.PAGES_MISMATCH.error(pages=ours[0], mask=_text(theirs))
        turned = " They are turned by 90 degrees against each other." if ours == theirs[::-1] else ""
        raise findings.SHAPE_MISMATCH.error(image=_text(ours), mask=_text(theirs), turned=turned)
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
    """What the check of the whole has to know of a pair that is good."""

    name: str
    group: str
    """What must stay on one side of a split; "" where nothing is known."""
    signature: NDArray[np.float16]
    """Empty where there were more than MAX_COMPARED before it."""

    @property
    def file(self) -> str:
        """The image's, for sentences."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def content(self) -> str:
        """The same for the same bytes of an image."""


CaseT = TypeVar("CaseT", bound=CheckedCase)


@dataclass(frozen=True)
class CheckedDataset(Generic[CaseT]):
    """What came out of the check of a whole dataset."""

    cases: list[CaseT]
    left_out: list[CaseT]
    """Pictures among volumes, or the other way round."""
    dimensions: int
    classes: list[LabelClass]
    """[{value, name, color}], ascending; the first is background."""
    codes: dict[int, int]
    """Of masks in colours: r<<16 | g<<8 | b → label value."""
    fingerprint: Fingerprint
    duplicates: list[int] | None
    """A number per case, equal for those that are one picture. None: not compared."""


class DatasetCheck:
    """Takes every pair in order, then judges the whole. `issues` grow on the way."""

    def __init__(
        self,
        classes: ClassTable | None = None,
        *,
        dimensions: int | None = None,
        channels: int | None = None,
        issues: Iterable[Issue] = (),
    ) -> None:
        """classes: what is known of them already. dimensions (2 or 3) and channels: where nothing else may join."""
        self.classes = ClassTable() if classes is None else classes
        self.issues = list(issues)
        self._dimensions = dimensions
        # By dimensions: the channels of the images that were added.
        self._channels: dict[int, int] = {dimensions: channels} if dimensions and channels else {}
        self._builders = {2: FingerprintBuilder(), 3: FingerprintBuilder()}

    def add(self, pair: ReadPair) -> NDArray[Any]:
        """Learn from a pair, and give its mask in label values. The order of pairs decides which values and colours classes get.

        Raises ImageError where it does not belong to those before, and DatasetRefusedError where no further one would help.
        """
        with naming(pair.both):
            if self._dimensions not in (None, pair.image.dimensions):
                raise _mixed_dimensions(self._dimensions)
            self._check_channels(pair.image)
            values, counts = self.classes.learn(pair.mask, pair.counts)
        if len(self.classes) > findings.MAX_CLASSES:
            raise findings.TOO_MANY_CLASSES.refusal(self.issues)
        if pair.mask.lossy:
            self.issues.append(findings.LOSSY_MASK.issue(pair.mask_file))
        for dropped, file in ((pair.image.dropped_alpha, pair.image_file), (pair.mask.dropped_alpha, pair.mask_file)):
            if dropped:
                self.issues.append(findings.DROPPED_ALPHA.issue(file))
        self._builders[pair.image.dimensions].add(pair.image, values, counts)
        return values

    def add_known(self, pair: ReadPair) -> None:
        """A pair whose mask was stored in the values of `classes`: there is nothing to learn from it."""
        self._builders[pair.image.dimensions].add(pair.image, pair.mask.values, pair.counts)

    def _check_channels(self, image: Image) -> None:
        """Refuse an image whose channels differ from those before it. Grey and colour mix: a network is fed with either."""
        others = self._channels.setdefault(image.dimensions, image.channels)
        if image.channels != others and not {image.channels, others} <= GREY_OR_COLOUR:
            raise findings.MIXED_CHANNELS.error(channels=image.channels, others=others)

    def leave_out(self, error: MLError, name: str) -> None:
        """Note what was wrong with a pair; `name` stands where the error names no file."""
        self.issues.append(Issue("error", error.code, error.file or name, str(error)))

    def finish(self, cases: Sequence[CaseT]) -> CheckedDataset[CaseT]:
        """Judge the cases that were added as one dataset; some of them get a group. Raises DatasetRefusedError."""
        dimensions, kept, left_out = self._of_one_kind(cases)
        if len(kept) < findings.MIN_PAIRS:
            raise findings.too_few(len(kept), self.issues)
        fingerprint = self._builders[dimensions].result()
        used = {entry.value for entry in fingerprint.classes}
        self._check_classes(fingerprint.classes)
        self._find_same_images(kept)
        self._group_by_names(kept)
        duplicates = self._find_near_duplicates(kept)
        codes = self.classes.codes()
        return CheckedDataset(kept, left_out, dimensions, self.classes.rows(used), codes, fingerprint, duplicates)

    def _of_one_kind(self, cases: Sequence[CaseT]) -> tuple[int, list[CaseT], list[CaseT]]:
        """Pictures and volumes cannot be trained together: the larger party stays, each of the others becomes an issue."""
        flat = sum(len(case.shape) == 2 for case in cases)
        dimensions = 2 if flat >= len(cases) - flat else 3
        kept = [case for case in cases if len(case.shape) == dimensions]
        left_out = [case for case in cases if len(case.shape) != dimensions]
        for case in left_out:
            self.leave_out(_mixed_dimensions(dimensions), case.file)
        return dimensions, kept, left_out

    def _check_classes(self, found: Sequence[ClassFingerprint]) -> None:
        if len(found) < 2:
            raise findings.ONE_CLASS.refusal(self.issues, value=found[0].value)
        for entry in found:
            if entry.share < findings.MIN_CLASS_SHARE:
                rare = findings.RARE_VALUE.issue("masks", value=entry.value, pixels=entry.pixels, cases=entry.cases)
                self.issues.append(rare)
        for value in sorted(set(self.classes.told_names) - {entry.value for entry in found}):
            name = self.classes.told_names[value]
            self.issues.append(findings.UNUSED_NAME.issue("masks", name=name, value=value))

    def _find_same_images(self, cases: list[CaseT]) -> None:
        first_with: dict[str, str] = {}
        for case in cases:
            twin = first_with.setdefault(case.content, case.name)
            if twin != case.name:
                self.issues.append(findings.SAME_IMAGE.issue(case.file, twin=twin))

    def _group_by_names(self, cases: list[CaseT]) -> None:
        """Patients as the names tell, where nothing else does. Of a later version all names are looked at again."""
        if any(not case.group.startswith(BY_NAME) for case in cases if case.group):
            return
        for case, group in zip(cases, groups_of_names([case.name for case in cases]), strict=True):
            case.group = group
        sizes = Counter(case.group for case in cases if case.group)
        if sizes:
            [(largest, most)] = sizes.most_common(1)
            facts = {"count": len(sizes), "largest": largest.removeprefix(BY_NAME), "most": most}
            self.issues.append(findings.GROUPED_BY_NAME.issue("images", **facts))

    def _find_near_duplicates(self, cases: list[CaseT]) -> list[int] | None:
        """A number per case, equal for those that are one picture: they stay on one side of the split."""
        if len(cases) > findings.MAX_COMPARED or not all(case.signature.size for case in cases):
            self.issues.append(findings.NOT_COMPARED.issue("images"))
            return None
        groups = near_duplicate_groups([case.signature for case in cases])
        first: dict[int, CaseT] = {}
        contents = set[str]()
        for case, group in zip(cases, groups, strict=True):
            twin = first.setdefault(group, case)
            is_same = case.content in contents  # which was said already
            contents.add(case.content)
            if twin is not case and not is_same:
                self.issues.append(findings.NEAR_DUPLICATE.issue(case.name, name=case.name, twin=twin.name))
        return groups


def _mixed_dimensions(wanted: int | None) -> ImageError:
    """Of a picture among volumes or the other way round."""
    this, others = ("a volume", "pictures") if wanted == 2 else ("a picture", "volumes")
    return findings.MIXED_DIMENSIONS.error(this=this, others=others)


def _text(numbers: Any) -> str:
    return " x ".join(str(n) if isinstance(n, int) else f"{float(n):.5g}" for n in numbers)
