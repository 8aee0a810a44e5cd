"""What a later version of a dataset takes over from the version that it is based on: samples, classes and the split.

The samples that stay are read again, because the fingerprint and the search for near-duplicates need all of them. Their
images and masks are not stored again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from datasets.models import Dataset, Sample, decision_of
from datasets.samples import CheckedSample, KnownSample, PairFiles, thumbnail_jpeg
from medseg_site.shared.storage import objects as storage
from ml_core.dataset.checks import DatasetCheck, ReadPair
from ml_core.dataset.classes import ClassTable
from ml_core.dataset.fingerprint import Fingerprint
from ml_core.dataset.pairing import Pair
from ml_core.dataset.reading import Reading, changed
from ml_core.dataset.splits import PARTS, Name, Split, StoredSplit, reuse_split, split_cases
from ml_core.errors import ConfigError, ImageError, MLError
from ml_core.io import read_image, read_mask


@dataclass
class Base:
    """What the check of a version needs to know of the version that it is based on."""

    dataset: Dataset
    # By name and in order, without the samples that the new version leaves out.
    samples: dict[str, Sample]

    @classmethod
    def of(cls, dataset: Dataset) -> Base | None:
        """The base of a dataset. None when there is none, or when it was deleted or is not ready."""
        base = dataset.base
        if base is None or base.status != base.WORDS.done:
            return None
        unwanted = set(dataset.leave_out)
        samples = {sample.name: sample for sample in base.samples.all() if sample.name not in unwanted}
        return cls(base, samples)

    def class_table(self, asked: Reading) -> ClassTable:
        """The classes with their names and colours, and how masks are read: as in this version, or as `asked`."""
        return ClassTable(self.dataset.class_dicts(), changed(decision_of(self.dataset), asked))


@dataclass
class Merged:
    """The parts of a version in order: new pairs, and earlier samples that stay.

    `instead_of` maps a pair's name to the earlier sample that it replaces. `dimensions` is 2 or 3 when the earlier
    samples decide it.
    """

    items: list[Pair | Sample]
    instead_of: dict[str, Sample] = field(default_factory=dict)
    dimensions: int | None = None


def merge(base: Base | None, pairs: Sequence[Pair]) -> Merged:
    """Put each new pair in the place of the sample with its name. Pairs with new names come last."""
    if base is None:
        return Merged(list(pairs))
    new = {pair.name[:300]: pair for pair in pairs}
    instead_of = {name: sample for name, sample in base.samples.items() if name in new}
    items: list[Pair | Sample] = [new.pop(name, sample) for name, sample in base.samples.items()]
    return Merged([*items, *new.values()], instead_of, base.dataset.dimensions)


@dataclass
class ReadKept:
    """An earlier sample that was read again, with its pixels."""

    sample: Sample
    read: ReadPair


class KeptSampleError(MLError):
    """A sample that should stay cannot be read. The check then fails: nobody asked to leave that sample out."""

    def __init__(self, sample: Sample, reason: str) -> None:
        cure = "Check again; if that does not help, leave the sample out or replace it."
        super().__init__("unreadable_sample", f"{sample.name} of the earlier version cannot be read: {reason}", cure)


def read_kept(sample: Sample) -> ReadKept:
    """Read image and mask of an earlier sample from storage. Raises KeptSampleError when that is not possible."""
    try:
        image = read_image(storage.fetch(sample.image_key, sample.image_sha256))
        mask = read_mask(storage.fetch(sample.mask_key, sample.mask_sha256), like=image)
    except FileNotFoundError:
        raise KeptSampleError(sample, "It is not in storage any more.") from None
    except storage.StorageCorruptError as error:
        raise KeptSampleError(sample, str(error)) from error
    except ImageError as error:
        raise KeptSampleError(sample, error.reason) from error
    return ReadKept(sample, ReadPair.of(image, mask, sample.name, sample.name))


def know_kept(kept: ReadKept, check: DatasetCheck) -> KnownSample:
    """Enter an earlier sample into the check. Its mask is stored in label values already, so it needs no decoding."""
    read = kept.read
    thumbnail = thumbnail_jpeg(read.image, check.add_known(read), check.classes)
    return KnownSample(as_stored(kept.sample, read.signature), thumbnail, None)


def as_stored(sample: Sample, seen: NDArray[np.float16]) -> CheckedSample:
    """An earlier sample with the keys of its stored image and mask. `seen` is its signature.

    Its thumbnail is made and stored again. One object holds the thumbnails of many samples, and a sample that a version
    leaves out must not stay in an object of that version.
    """
    return CheckedSample(
        name=sample.name,
        file=sample.name,
        group=sample.patient_group,
        shape=tuple(sample.shape),
        spacing=sample.spacing,
        image=storage.StoredObject(sample.image_key, 0, sample.image_sha256),
        mask=storage.StoredObject(sample.mask_key, 0, sample.mask_sha256),
        signature=seen,
    )


def is_unchanged(files: PairFiles, earlier: Sample) -> bool:
    """Whether the files of a new pair have the same bytes as the stored files of the earlier sample."""
    for path, sha256 in ((files.image, earlier.image_sha256), (files.labels, earlier.mask_sha256)):
        with path.open("rb") as file:
            if storage.sha256_of(file)[0] != sha256:
                return False
    return True


def split_of(samples: list[CheckedSample], duplicates: list[int] | None, base: Base | None) -> Split:
    """The split of a version. Samples keep the part that they had in the base, so that the scores of versions compare.

    New samples are trained on (see ml_core.dataset.splits.reuse_split). The split is made anew when the earlier one
    leaves nothing to train or validate on, or when it has no test part and there are enough samples for one now.
    """
    groups = [sample.group for sample in samples]
    fresh = split_cases(groups, duplicates=duplicates)
    if base is None:
        return fresh
    parts: dict[str, list[Name]] = {part: [] for part in PARTS}
    for name, side in base.dataset.samples.exclude(split="").values_list("name", "split"):
        parts[side].append(name)
    train, val, test = (parts[part] for part in PARTS)
    stored = StoredSplit(train, val, test, Fingerprint.from_json(base.dataset.fingerprint).grouping)
    if fresh.test and not stored.test:
        return fresh
    try:
        return reuse_split(stored, [sample.name for sample in samples], groups, duplicates=duplicates)
    except ConfigError:
        return fresh


def changes_of(samples: list[CheckedSample], base: Base | None) -> dict[str, int]:
    """The numbers of samples {kept, added, replaced, left_out} against the base; {} for a first version."""
    if base is None:
        return {}
    kept = sum(is_kept(sample, base) for sample in samples)
    replaced = sum(sample.name in base.samples and not is_kept(sample, base) for sample in samples)
    return {
        "kept": kept,
        "added": len(samples) - kept - replaced,
        "replaced": replaced,
        "left_out": base.dataset.file_count - kept - replaced,
    }


def is_kept(sample: CheckedSample, base: Base) -> bool:
    """Whether a sample still names the image of the base, so that it is neither new nor replaced."""
    earlier = base.samples.get(sample.name)
    return earlier is not None and earlier.image_key == sample.image.key
