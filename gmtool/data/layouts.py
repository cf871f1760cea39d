"""Layouts of data sets on disk: VOC, Cityscapes, folders of images and masks, COCO annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from shlex import quote

from gmtool.config import DataConfig, LayoutName
from gmtool.data.lookup import ImageLookup, path_in
from gmtool.data.path_templates import PART_FOLDERS, Template, check_pair, match_images
from gmtool.data.samples import PARTS, Part, Sample, index_images, mask_file
from gmtool.data.splits import SplitEntry, read_split
from gmtool.errors import DataError, some_names
from gmtool.images import Reading
from gmtool.masks.coco_annotations import CocoFile, CocoImage, CocoMask, read_coco


@dataclass(frozen=True)
class Layout:
    """Images, masks and parts of one data set, found on disk."""

    root: Path
    image_dir: Path
    """Folder of all images, which may be in folders below it."""
    mask_dir: Path | None
    """Folder of all masks; None: the ground truth is annotations, not mask files."""
    mask_of: Callable[[Path], Path | CocoMask]
    """Returns the mask of an image path in `ids`."""
    ids: dict[Path, str]
    """Id by image path."""
    aliases: dict[str, Path]
    """Image path by other names that split lists use."""
    folders: tuple[str, ...]
    """Leading folders of ids that split lists may omit."""
    parts: dict[Part, tuple[str, list[SplitEntry]]]
    """Name and entries of each part that the data set defines."""
    part_hints: dict[Part, str]
    """File or folder that would define a part, for messages."""
    reading: Reading
    """EXIF and bit-depth handling of its images."""

    def samples(
        self, entries: Sequence[SplitEntry], *, with_masks: bool, where: str, missing_masks: bool = False
    ) -> tuple[Sample, ...]:
        """Return the samples of the entries of a split list.

        Args:
            entries: Entries of the list.
            with_masks: Find the mask of each image; False: `mask` is None.
            where: The list, for messages.
            missing_masks: Accept mask files that do not exist; reading them then fails.

        Raises:
            DataError: An image or its mask does not exist, or an entry matches several images.
        """
        lookup = ImageLookup(
            self.root,
            self.image_dir,
            self.aliases | {name: path for path, name in self.ids.items()},
            self.folders,
            self._images_of_masks,
        )
        found = []
        for entry, image_path in zip(entries, lookup.find_all(entries, where=where), strict=True):
            mask = self._mask(entry, image_path, where=where, missing=missing_masks) if with_masks else None
            found.append(Sample(self.ids.get(image_path, entry.name), image_path, mask, self.reading))
        return tuple(found)

    def has_mask(self, image_path: Path) -> bool:
        """Return whether the mask of an image exists; annotations always do."""
        mask = self.mask_of(image_path)
        return not isinstance(mask, Path) or mask_file(mask).is_file()

    def _images_of_masks(self) -> dict[Path, Path]:
        """Return the image of each mask file that exists."""
        masks = {image: self.mask_of(image) for image in self.ids}
        return {mask_file(mask): image for image, mask in masks.items() if isinstance(mask, Path)}

    def _mask(self, entry: SplitEntry, image_path: Path, *, where: str, missing: bool) -> Path | CocoMask:
        if entry.mask is not None:
            return self._listed_mask(entry.mask, image_path, where=where, missing=missing)
        if image_path not in self.ids:
            raise DataError(f"{where}: {image_path} is outside {self.image_dir}: give its mask as second column")
        mask = self.mask_of(image_path)
        if not isinstance(mask, Path):
            return mask
        found = mask_file(mask)
        if not (missing or found.is_file()):
            others = sorted(
                other.name for other in mask.parent.glob(f"{escape(mask.stem)}.*") if other != image_path
            )
            there = f", found {some_names(others)}" if others else ""
            drawn = image_path.with_suffix(".json").is_file()
            remedy = (
                f"; {self.root} has labelme's files: gmtool data import {self.root} --out DIR" if drawn else ""
            )
            raise DataError(f"{where}: image {image_path} has no mask: expected {mask}{there}{remedy}")
        return found

    def _listed_mask(self, mask: str, image_path: Path, *, where: str, missing: bool) -> Path:
        if self.mask_dir is None:
            raise DataError(
                f"{where} names mask {mask}, but the ground truth is COCO annotations: remove the column"
            )
        mask_path = path_in(self.root, mask) or self.root / mask
        if not mask_path.is_relative_to(self.mask_dir):
            raise DataError(
                f"{where} names mask {mask}, but the mask folder is {self.mask_dir}: use one folder "
                f"(--set data.mask_dir={Path(mask).parent})"
            )
        self._refuse_other_kind(mask_path, image_path, where=where)
        if not (missing or mask_path.is_file()):
            raise DataError(f"{where}: image {image_path} has no mask: expected {mask_path}")
        return mask_path

    def _refuse_other_kind(self, mask_path: Path, image_path: Path, *, where: str) -> None:
        """Refuse a listed labelIds file if labelTrainIds are read, and vice versa."""
        kinds = {"labelIds": "raw", "labelTrainIds": "index"}
        named = next((kind for kind in kinds if mask_path.stem.endswith(f"_{kind}")), None)
        own = self.mask_of(image_path) if image_path in self.ids else None
        if named is not None and isinstance(own, Path) and not own.stem.endswith(f"_{named}"):
            values = kinds[named]
            raise DataError(f"{where} names {mask_path.name}: --set data.mask_values={values} reads {named} files")


def open_layout(config: DataConfig, *, parts: Sequence[Part] = PARTS) -> Layout:
    """Find the images and parts of a data set without opening an image.

    Args:
        config: Root, layout and paths of the data set.
        parts: Needed parts; COCO's training annotations, half a gigabyte, are read only if needed.

    Raises:
        DataError: The folder is missing or has another layout, or two images have the same name.
    """
    if not config.root.is_dir():
        raise DataError(f"data set folder {config.root} does not exist")
    if config.layout == "coco":
        return _open_coco(config, parts)
    openers = {"voc": _open_voc, "cityscapes": _open_cityscapes, "folder": _open_folder}
    return openers[config.layout](config)


def reading_of(config: DataConfig) -> Reading:
    """Return EXIF and bit-depth handling of a data set's images."""
    return Reading(config.exif == "apply", config.bits)


def _open_voc(config: DataConfig) -> Layout:
    years = [year for name in ("VOC2012", "VOC2010") for year in (name, f"VOCdevkit/{name}")]
    for root in (config.root, *(config.root / year for year in years)):
        if (root / "JPEGImages").is_dir():
            break
    else:
        raise _wrong_layout(config.root, "voc", "JPEGImages")
    lists: dict[Part, Path] = {"train": root / config.train_list, "val": root / config.val_list}
    image_dir, mask_dir = root / "JPEGImages", root / config.mask_dir
    return Layout(
        root=root,
        image_dir=image_dir,
        mask_dir=mask_dir,
        mask_of=lambda image: mask_dir / image.relative_to(image_dir).with_suffix(".png"),
        ids={path: name for name, path in index_images(image_dir).items()},
        aliases={},
        folders=PARTS,
        parts={part: (str(path), read_split(path)) for part, path in lists.items() if path.is_file()},
        part_hints={part: str(path.relative_to(root)) for part, path in lists.items()},
        reading=reading_of(config),
    )


def _open_folder(config: DataConfig) -> Layout:
    # Images that match the template
    images, masks = Template(config.images, "data.images"), Template(config.masks, "data.masks")
    check_pair(images, masks)
    root, image_dir = config.root, config.root / images.folder
    if not image_dir.is_dir():
        raise _wrong_layout(root, "folder", str(images.folder))
    names = match_images(root, images, masks)
    entries = [SplitEntry(str(name), None, None) for name in names.values()]
    # Parts: folders below the images, or matches of {part}
    if "part" not in images.fields:
        hints = {part: f"images in {images.folder / part}" for part in PARTS}
        parts = _parts_below(image_dir, entries)
        folders: tuple[str, ...] = PARTS
    else:
        # Folders of a part may have another name, such as "training"
        called = {part: {name.folder for name in names.values()} & set(PART_FOLDERS[part]) for part in PARTS}
        hints = {part: config.images.replace("{part}", part) for part in PARTS}
        parts = {
            part: (str(root / hints[part]), [e for e in entries if e.name.partition("/")[0] in called[part]])
            for part in PARTS
            if called[part]
        }
        folders = tuple(folder for part in PARTS for folder in PART_FOLDERS[part])
    return Layout(
        root=root,
        image_dir=image_dir,
        mask_dir=root / masks.folder,
        mask_of=lambda image: root / masks.path_of(names[image]),
        ids={path: str(name) for path, name in names.items()},
        aliases={},
        folders=folders,
        parts=parts,
        part_hints=hints,
        reading=reading_of(config),
    )


def _open_cityscapes(config: DataConfig) -> Layout:
    # Folders and kind of the masks
    image_dir, mask_dir = config.root / "leftImg8bit", config.root / "gtFine"
    if not image_dir.is_dir():
        raise _wrong_layout(config.root, "cityscapes", "leftImg8bit")
    if config.mask_values == "color":
        raise DataError(
            f"{config.root}: layout cityscapes reads labelIds or labelTrainIds: mask_values raw or index"
        )
    suffix = "gtFine_labelIds" if config.mask_values == "raw" else "gtFine_labelTrainIds"
    by_path = index_images(image_dir)
    # Split lists name images by path, file name, or <city>_<sequence>_<frame>
    by_file = {Path(name).name: path for name, path in by_path.items()}
    if len(by_file) < len(by_path):
        raise DataError(f"{image_dir}: two images have one file name; Cityscapes has each frame once")
    by_frame = {name.removesuffix("_leftImg8bit"): path for name, path in by_file.items()}

    def mask_of(image: Path) -> Path:
        name = f"{image.stem.removesuffix('leftImg8bit')}{suffix}.png"
        return mask_dir / image.relative_to(image_dir).with_name(name)

    return Layout(
        root=config.root,
        image_dir=image_dir,
        mask_dir=mask_dir,
        mask_of=mask_of,
        ids={path: name for name, path in by_path.items()},
        aliases=by_frame | by_file,
        folders=PARTS,
        parts=_parts_below(image_dir, [SplitEntry(name, None, None) for name in by_path]),
        part_hints={part: f"images in leftImg8bit/{part}" for part in PARTS},
        reading=reading_of(config),
    )


def _open_coco(config: DataConfig, parts: Sequence[Part]) -> Layout:
    # Annotation file and image folder of each part
    places = {
        "train": (config.root / config.train_annotations, config.train_images),
        "val": (config.root / config.val_annotations, config.val_images),
    }
    hints: dict[Part, str] = {"train": config.train_annotations, "val": config.val_annotations}
    # Images that the annotation files list
    ids: dict[Path, str] = {}
    by_name: dict[str, Path] = {}
    source: dict[Path, tuple[CocoFile, CocoImage]] = {}
    found: dict[Part, tuple[str, list[SplitEntry]]] = {}
    for part in parts:
        annotations, folder = places[part]
        if not annotations.is_file():
            continue
        file, entries = read_coco(annotations), []
        image_dir = _first_folder(config.root, folder)
        for image in file.images:
            path = image_dir / image.file_name
            name = (PurePosixPath(folder.lstrip("/")) / image.file_name).with_suffix("").as_posix()
            if by_name.setdefault(name, path) != path:
                raise DataError(f"{annotations}: {by_name[name]} and {path} have the same name {name}")
            ids[path] = name
            entries.append(SplitEntry(name, None, None))
            source.setdefault(path, (file, image))
        found[part] = (str(annotations), entries)
    if not found:
        raise _wrong_layout(config.root, "coco", hints[parts[0]])

    def mask_of(image: Path) -> CocoMask:
        file, listed = source[image]
        return file.mask_of(listed)

    return Layout(
        root=config.root,
        image_dir=config.root,
        mask_dir=None,
        mask_of=mask_of,
        ids=ids,
        aliases={},
        folders=(config.train_images, config.val_images),
        parts=found,
        part_hints=hints,
        reading=reading_of(config),
    )


def _first_folder(root: Path, name: str) -> Path:
    folders = [root / name, root / "images" / name]
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        raise DataError(
            f"{root}: expected an image folder {name} or images/{name}; --set data.train_images=DIR and "
            "data.val_images=DIR name others"
        )
    return found


def _parts_below(image_dir: Path, entries: Sequence[SplitEntry]) -> dict[Part, tuple[str, list[SplitEntry]]]:
    """Return the parts that are folders: `train/` and `val/`."""
    found = {part: [entry for entry in entries if entry.name.startswith(f"{part}/")] for part in PARTS}
    return {part: (str(image_dir / part), listed) for part, listed in found.items() if listed}


def _wrong_layout(root: Path, layout: LayoutName, expected: str) -> DataError:
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    marks = {"JPEGImages": "voc", "leftImg8bit": "cityscapes", "images": "folder", "train2017": "coco"}
    likely = [f"; is it of layout {marks[name]}?" for name in found if name in marks]
    return DataError(
        f"{root} is not a data set of layout {layout}: expected {expected} in it, found "
        f"{', '.join(found[:5]) or 'no folders'}"
        + (likely[0] if likely else f"; files of a labeling tool: gmtool data import {quote(str(root))} --out DIR")
    )
