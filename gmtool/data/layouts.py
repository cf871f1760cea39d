"""How data sets lie on disk: where an image is, where its mask is, and what is called train and val."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath

from gmtool.config import DataConfig, LayoutName
from gmtool.console import remark
from gmtool.data.path_templates import PART_FOLDERS, ImageName, Template, check_pair, name_of
from gmtool.data.samples import PARTS, Layout, Part, Sample, mask_file
from gmtool.data.splits import SplitEntry, read_split
from gmtool.errors import DataError
from gmtool.file_kinds import IMAGE_SUFFIXES
from gmtool.folders import LeftOut, below
from gmtool.images import AS_DISPLAYED, Reading
from gmtool.masks.coco_annotations import CocoFile, CocoImage, CocoMask, read_coco


def open_layout(config: DataConfig, *, parts: Sequence[Part] = PARTS) -> Layout:
    """Find the images of a data set and the parts that it defines. No image is opened.

    Args:
        config: Where the data is.
        parts: What is needed of it: the annotations of COCO's training images are half a gigabyte.

    Raises:
        DataError: The folder is missing, of another layout, or two images have one name.
    """
    if not config.root.is_dir():
        raise DataError(f"data set folder {config.root} does not exist")
    if config.layout == "coco":
        return _open_coco(config, parts)
    openers = {"voc": _open_voc, "cityscapes": _open_cityscapes, "folder": _open_folder}
    return openers[config.layout](config)


def reading_of(config: DataConfig) -> Reading:
    """Return how images are read."""
    return Reading(config.exif == "apply", config.bits)


def images_below(folder: Path, reading: Reading = AS_DISPLAYED) -> tuple[Sample, ...]:
    """Return every image in a plain folder and below it, without masks.

    Raises:
        DataError: There is none, or two differ in their suffix alone.
    """
    images = _index_images(folder)
    if not images:
        raise DataError(f"{folder}: no image in it; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return tuple(Sample(name, path, None, reading) for name, path in images.items())


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
        ids={path: name for name, path in _index_images(image_dir).items()},
        aliases={},
        folders=PARTS,
        parts={part: (str(path), read_split(path)) for part, path in lists.items() if path.is_file()},
        part_hints={part: str(path.relative_to(root)) for part, path in lists.items()},
        reading=reading_of(config),
    )


def _open_folder(config: DataConfig) -> Layout:
    images, masks = Template(config.images, "data.images"), Template(config.masks, "data.masks")
    check_pair(images, masks)
    root, image_dir = config.root, config.root / images.folder
    if not image_dir.is_dir():
        raise _wrong_layout(root, "folder", str(images.folder))
    names = _match_images(root, images, masks)
    entries = [SplitEntry(str(name), None, None) for name in names.values()]
    if "part" not in images.fields:
        hints = {part: f"images in {images.folder / part}" for part in PARTS}
        parts = _parts_below(image_dir, entries)
        folders: tuple[str, ...] = PARTS
    else:
        # The folders of a part may be called otherwise: "training"
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


def _match_images(root: Path, images: Template, masks: Template) -> dict[Path, ImageName]:
    """Return what the names of the images below `root` say. Masks in the same folders are no images."""
    image_pattern, mask_pattern = images.pattern(), masks.pattern(is_mask=True)
    # A mask template that fits images too, such as {id}.png beside {id}_image.png, tells nothing by itself
    distinct = not mask_pattern.fullmatch(images.path_of(ImageName("x", "train")).replace(".*", ".png"))
    found: dict[Path, ImageName] = {}
    by_name: dict[str, Path] = {}
    for inside in _files_below(root / images.folder, (*IMAGE_SUFFIXES, images.suffix)):
        path = root / images.folder / inside
        relative = (images.folder / PurePath(inside).as_posix()).as_posix()
        match = image_pattern.fullmatch(relative)
        if match is None or (distinct and mask_pattern.fullmatch(relative)):
            continue
        found[path] = name_of(match)
    if not distinct:
        mask_paths = {mask_file(root / masks.path_of(name)) for name in found.values()}
        found = {path: name for path, name in found.items() if path not in mask_paths}
    for path, name in found.items():
        if str(name) in by_name:
            raise DataError(f"{by_name[str(name)]} and {path} differ in their suffix alone: which is {name}?")
        by_name[str(name)] = path
    return found


def _open_cityscapes(config: DataConfig) -> Layout:
    image_dir, mask_dir = config.root / "leftImg8bit", config.root / "gtFine"
    if not image_dir.is_dir():
        raise _wrong_layout(config.root, "cityscapes", "leftImg8bit")
    if config.mask_values == "color":
        raise DataError(
            f"{config.root}: layout cityscapes reads labelIds or labelTrainIds: mask_values raw or index"
        )
    suffix = "gtFine_labelIds" if config.mask_values == "raw" else "gtFine_labelTrainIds"
    by_path = _index_images(image_dir)
    # Lists name images by path, by file name, or by <city>_<sequence>_<frame>
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
    places = {
        "train": (config.root / config.train_annotations, config.train_images),
        "val": (config.root / config.val_annotations, config.val_images),
    }
    hints: dict[Part, str] = {"train": config.train_annotations, "val": config.val_annotations}
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
                raise DataError(f"{annotations}: {by_name[name]} and {path} have one name: which is {name}?")
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
        raise DataError(f"{root}: no folder of images {name} or images/{name} in it")
    return found


def _parts_below(image_dir: Path, entries: Sequence[SplitEntry]) -> dict[Part, tuple[str, list[SplitEntry]]]:
    """Return the parts that are folders of their own: `train/` and `val/`."""
    found = {part: [entry for entry in entries if entry.name.startswith(f"{part}/")] for part in PARTS}
    return {part: (str(image_dir / part), listed) for part, listed in found.items() if listed}


def _index_images(folder: Path) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for relative in _files_below(folder, IMAGE_SUFFIXES):
        path, name = folder / relative, PurePath(relative).with_suffix("").as_posix()
        if name in images:
            raise DataError(f"{images[name]} and {path} differ in their suffix alone: which is {name}?")
        images[name] = path
    return images


def _files_below(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return relative paths, and say what was left out."""
    left_out = LeftOut()
    found = list(below(folder, suffixes=suffixes, left_out=left_out))
    if str(left_out):
        remark(f"left out below {folder}: {left_out}")
    return found


def _wrong_layout(root: Path, layout: LayoutName, expected: str) -> DataError:
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    marks = {"JPEGImages": "voc", "leftImg8bit": "cityscapes", "images": "folder", "train2017": "coco"}
    likely = [f"; is it of layout {marks[name]}?" for name in found if name in marks]
    return DataError(
        f"{root} is not a data set of layout {layout}: expected {expected} in it, found "
        f"{', '.join(found[:5]) or 'no folders'}{likely[0] if likely else ''}"
    )
