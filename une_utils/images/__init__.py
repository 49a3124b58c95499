"""Pictures and attribute tables: rendered faces, a folder with a CSV file, or a parquet file, behind one interface."""

from __future__ import annotations

from une_utils.settings import Profile

from .base import ImageSource, ImageSourceError, SourceReport, fingerprint, to_model_range, to_uint8, train_mask
from .files import AttributeTableError, FolderImages, ParquetImages, UnreadablePicture, prepare

__all__ = [
    "AttributeTableError", "FolderImages", "ImageSource", "ImageSourceError", "ParquetImages", "SourceReport",
    "UnreadablePicture", "fingerprint", "open_images", "prepare", "to_model_range", "to_uint8", "train_mask",
]  # fmt: skip

RENDERED_COUNT = 4000  # pictures drawn when a profile of rendered faces gives no count


def open_images(profile: Profile) -> ImageSource:
    """Open the pictures of a profile; sources on disk decode every picture once.

    Raises:
        ProfileError: the profile's file or folder does not exist.
        ImageSourceError: it exists and cannot be used.
    """
    images = profile.images
    if images.source == "rendered":
        from .rendered import RenderedFaces  # only this source draws, the others need none of it

        return RenderedFaces(count=images.count or RENDERED_COUNT, size=images.size, seed=profile.seed)
    shared = dict(
        path=images.resolved_path(), size=images.size, count=images.count, seed=profile.seed,
        attributes=images.attributes, group_column=images.group_column, image_column=images.image_column,
        class_column=images.class_column, classes=images.classes,
    )  # fmt: skip
    if images.source == "folder":
        return FolderImages(attributes_csv=images.attributes_csv, **shared)
    return ParquetImages(**shared)
