"""Choose the classes of an imported data set, and what ground without a label is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gmtool.class_lists import BACKGROUND_NAMES, IGNORE_NAMES
from gmtool.classes import ClassSet, Color, voc_palette
from gmtool.errors import DataError, UsageError

Ground = Literal["background", "ignore"]
BACKGROUND = "background"
AMBIGUOUS_SHARE = 0.8
"""Share of pixels in shapes from which the rest may as well be gaps between them as background."""


@dataclass(frozen=True)
class ClassPlan:
    """Classes, and the class index of every label of the source."""

    classes: ClassSet
    index_of: Mapping[str, int]
    """Class index, or the ignore index, by label."""
    unknown: frozenset[str]
    """Labels that are no class; their pixels are ignored."""
    added: tuple[str, ...] = ()
    """Classes that the data set did not have before."""


def choose_ground(
    names: Iterable[str], *, has_ground: bool, covered_share: float, asked: Ground | None, ambiguous: str = ""
) -> tuple[Ground, str]:
    """Return what pixels without a label are, and why.

    Args:
        names: Labels of the source.
        has_ground: Whether every pixel has a label.
        covered_share: Share of pixels with a label, of labeled images.
        asked: The user's choice.
        ambiguous: Reason why the user has to choose, whatever else is known.

    Raises:
        UsageError: The user has to choose.
    """
    if asked is not None:
        return asked, "--unlabeled-is"
    if has_ground and not ambiguous:
        return "background", "the masks label every pixel"
    kinds = [name for name in names if name not in IGNORE_NAMES]
    if len(kinds) == 1 and kinds[0] not in BACKGROUND_NAMES and not ambiguous:
        return "background", f"{kinds[0]} is the only class"
    share = f"{100 * covered_share:.0f} %"
    if ambiguous:
        why = ambiguous
    elif any(name in BACKGROUND_NAMES for name in kinds):
        why = "there is a label for background too"
    elif covered_share >= AMBIGUOUS_SHARE:
        why = f"the labels cover {share} of the pixels"
    else:
        return "background", f"the labels cover {share} of the pixels"
    raise UsageError(
        f"is ground without a label background or not labeled? ({why}) give --unlabeled-is background, or "
        "--unlabeled-is ignore if it counts neither in training nor in scores"
    )


def plan_classes(
    names: Sequence[str],
    colors: Mapping[str, Color],
    *,
    ground: Ground,
    has_ground: bool,
    uses_background: bool,
    asked: ClassSet | None,
    existing: ClassSet | None,
) -> ClassPlan:
    """Return the classes of the data set and the index of each label.

    The classes of an earlier import keep their indices; new ones follow. Otherwise the order is that of the
    source, behind the background.

    Args:
        names: Labels of the source in its order.
        colors: Colours that the tool has, by label.
        ground: What pixels without a label are.
        has_ground: Whether every pixel has a label.
        uses_background: Whether the source has shapes of background.
        asked: Classes that the user named; other labels are unknown.
        existing: Classes of the data set that is updated.

    Raises:
        DataError: Fewer than two classes, or more than 255; or ground is background and the classes have none.
    """
    kept = [name for name in names if name not in (*IGNORE_NAMES, *BACKGROUND_NAMES)]
    is_named = any(name in BACKGROUND_NAMES for name in names)
    has_background = (ground == "background" and (is_named or not has_ground)) or uses_background
    base = existing or asked
    if base is None:
        classes = _make([*([BACKGROUND] if has_background else []), *kept], colors)
        added: tuple[str, ...] = ()
    elif asked is None:
        added = tuple(name for name in kept if name not in base.names)
        classes = _extend(base, added, colors) if added else base
    else:
        added = tuple(name for name in asked.names if name not in base.names)
        classes = _extend(base, added, dict(zip(asked.names, asked.palette, strict=True))) if added else base
    if has_background and classes.background is None:
        raise DataError(
            f"ground without a label is background, but the classes ({', '.join(classes.names[:5])}) have none: "
            'name the first class "background", or give --unlabeled-is ignore'
        )
    index_of = {name: index for index, name in enumerate(classes.names)}
    index_of |= dict.fromkeys(IGNORE_NAMES, classes.ignore_index)
    # Background of masks is ground; shapes of background are a class of their own
    no_ground = classes.background is None or (ground == "ignore" and not uses_background)
    background = classes.ignore_index if no_ground or classes.background is None else classes.background
    index_of |= dict.fromkeys(BACKGROUND_NAMES, background)
    unknown = frozenset(name for name in names if name not in index_of)
    return ClassPlan(classes, index_of | dict.fromkeys(unknown, classes.ignore_index), unknown, added)


def _make(names: list[str], colors: Mapping[str, Color]) -> ClassSet:
    if len(names) < 2:
        raise DataError(
            f"only the class {', '.join(names) or '(none)'}, but a data set has at least two: give --unlabeled-is "
            "background"
        )
    return ClassSet(
        names=tuple(names),
        palette=_palette(names, colors),
        raw_ids=tuple(range(len(names))),
        background=0 if names[0] == BACKGROUND else None,
    )


def _extend(classes: ClassSet, names: Sequence[str], colors: Mapping[str, Color]) -> ClassSet:
    """Return classes with more of them behind those that exist."""
    every = [*classes.names, *names]
    taken = set(classes.raw_ids)
    free = (value for value in range(len(every) + len(taken)) if value not in taken)
    return replace(
        classes,
        names=tuple(every),
        palette=(*classes.palette, *_palette(every, colors)[len(classes) :]),
        raw_ids=(*classes.raw_ids, *(next(free) for _ in names)),
    )


def _palette(names: Sequence[str], colors: Mapping[str, Color]) -> tuple[Color, ...]:
    """Return the tool's colours if every class but the background has one of its own, else VOC's."""
    own = [colors.get(name, (0, 0, 0) if name == BACKGROUND else None) for name in names]
    known = [color for color in own if color is not None]
    return tuple(known) if len(set(known)) == len(names) else voc_palette(len(names))
