"""Read masks that tools export as images: CVAT, VOC and labelme2voc, Roboflow, and plain folders of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gmtool.class_lists import BACKGROUND_NAMES, ClassList, read_class_list
from gmtool.classes import BUILT_IN_DIR, Color, voc_palette
from gmtool.errors import DataError, some_names
from gmtool.file_kinds import IMAGE_SUFFIXES, MASK_SUFFIXES
from gmtool.folders import below
from gmtool.json_toml import read_json
from gmtool.labels.image_finder import ImageFinder, part_of
from gmtool.labels.mask_files import Coding, palette_of, recognize_coding
from gmtool.labels.shapes import LabeledImage, MaskFile, PartName, Problem, Source, ToolName, pack_color

VOC_IGNORED = 255
VOC_MASKS = "SegmentationClass"
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "gt", "groundtruth", "ground_truth")
MASK_ENDINGS = ("_mask", "-mask", "_seg", "_label", "_labels", "_gt")
"""Endings of the names of masks that lie beside their images."""


def read_cvat_masks(files: Sequence[Path], root: Path, finder: ImageFinder) -> Source:
    """Return CVAT's "Segmentation mask": colours of `labelmap.txt` in `SegmentationClass`.

    Raises:
        DataError: labelmap.txt is damaged, or there are no masks.
    """
    listed = read_class_list(files[0])
    labels = {pack_color(color): name for name, color in listed.colors.items()}
    base = files[0].parent
    masks = _masks_below(base / VOC_MASKS)
    images = _images_of(base / VOC_MASKS, masks, labels, finder, is_color=True, parts=_listed_parts(base))
    return _source("cvat-masks", f"CVAT masks: labelmap.txt and {len(masks)} masks", images, listed)


def read_voc(files: Sequence[Path], root: Path, finder: ImageFinder) -> Source:
    """Return palette masks of VOC's layout; 255 is ignored. The names are those of class_names.txt, or VOC's.

    Raises:
        DataError: There are no masks, or their classes have no names.
    """
    base = files[0].parent
    masks = _masks_below(files[0])
    coding = recognize_coding(masks)
    names_file = next((path for path in (base / "class_names.txt", base / "labels.txt") if path.is_file()), None)
    voc = read_json(BUILT_IN_DIR / "voc.json")["names"]
    if names_file is not None:
        named = [name for name in read_class_list(names_file).names if name != "__ignore__"]
    elif not coding.is_color and max(v for v in (0, *coding.values) if v != VOC_IGNORED) < len(voc):
        named = list(voc)
    else:
        raise DataError(
            f"{files[0]}: its labels have no names: write them into {base / 'class_names.txt'}, one a line, in "
            "the order of the labels"
        )
    listed = ClassList({name: index for index, name in enumerate(named)})
    colors: Mapping[int, Color] = dict(enumerate(voc_palette(len(named))))
    labels = {pack_color(colors[i]) if coding.is_color else i: name for i, name in enumerate(named)}
    labels[pack_color((224, 224, 192)) if coding.is_color else VOC_IGNORED] = "__ignore__"
    images = _images_of(files[0], masks, labels, finder, is_color=coding.is_color, parts=_listed_parts(base))
    source = f"names of {names_file.name}" if names_file else "PASCAL VOC's names"
    return _source("voc", f"VOC masks: {len(masks)} in {files[0].name}, {source}", images, listed, has_ground=True)


def read_roboflow_masks(files: Sequence[Path], root: Path, finder: ImageFinder) -> Source:
    """Return Roboflow's semantic masks: `x_mask.png` beside `x.jpg`, values of `_classes.csv`.

    Raises:
        DataError: A list of classes is damaged, or two differ.
    """
    lists = [read_class_list(path) for path in files]
    for path, listed in zip(files, lists, strict=True):
        if dict(listed.values) != dict(lists[0].values):
            raise DataError(f"{path} and {files[0]} list different classes: import the parts one by one")
    labels = {value: name for name, value in lists[0].values.items()}
    images: list[LabeledImage] = []
    for path in files:
        part = part_of(path.parent.name)
        masks = [mask for mask in _masks_below(path.parent) if mask.stem.endswith("_mask")]
        for mask in masks:
            image = finder.find_stem(mask.stem.removesuffix("_mask"), near=mask.parent)
            name = finder.relative(image) if image else f"{mask.stem.removesuffix('_mask')}.jpg"
            images.append(LabeledImage(name, image, MaskFile(mask, labels), part, str(mask)))
    found = f"Roboflow semantic masks: {len(files)} _classes.csv, {len(images)} masks"
    return _source("roboflow-masks", found, tuple(images), lists[0], has_ground=True)


def read_plain_masks(
    files: Sequence[Path], root: Path, finder: ImageFinder, classes: ClassList | None = None
) -> Source:
    """Return masks in a folder of their own, or beside their images with an ending such as `_mask`.

    0 is the background where only one other value occurs (255, say). Without `classes` the other values or
    colours are named `class_1`, `class_2`, ...

    Args:
        files: The folder of masks, or the source itself.
        root: The source.
        finder: Its images.
        classes: Names of the values.

    Raises:
        DataError: No masks, or their coding is not recognised.
    """
    folder = files[0]
    beside = folder == root
    masks = [path for path in _masks_below(folder) if not beside or path.stem.endswith(MASK_ENDINGS)]
    coding = recognize_coding(masks)
    zero_is_unnamed = _zero_is_unnamed(coding, classes)
    if classes is not None and zero_is_unnamed:
        classes = ClassList({"background": 0} | {name: value + 1 for name, value in classes.values.items()})
    listed, labels, colors, problems = _name_values(coding, classes, masks, str(folder))
    finder = ImageFinder(finder.roots, excluded=masks, without=finder.without)
    images: list[LabeledImage] = []
    used: set[Path] = set()
    for mask in masks:
        stem = mask.relative_to(folder).with_suffix("").as_posix()
        for ending in MASK_ENDINGS:
            stem = stem.removesuffix(ending)
        image = finder.find_stem(stem, near=mask.parent if beside else folder.parent)
        name = finder.relative(image) if image else f"{stem}.jpg"
        used |= {image} if image else set()
        labels_of = MaskFile(mask, labels, coding.is_color)
        images.append(LabeledImage(name, image, labels_of, _part_of_path(name), str(mask)))
    images += [
        LabeledImage(finder.relative(path), path, None, _part_of_path(finder.relative(path)))
        for path in finder.all()
        if path not in used and (beside or not path.is_relative_to(folder))
    ]
    kind = "colours" if coding.is_color else f"values {some_names([str(v) for v in coding.values], 6)}"
    where = "beside the images" if beside else f"in {folder.name}"
    return Source(
        tool="masks",
        found=f"masks: {len(masks)} {where}, {kind}",
        images=tuple(images),
        class_names=tuple(listed),
        colors=colors,
        has_ground=True,
        ambiguous="masks hold 0 too, which is none of the named classes" if zero_is_unnamed else "",
        problems=tuple(problems),
    )


def mask_folder(root: Path) -> Path | None:
    """Return the folder of masks of a plain data set; the source itself if masks lie beside images; else None."""
    folders = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    named = next((folders[name] for name in MASK_FOLDERS if name in folders), None)
    if named is not None and next(below(named, suffixes=IMAGE_SUFFIXES), None) is not None:
        return named
    stems = {Path(name).with_suffix("").as_posix() for name in below(root, suffixes=IMAGE_SUFFIXES)}
    images = (stem.removesuffix(ending) for stem in stems for ending in MASK_ENDINGS if stem.endswith(ending))
    return root if any(image in stems for image in images) else None


def _zero_is_unnamed(coding: Coding, classes: ClassList | None) -> bool:
    """Return whether values are 0 to N, but N classes without background are named: 0 is ground without label."""
    if classes is None or coding.is_color or any(name in BACKGROUND_NAMES for name in classes.names):
        return False
    count, values = len(classes.names), [value for value in coding.values if value != VOC_IGNORED]
    return list(classes.values.values()) == list(range(count)) and 0 in values and max(values) == count


def _name_values(
    coding: Coding, classes: ClassList | None, masks: Sequence[Path], where: str
) -> tuple[list[str], dict[int, str], dict[str, Color], list[Problem]]:
    """Return names, name by value, colours by name, and problems of plain masks."""
    values = list(coding.values)
    colors: dict[str, Color] = {}
    if coding.is_color:
        names = {0: "background"}
        names |= {value: f"class_{place}" for place, value in enumerate((v for v in values if v != 0), start=1)}
        if classes is not None and classes.colors:
            names = {pack_color(color): name for name, color in classes.colors.items()}
        colors = {name: (v & 255, v >> 8 & 255, v >> 16) for v, name in names.items()}
        listed = sorted(names.values(), key=lambda name: name not in BACKGROUND_NAMES)
        return listed, names, colors, []
    if set(values) <= {0, values[-1]} and len(values) <= 2 and (classes is None or values[-1] == VOC_IGNORED):
        listed = ["background", "object"] if classes is None else list(classes.names)
        if len(listed) != 2:
            raise DataError(f"{where}: masks hold {values}, but {len(listed)} classes are named; expected 2")
        return listed, {0: listed[0], values[-1] or VOC_IGNORED: listed[1]}, {}, []
    if classes is not None:
        return list(classes.names), {value: name for name, value in classes.values.items()}, {}, []
    known = [value for value in values if value not in (0, VOC_IGNORED)]
    labels = {0: "background"} | {value: f"class_{value}" for value in known}
    if VOC_IGNORED in values:
        labels[VOC_IGNORED] = "__ignore__"
    colors = {labels[i]: color for i, color in palette_of(masks[0]).items() if i in labels and i != VOC_IGNORED}
    line = f"{where}: the values {some_names([str(v) for v in known], 6)} have no names: give --classes FILE"
    return list(labels.values()), labels, colors, [Problem("classes without name", where, line)]


def _source(
    tool: ToolName,
    found: str,
    images: tuple[LabeledImage, ...],
    listed: ClassList,
    *,
    has_ground: bool = False,
) -> Source:
    return Source(tool, found, images, listed.names, dict(listed.colors), has_ground=has_ground)


def _images_of(
    folder: Path,
    masks: Sequence[Path],
    labels: Mapping[int, str],
    finder: ImageFinder,
    *,
    is_color: bool,
    parts: Mapping[str, PartName],
) -> tuple[LabeledImage, ...]:
    """Return the images of masks in VOC's layout; images without a mask are unlabeled."""
    base = folder.parent
    images, used = [], set()
    for mask in masks:
        stem = mask.relative_to(folder).with_suffix("").as_posix()
        image = finder.find_stem(stem, near=base / "JPEGImages")
        image = None if image and image.is_relative_to(folder) else image
        used |= {image} if image else set()
        name = f"{stem}.jpg" if image is None else finder.relative(image)
        images.append(LabeledImage(name, image, MaskFile(mask, labels, is_color), parts.get(stem), str(mask)))
    photos = base / "JPEGImages"
    for path in finder.all() if photos.is_dir() else []:
        if path not in used and path.is_relative_to(photos):
            stem = path.relative_to(photos).with_suffix("").as_posix()
            images.append(LabeledImage(finder.relative(path), path, None, parts.get(stem)))
    return tuple(images)


def _masks_below(folder: Path) -> list[Path]:
    masks = (
        [folder / name for name in below(folder, suffixes=(*MASK_SUFFIXES, ".jpg", ".jpeg"))]
        if folder.is_dir()
        else []
    )
    lossless = [path for path in masks if path.suffix.lower() in MASK_SUFFIXES]
    if not masks:
        raise DataError(f"{folder}: no masks; expected files ending in {', '.join(MASK_SUFFIXES)}")
    return lossless or masks  # JPEG alone: refused with the reason when they are read


def _listed_parts(base: Path) -> dict[str, PartName]:
    """Return the part of each id that the lists of VOC's layout name, where a list is that of a part."""
    found: dict[str, PartName] = {}
    for path in sorted((base / "ImageSets/Segmentation").glob("*.txt")):
        part = part_of(path.stem)
        if part is not None and path.stem.lower() not in ("trainval",):
            lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
            found |= {line.strip(): part for line in lines if line.strip()}
    return found


def _part_of_path(name: str) -> PartName | None:
    return part_of("/".join(name.split("/")[:-1]))
