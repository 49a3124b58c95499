"""Pictures and attribute tables behind one interface: rendered faces, a folder with a CSV file, parquet files, CelebA, AFHQ."""

from __future__ import annotations

from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

from une_utils.settings import Images, Profile, ProfileError

from .base import ImageSource, ImageSourceError, SourceReport, fingerprint, to_model_range, to_uint8, train_mask
from .celeba import AFHQ_CLASSES, CELEBA_ATTRIBUTES, PARTITIONS, AFHQImages, CelebAImages, CelebAParquet, hub_files
from .files import AttributeTableError, FolderImages, ParquetImages, UnreadablePicture, prepare

__all__ = [
    "AFHQ_CLASSES", "AFHQImages", "AttributeTableError", "CELEBA_ATTRIBUTES", "CelebAImages", "CelebAParquet", "FolderImages",
    "ImageSource", "ImageSourceError", "ParquetImages", "SourceReport", "UnreadablePicture", "expected_count", "fingerprint",
    "hub_files", "open_images", "prepare", "to_model_range", "to_uint8", "train_mask",
]  # fmt: skip

RENDERED_COUNT = 4000  # pictures drawn when a profile of rendered faces gives no count


def expected_count(images: Images) -> int | None:
    """Number of pictures, without opening them; None where only the files can say. Pictures that cannot be read are counted."""
    if images.source == "rendered":
        return images.count or RENDERED_COUNT
    total = None
    if images.source == "celeba":
        total = PARTITIONS[images.partition] if images.partition else sum(PARTITIONS.values())
    elif images.source == "parquet" and not images.from_hub:
        with suppress(ProfileError, OSError, pa.ArrowException):
            total = pq.read_metadata(images.resolved_path()).num_rows
    return min(images.count or total, total) if total else images.count


def open_images(profile: Profile, pictures: bool = True) -> ImageSource:
    """Open the pictures of a profile. Sources on disk decode every picture once, except CelebA and AFHQ, whose rows are fixed.

    Args:
        pictures: False when ids and attributes are enough; CelebA's folder may then lack its pictures.

    Raises:
        ProfileError: the profile's file or folder does not exist.
        ImageSourceError: it exists and cannot be used, or the hub's data set cannot be read.
    """
    images = profile.images
    if images.source == "rendered":
        from .rendered import RenderedFaces  # only this source draws, the others need none of it

        return RenderedFaces(count=images.count or RENDERED_COUNT, size=images.size, seed=profile.seed)
    drawn = dict(size=images.size, count=images.count, seed=profile.seed, attributes=images.attributes)
    if images.source in ("celeba", "afhq"):
        official = drawn | dict(partition=images.partition, split=images.split)
        if images.from_hub:
            files = hub_files(images.hub, images.revision, images.partition)
            return CelebAParquet(files, image_column=images.image_column, **official)
        if images.source == "afhq":
            return AFHQImages(images.resolved_path(), **official)
        return CelebAImages(images.resolved_path(), pictures=pictures, **official)
    columns = dict(
        group_column=images.group_column, image_column=images.image_column, class_column=images.class_column, classes=images.classes
    )
    if images.source == "folder":
        return FolderImages(images.resolved_path(), attributes_csv=images.attributes_csv, **drawn, **columns)
    path = hub_files(images.hub, images.revision) if images.from_hub else images.resolved_path()
    return ParquetImages(path, **drawn, **columns)
