"""Everything a training run depends on, as nested frozen dataclasses. `settings.py` fills and writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from gmtool.errors import ConfigError, did_you_mean

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "toy")
TIMM_PREFIX = "timm:"
LayoutName = Literal["voc", "cityscapes", "folder", "coco"]
MaskValues = Literal["index", "raw", "color"]
"""What the pixels of a mask file are: class indices (trainIds), raw ids (labelIds), or the classes' colours."""
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
PrecisionName = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class DataConfig:
    """Where the images are, and how a batch is drawn from them."""

    root: Path
    """Folder of the data set."""
    layout: LayoutName = "voc"
    """How images and masks lie in it: `voc`, `cityscapes`, `folder` or `coco`."""
    classes: str = "voc"
    """`voc`, `cityscapes`, `context`, a `classes.json` file, or the COCO annotations that list the categories."""
    labeled: Path | None = None
    """Split list of the labeled images; without it the layout's whole training set is labeled."""
    unlabeled: Path | None = None
    """Split list of the unlabeled images, or a plain folder of them; without it the rest of the training set."""
    val: Path | None = None
    """Split list of the validation images; without it the layout's own validation set."""
    mask_dir: str = "SegmentationClass"
    """Folder of the masks in layout `voc`."""
    train_list: str = "ImageSets/Segmentation/train.txt"
    """The training set's own list in layout `voc`, such as SBD's `ImageSets/Segmentation/trainaug.txt`."""
    val_list: str = "ImageSets/Segmentation/val.txt"
    """The validation set's own list in layout `voc`."""
    mask_values: MaskValues = "index"
    """Whether mask files hold class indices (trainIds), the class set's raw ids (labelIds, grey levels), or its
    colours. In layout `cityscapes` it also decides which of the two files is read."""
    images: str = "images/{id}.*"
    """Where the images of layout `folder` are: `{id}` is an image's name and may contain slashes, `{part}` a
    folder named train or val (also training, valid, validation), `.*` at the end any image suffix."""
    masks: str = "masks/{id}.png"
    """Where the mask of such an image is, with the same `{id}` and `{part}`."""
    train_annotations: str = "annotations/instances_train2017.json"
    """Annotations of the training images in layout `coco`."""
    val_annotations: str = "annotations/instances_val2017.json"
    """Annotations of the validation images in layout `coco`."""
    train_images: str = "train2017"
    """Folder of the training images in layout `coco`; also looked for below `images/`."""
    val_images: str = "val2017"
    """Folder of the validation images in layout `coco`; also looked for below `images/`."""
    exif: Literal["apply", "ignore"] = "apply"
    """Turn images as their EXIF orientation says, or leave them as they are stored: whichever way the masks are.
    `gmtool predict --exif` is the same for a trained model."""
    bits: Annotated[int, Ge(8), Le(16)] = 16
    """Bits that the values of 16-bit grey images use, such as 12: 2 ** bits - 1 becomes white. `gmtool predict
    --bits` is the same for a trained model."""
    crop_px: Annotated[int, Ge(8)] = 321
    """Height and width of a training crop, pixels."""
    scale_min: Annotated[float, Gt(0)] = 0.5
    """Smallest random scale."""
    scale_max: Annotated[float, Gt(0)] = 2.0
    """Largest random scale."""
    rotation_deg: Annotated[float, Ge(0), Le(180)] = 10.0
    """Largest random rotation to either side, degrees."""
    flip: bool = True
    """Mirror half of the crops, left to right."""
    labeled_batch: Annotated[int, Ge(2)] = 6
    """Labeled images a step; at least 2, since batch statistics of one pooled value do not exist."""
    unlabeled_batch: Annotated[int, Ge(2)] = 6
    """Unlabeled images a step."""
    workers: Annotated[int, Ge(0)] | None = None
    """Processes that decode and augment; 0 does it in the training process; by default one a core, at most 8."""
    cache: Literal["none", "ram"] = "none"
    """`ram` decodes every image and mask once, before training, into memory that all processes share."""


@dataclass(frozen=True)
class ModelConfig:
    """The network (METHOD: encoder, pyramid pooling, two MITrans modules, image classifier)."""

    encoder: str = "resnet50"
    """A ResNet of torchvision, `toy` (four narrow stages for tests and the demo), or `timm:NAME`: any network of
    timm that gives a feature pyramid and takes an output stride."""
    encoder_weights: str = "imagenet"
    """`imagenet` (torchvision's or timm's, downloaded once), `none`, or a .safetensors or .pth file."""
    output_stride: Literal[8, 16] = 8
    """Input size over the size of the encoder's last features."""
    decoder_channels: Annotated[int, Ge(16)] = 512
    """Channels after pyramid pooling; the upsampling stages have a quarter and an eighth of them."""
    non_local_1: bool = True
    """Non-local block in the first MITrans module (off: the paper's "without MITrans")."""
    non_local_2: bool = False
    """Non-local block in the second MITrans module, at twice the resolution: four times the positions."""

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS and not self.encoder.startswith(TIMM_PREFIX):
            known = did_you_mean(self.encoder, [*ENCODERS, "timm:NAME"])
            raise ConfigError(f"setting model.encoder: got {self.encoder!r}{known}")


@dataclass(frozen=True)
class MethodConfig:
    """What a training step computes. Equations are those of the GuidedMix-Net paper."""

    name: Literal["guidedmix", "supervised"] = "guidedmix"
    """`supervised` uses the labeled images alone."""
    pairing: Literal["similar", "random"] = "similar"
    """Partner of an image: nearest by pooled encoder features (Eq. 3), or drawn at random."""
    lambda_bound: Annotated[float, Gt(0), Le(0.5)] = 0.5
    """The mixing coefficient is redrawn until below this."""
    decoupling: Literal["soft", "hard"] = "soft"
    """Subtract the labeled prediction times lambda (Eq. 8), or whole (Eq. 7)."""
    normalize: bool = False
    """Divide the softly decoupled mask by 1 - lambda, so that it sums to one again."""
    detach: Literal["pseudo", "direct", "none"] = "pseudo"
    """Which side of the unlabeled loss (Eq. 10) is a constant: the decoupled pseudo mask, the direct
    prediction, or neither."""
    classification: bool = True
    """Loss of the image classifier on the labeled images."""
    labeled_decoupling: bool = True
    """Loss of mixed labeled pairs (Eq. 12)."""
    hardest: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of the labeled pixels, those with the largest cross-entropy, that count (OHEM); 1 for all."""
    balance: Annotated[float, Ge(0), Le(1)] = 0.0
    """Weight of a pixel in L_ce and L_usup: (share of its class in the labeled pixels) ** -balance, 1 in the
    mean. 0: all pixels count alike; 1: all classes do."""
    omega_max: Annotated[float, Ge(0)] = 30.0
    """Final weight of the unlabeled loss, for means over batch, classes and pixels."""
    warmup_fraction: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Share of the iterations that use labeled images alone."""
    ramp_fraction: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of the iterations after warm-up over which the weight rises to `omega_max`."""
    batch_norm: Literal["separate", "joint"] = "separate"
    """Labeled and unlabeled images in forwards of their own, or in one with shared batch statistics."""
    mixed_statistics: bool = False
    """Whether mixed and strongly changed images update the running statistics of batch normalisation."""
    pseudo: Literal["decoupled", "direct", "mean"] = "decoupled"
    """What the pseudo mask of an unlabeled image is: decoupled from a mixed one, the prediction for itself, or the
    mean of the two: sure only where both say the same."""
    teacher: Literal["student", "average"] = "student"
    """Which weights predict pseudo masks: those in training, or their running mean (`optim.ema_decay`)."""
    view: Literal["weak", "strong"] = "weak"
    """What the network is trained on: the unlabeled image as it is, or with other colours, blurred, and with a
    box of another one."""
    colors: Annotated[float, Ge(0), Le(1)] = 1.0
    """In the strong view, share of the images whose colours change (a frozen encoder never learns them)."""
    cutmix: Annotated[float, Ge(0), Le(1)] = 0.5
    """In the strong view, share of the images that get a box of another one."""
    paste: Annotated[float, Ge(0), Le(1)] = 0.0
    """In the strong view, share of the images that get a box of a labeled one, with its true mask."""
    unlabeled_loss: Literal["squared", "cross-entropy", "soft-cross-entropy"] = "squared"
    """Squared difference of probabilities (Eq. 10), cross-entropy with the likeliest class, or with the whole
    pseudo mask, in which a rare class keeps the share that it has where another one is likelier."""
    renormalize: bool = False
    """Clip the pseudo mask at zero and let it sum to one."""
    confidence: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Pixels whose pseudo mask has no class of at least this count for nothing in the unlabeled loss."""
    confidence_weighting: bool = False
    """Weight each pixel of the unlabeled loss by the largest value of its pseudo mask."""
    margin: bool = True
    """Whether pixels of unlabeled crops that lie outside of the image count."""


@dataclass(frozen=True)
class OptimConfig:
    """Stochastic gradient descent with a polynomial schedule."""

    iterations: Annotated[int, Ge(1)] = 40_000
    """Optimiser steps."""
    lr: Annotated[float, Gt(0)] = 1e-3
    """Learning rate of the encoder at the start."""
    head_lr_multiplier: Annotated[float, Gt(0)] = 10.0
    """Learning rate of everything but the encoder, as a multiple of `lr`."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    poly_power: Annotated[float, Gt(0)] = 0.9
    """lr(i) = lr (1 - i / iterations) ** poly_power."""
    freeze_encoder: bool = False
    """Whether the encoder stays as it was loaded, its batch statistics included, and the rest alone learns."""
    accumulation: Annotated[int, Ge(1)] = 1
    """Parts in which a step's batch is computed, one after another: the batch stays what `data` says, the memory
    is that of a part. Batch statistics and pairs are those of a part."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Decay of a running mean of the weights that is validated, saved and exported in their place; 0 for none."""


@dataclass(frozen=True)
class RunConfig:
    """The machine, the seed, and how often a run looks at itself."""

    seed: Annotated[int, Ge(0)] = 0
    device: DeviceName = "auto"
    precision: PrecisionName = "auto"
    """Lightning Fabric's name; `auto` takes bf16-mixed where the device computes it natively."""
    log_every: Annotated[int, Ge(1)] = 10
    """Optimiser steps between two log events."""
    validations: Annotated[int, Ge(1)] = 10
    """Validations in a run, evenly spaced; the last follows the last step."""
    save_every: Annotated[int, Ge(1)] = 500
    """Optimiser steps between two saves of the last checkpoint; every validation saves too."""
    save_state: bool = True
    """Whether checkpoints hold what `--resume` needs (momentum and more); without it they are half as large."""
    keep_last: Annotated[int, Ge(2)] = 2
    """Checkpoints that are kept, the newest ones, beside the best."""
    patience: Annotated[int, Ge(1)] | None = None
    """Validations without a better score after which the run ends; by default it never ends early."""
    max_skipped: Annotated[int, Ge(0)] = 10
    """Steps in a row that may be skipped because their gradient is not finite; one more ends the run."""
    channels_last: bool = False
    """Whether images and weights lie in memory channel by channel for each pixel, as tensor cores read them."""
    compile: bool = False
    """Whether torch.compile translates the network; the first steps then take minutes."""
    activation_checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of kept: less memory, more time."""


@dataclass(frozen=True)
class TrainConfig:
    """A whole run. `config.toml` in the run folder holds it before the first step."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
