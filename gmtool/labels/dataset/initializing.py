"""Lists and classes of a folder of images of which some have masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmtool.config import DataConfig
from gmtool.data.layouts import open_layout
from gmtool.data.recognize import recognize_kind
from gmtool.data.samples import Sample, mask_file
from gmtool.data.splits import format_split
from gmtool.data.splitting import Candidate, choose_labeled
from gmtool.errors import DataError
from gmtool.files import write_atomically
from gmtool.labels.dataset.proposal import Progress, Proposal, propose_classes

CLASSES, LABELED, UNLABELED, VAL = "classes.json", "labeled.txt", "unlabeled.txt", "val.txt"


@dataclass(frozen=True)
class Initialized:
    """Result of `initialize`."""

    root: Path
    proposal: Proposal
    labeled: int
    unlabeled: int
    val: int
    """Images with masks for validation: of val.txt, or of the folder `val`."""
    lists: tuple[str, ...]
    """Written lists."""

    def train_line(self) -> list[str]:
        """Return the words of the command that trains on the folder."""
        words = ["gmtool", "train", str(self.root)]
        for name, option in ((UNLABELED, "--unlabeled"), (VAL, "--val")):
            if name in self.lists:
                words += [option, str(self.root / name)]
        values = self.proposal.values
        return words if values == "index" else [*words, "--set", f"data.mask_values={values}"]


def initialize(
    root: Path,
    *,
    names: Sequence[str] | None,
    val: float,
    group: str | None,
    seed: int,
    progress: Progress,
) -> Initialized:
    """Propose classes from the masks below `root/masks`, and list the images of `root/images`.

    Images below `images/val` are for validation; without that folder, a seeded share of the images with masks is,
    with every class in the training part where possible. Nothing that exists is overwritten.

    Args:
        root: Folder with `images/` and `masks/`.
        names: See `propose_classes`.
        val: Share of the images with masks for validation, in (0, 1).
        group: Regular expression on ids; images that match alike stay in one part.
        seed: Seed of the choice.
        progress: Shows the masks that are read.

    Raises:
        DataError: Another layout, fewer than two masks, masks that cannot be used, or a file that exists.
        UsageError: Another number of names than of classes, or a pattern that does not match.
    """
    existing = [name for name in (CLASSES, LABELED, UNLABELED, VAL) if (root / name).exists()]
    if existing:
        raise DataError(f"{root / existing[0]} exists already: remove it, or use it with gmtool train {root}")
    # Images with and without masks
    kind, reason = recognize_kind(root)
    if kind != "folder":
        raise DataError(
            f"{root} has {reason}, which is layout {kind}: its own lists are used; gmtool train {root}"
        )
    layout = open_layout(DataConfig(root=root, layout="folder"))
    with_mask: list[Sample] = []
    without: list[Sample] = []
    for path, name in sorted(layout.ids.items(), key=lambda item: item[1]):
        mask = layout.mask_of(path)
        found = mask_file(mask) if isinstance(mask, Path) else None
        has_mask = found is not None and found.is_file()
        (with_mask if has_mask else without).append(Sample(name, path, found if has_mask else None))
    if len(with_mask) < 2:
        raise DataError(
            f"{root}: {len(with_mask)} of {len(layout.ids)} images have a mask below {layout.mask_dir}; "
            "expected two or more, one to train and one to validate: images/x.jpg belongs to masks/x.png"
        )
    masks = [sample.mask for sample in with_mask if isinstance(sample.mask, Path)]
    proposal = propose_classes(masks, names=names, progress=progress)
    # Validation part
    candidates = [Candidate(sample, present) for sample, present in zip(with_mask, proposal.present, strict=True)]
    in_val = {one.sample.id for one in candidates if one.sample.id.startswith("val/")}
    lists = {}
    if not in_val:
        count = min(len(candidates) - 1, max(1, round((1 - val) * len(candidates))))
        chosen = choose_labeled(candidates, count, seed=seed, group_pattern=group)
        in_val = {sample.id for sample in chosen.unlabeled}
        lists[VAL] = [sample.id for sample in chosen.unlabeled]
    lists[LABELED] = [sample.id for sample in with_mask if sample.id not in in_val]
    lists[UNLABELED] = [sample.id for sample in without if not sample.id.startswith("val/")]
    # Write
    for name, listed in lists.items():
        if listed:
            write_atomically(root / name, format_split(listed))
    write_atomically(root / CLASSES, json.dumps(proposal.classes.to_dict(), indent=1) + "\n")
    written = tuple(name for name, listed in lists.items() if listed)
    return Initialized(root, proposal, len(lists[LABELED]), len(lists[UNLABELED]), len(in_val), written)
