"""Configuration of a training run as nested frozen dataclasses; `settings.py` reads and writes it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from gmtool.errors import ConfigError, did_you_mean

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "toy")
TIMM_PREFIX = "timm:"
INPUT_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
LayoutName = Literal["voc", "cityscapes", "folder", "coco"]
MaskValues = Literal["index", "raw", "color"]
"""Encoding of mask files: class indices (trainIds), raw ids (labelIds), or colours of the classes."""
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
PrecisionName = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class DataConfig:
    """Data set, augmentation and batches."""

    root: Path
    """Folder of the data set."""
    layout: LayoutName = "voc"
    """Folder structure: `voc`, `cityscapes`, `folder` or `coco`."""
    classes: str = "voc"
    """Class set: `voc`, `cityscapes`, `context`, a `classes.json` file, or a COCO annotation file."""
    labeled: Path | None = None
    """Split list of the labeled images; default: the whole training set of the layout."""
    unlabeled: Path | None = None
    """Split list or folder of the unlabeled images; default: the training images that are not labeled."""
    val: Path | None = None
    """Split list of the validation images; default: the validation set of the layout."""
    mask_dir: str = "SegmentationClass"
    """Folder of the masks in layout `voc`."""
    train_list: str = "ImageSets/Segmentation/train.txt"
    """List of the training set in layout `voc`, such as SBD's `ImageSets/Segmentation/trainaug.txt`."""
    val_list: str = "ImageSets/Segmentation/val.txt"
    """List of the validation set in layout `voc`."""
    mask_values: MaskValues = "index"
    """Encoding of mask files: `index` (class indices, trainIds), `raw` (raw ids of the class set, labelIds) or
    `color` (colours of the class set). In layout `cityscapes` it selects labelTrainIds or labelIds files."""
    images: str = "images/{id}.*"
    """Path template of the images in layout `folder`: `{id}` is the name of an image and may contain slashes,
    `{part}` a folder named train or val (also training, valid, validation), `.*` any image suffix."""
    masks: str = "masks/{id}.png"
    """Path template of the masks in layout `folder`, with the same `{id}` and `{part}`."""
    train_annotations: str = "annotations/instances_train2017.json"
    """Annotations of the training images in layout `coco`."""
    val_annotations: str = "annotations/instances_val2017.json"
    """Annotations of the validation images in layout `coco`."""
    train_images: str = "train2017"
    """Folder of the training images in layout `coco`, in the root or in `images/`."""
    val_images: str = "val2017"
    """Folder of the validation images in layout `coco`, in the root or in `images/`."""
    exif: Literal["apply", "ignore"] = "apply"
    """Apply or ignore the EXIF orientation of images, to match the masks. For a trained model: `gmtool predict
    --exif`."""
    bits: Annotated[int, Ge(8), Le(16)] = 16
    """Used bits of 16-bit grey images, such as 12: 2 ** bits - 1 becomes white. For a trained model: `gmtool
    predict --bits`."""
    crop_px: Annotated[int, Ge(8)] = 321
    """Height and width of a training crop, in pixels."""
    scale_min: Annotated[float, Gt(0)] = 0.5
    """Smallest random scale factor."""
    scale_max: Annotated[float, Gt(0)] = 2.0
    """Largest random scale factor."""
    rotation_deg: Annotated[float, Ge(0), Le(180)] = 10.0
    """Largest random rotation to either side, in degrees."""
    flip: bool = True
    """Flip half of the crops horizontally."""
    labeled_batch: Annotated[int, Ge(2)] = 6
    """Labeled images a step; at least 2, since batch normalisation of one pooled value is not defined."""
    unlabeled_batch: Annotated[int, Ge(2)] = 6
    """Unlabeled images a step."""
    workers: Annotated[int, Ge(0)] | None = None
    """Worker processes that decode and augment; 0: the training process; default: one a core, at most 8 and as
    many as there is memory for."""
    cache: Literal["none", "ram"] = "none"
    """`ram`: decode all images and masks before training into memory shared by all processes."""
    kept_crops: Annotated[int, Ge(0)] = 0
    """Crops of each labeled image that are drawn once and come again, with their features kept in memory; 0: a new
    crop each time. For `optim.freeze_encoder` with `method.name=supervised`, since mixed images are always new."""


@dataclass(frozen=True)
class ModelConfig:
    """Network: encoder, pyramid pooling, two MITrans modules, image classifier (docs/method.md, section 1)."""

    encoder: str = "resnet50"
    """A ResNet of torchvision, `toy` (four narrow stages for tests and the demo), or `timm:NAME`: any network of
    timm that gives a feature pyramid, or a plain vision transformer such as DINOv2's or DINOv3's."""
    encoder_weights: str = "imagenet"
    """`imagenet` (torchvision's or timm's, downloaded once), `none`, or a .safetensors or .pth file."""
    init: str | None = None
    """Earlier run, or a .json in its checkpoints, whose weights training starts from, instead of
    `encoder_weights`; classes are matched by name."""
    output_stride: Literal[8, 16, 32] | None = None
    """Input size over the size of the encoder's last features. By default 8, the paper's, of an encoder that can
    choose; else the encoder's own (32 of many pyramids, 14 or 16 of a plain vision transformer)."""
    input_scale: float = 1.0
    """Factor by which the network scales images before the encoder, one of `INPUT_SCALES`: 2 for thin objects in
    small images, below 1 for large photos. Everything else takes images as they are."""
    decoder: Literal["guidedmix", "pyramid"] = "guidedmix"
    """`guidedmix` is the paper's: pyramid pooling and two MITrans modules. `pyramid` projects and sums all levels
    of the encoder; it takes plain vision transformers too."""
    decoder_channels: Annotated[int, Ge(0)] = 512
    """Decoder `guidedmix`: channels after pyramid pooling, at least 16; upsampling stages have a quarter and an
    eighth of them. Decoder `pyramid`: width of the hidden layer; 0 for a linear classifier."""
    non_local_1: bool = True
    """Non-local block in MITrans 1; false: the paper's "without MITrans"."""
    non_local_2: bool = False
    """Non-local block in MITrans 2, with four times the positions of MITrans 1."""

    def __post_init__(self) -> None:
        _refuse_unknown_encoder("model.encoder", self.encoder)
        if self.input_scale not in INPUT_SCALES:
            expected = ", ".join(map(str, INPUT_SCALES))
            raise ConfigError(f"setting model.input_scale: got {self.input_scale}; expected one of {expected}")
        if self.decoder == "guidedmix" and self.decoder_channels < 16:
            raise ConfigError(f"setting model.decoder_channels: got {self.decoder_channels}; expected at least 16")


@dataclass(frozen=True)
class MethodConfig:
    """Training step: GuidedMix-Net and its variants (equation numbers: the paper; docs/method.md, section 2)."""

    name: Literal["guidedmix", "supervised", "probe"] = "guidedmix"
    """`supervised` uses the labeled images alone; `probe` fits a small classifier to a frozen encoder."""
    pairing: Literal["similar", "random"] = "similar"
    """Labeled partner of an image: nearest by pooled encoder features (Eq. 3), or random."""
    lambda_bound: Annotated[float, Gt(0), Le(0.5)] = 0.5
    """Upper bound of the mixing coefficient, exclusive."""
    decoupling: Literal["soft", "hard"] = "soft"
    """Subtract lambda times the labeled prediction (`soft`, Eq. 8), or the labeled prediction (`hard`, Eq. 7)."""
    normalize: bool = False
    """Divide the soft pseudo mask by 1 - lambda, so that it sums to 1."""
    detach: Literal["pseudo", "direct", "none"] = "pseudo"
    """Side of the unlabeled loss (Eq. 10) without gradient: pseudo mask, direct prediction, or none."""
    classification: bool = True
    """Use the image classification loss L_cla on labeled images."""
    labeled_decoupling: bool = True
    """Use the loss L_dec of mixed labeled pairs (Eq. 12)."""
    balance: Annotated[float, Ge(0), Le(1)] = 0.0
    """Exponent of the class weights in L_ce and L_usup: (share of the class in the labeled pixels) ** -balance,
    scaled to mean 1 over pixels. 0: all pixels weigh the same; 1: all classes do."""
    omega_max: Annotated[float, Ge(0)] = 30.0
    """Final weight omega of the unlabeled loss, a mean over batch, classes and pixels."""
    warmup_fraction: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Share of the iterations in warm-up, which uses labeled images only."""
    ramp_fraction: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of the iterations after warm-up in which omega rises to `omega_max`."""
    batch_norm: Literal["separate", "joint"] = "separate"
    """`separate`: one forward pass for labeled and one for unlabeled images; `joint`: one pass for both."""
    mixed_statistics: bool = False
    """Update the running statistics of batch normalisation with mixed and strong images too."""
    pseudo: Literal["decoupled", "direct"] = "decoupled"
    """Pseudo mask of an unlabeled image: decoupled from a mixed image (paper), or the direct prediction."""
    teacher: Literal["student", "average"] = "student"
    """Weights that predict pseudo masks: those in training, or their moving average (`optim.ema_decay`)."""
    teacher_run: str | None = None
    """Run, or a .json in its checkpoints, whose network predicts the pseudo masks instead: a larger one, say.
    Its classes are matched by name."""
    view: Literal["weak", "strong"] = "weak"
    """Training view of unlabeled images: unchanged, or with colour jitter, blur and boxes of other images."""
    cutmix: Annotated[float, Ge(0), Le(1)] = 0.5
    """Share of the images with a box of another unlabeled image in the strong view (CutMix)."""
    unlabeled_loss: Literal["squared", "cross-entropy"] = "squared"
    """Squared difference of probabilities (Eq. 10), or cross-entropy with the likeliest class."""
    confidence: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Threshold: pixels whose largest pseudo-mask value is below it have weight 0 in the unlabeled loss."""
    margin: bool = True
    """Count pixels of unlabeled crops outside of the image."""


@dataclass(frozen=True)
class ProbeConfig:
    """The probe (`method.name=probe`): a small classifier of frozen features, and its self-training."""

    encoders: tuple[str, ...] = ()
    """Candidates for `model.encoder`; labeled images kept out of the fit decide. By default that one alone."""
    input_scales: tuple[float, ...] = (1.0,)
    """Candidates for `model.input_scale`; with several, labeled images kept out of the fit decide."""
    scales: tuple[float, ...] = (0.7, 1.0, 1.4)
    """Scales at which features are computed, beside `model.input_scale`; each is mirrored too."""
    labeled_pixels: Annotated[int, Ge(1)] = 400
    """Pixels of a labeled image, mean over the images; classes are drawn by their weights."""
    unlabeled_pixels: Annotated[int, Ge(1)] = 200
    """Pixels of an unlabeled image."""
    head: Literal["auto", "linear", "hidden"] = "auto"
    """Multinomial regression, one hidden layer of `model.decoder_channels`, or what kept-out labels prefer."""
    steps: Annotated[int, Ge(1)] = 500
    """Optimiser steps of one fit of the hidden layer."""
    rounds: Annotated[int, Ge(0)] = 4
    """Rounds of self-training on the unlabeled images; 0 for labels alone."""
    threshold: Annotated[float, Ge(0), Lt(1)] | None = None
    """Pseudo labels of less confident pixels do not count. By default labeled images kept out of the fit decide
    between the surest pixels of each class, r / (rounds + 1) of them in round r, and all above the lowest of 0.6,
    0.7, 0.8, 0.9 and 0.95 above which 9 in 10 pseudo labels are right."""
    weight: Annotated[float, Gt(0), Lt(1)] = 0.5
    """Share of the unlabeled pixels in the loss of a round."""
    balance: Annotated[float, Ge(0), Le(1)] = 0.5
    """Weight of a pixel: (share of its class) ** -balance."""
    minutes: Annotated[float, Gt(0)] | None = None
    """Minutes that the whole should take on a machine that does nothing else: fewer unlabeled images and views are
    taken then. By default all."""

    def __post_init__(self) -> None:
        for name in self.encoders:
            _refuse_unknown_encoder("probe.encoders", name)


@dataclass(frozen=True)
class OptimConfig:
    """Stochastic gradient descent or AdamW with a polynomial schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    """`sgd`: the paper's, with momentum. `adamw`: Adam with decoupled weight decay (Loshchilov and Hutter, 2019);
    `lr` and `weight_decay` are other ones then, such as 1e-4 and 0.01."""
    iterations: Annotated[int, Ge(1)] = 40_000
    """Optimiser steps."""
    lr: Annotated[float, Gt(0)] = 1e-3
    """Initial learning rate of the encoder."""
    head_lr_multiplier: Annotated[float, Gt(0)] = 10.0
    """Learning rate of all other layers, as a multiple of `lr`."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Of `sgd`."""
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.999)
    """Of `adamw`: decay of the mean of the gradients, and of the mean of their squares."""
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    """`sgd`: added to the gradient, times the weights. `adamw`: weights shrink by `lr` times this a step."""
    poly_power: Annotated[float, Gt(0)] = 0.9
    """lr(i) = lr (1 - i / iterations) ** poly_power."""
    freeze_encoder: bool = False
    """Keep the encoder's weights and batch statistics fixed."""
    accumulation: Annotated[int, Ge(1)] = 1
    """Gradient accumulation: parts of a batch, computed one after another to save memory. Batch statistics and
    pairs are taken within a part."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Decay of the exponential moving average of the weights, which is validated, saved and exported; 0: off."""

    def __post_init__(self) -> None:
        unused = {"sgd": "betas", "adamw": "momentum"}[self.name]
        default = {each.name: each.default for each in fields(self)}[unused]
        if getattr(self, unused) != default:
            other = "adamw" if self.name == "sgd" else "sgd"
            raise ConfigError(
                f"setting optim.{unused}: got {getattr(self, unused)}, but optim.name={self.name} has none: leave "
                f"it out, or --set optim.name={other}"
            )


@dataclass(frozen=True)
class RunConfig:
    """Device, precision, seed, and intervals of logging, validation and saving."""

    seed: Annotated[int, Ge(0)] = 0
    device: DeviceName = "auto"
    precision: PrecisionName = "auto"
    """`32-true`, `bf16-mixed`, or `16-mixed` with a loss scale; `auto`: bf16-mixed if native to the device,
    16-mixed on V100 and T4, else 32-true."""
    log_every: Annotated[int, Ge(1)] = 10
    """Optimiser steps between two log events."""
    validations: Annotated[int, Ge(1)] = 10
    """Number of validations, evenly spaced; the last one follows the last step."""
    val_limit: Annotated[int, Ge(0)] | None = None
    """Images of each validation but the last, which takes all; 0: all. By default as many as cost about a tenth of
    the training time."""
    save_every: Annotated[int, Ge(1)] = 500
    """Optimiser steps between two saves of the last checkpoint; it is also saved after each validation."""
    save_state: bool = True
    """Save the training state for `--resume` (optimiser and more), which doubles the size of a checkpoint."""
    keep_last: Annotated[int, Ge(2)] = 2
    """Number of newest checkpoints to keep, besides the best."""
    patience: Annotated[int, Ge(1)] | None = None
    """Early stopping: validations without a better score after which the run ends; default: off."""
    max_skipped: Annotated[int, Ge(0)] = 10
    """Consecutive steps that may be skipped for non-finite gradients; one more ends the run."""
    channels_last: bool | None = None
    """Use the channels-last memory format, which tensor cores read faster; None: on a card in mixed precision."""
    compile: bool = False
    """Use torch.compile; the first steps then take minutes."""
    cuda_graph: bool = True
    """On a card, start a step by one call, as a CUDA graph, instead of kernel by kernel. Not with several
    processes, accumulation, compile, activation checkpointing or kept crops, nor where memory does not suffice."""
    tracker: Literal["none", "wandb", "mlflow"] = "none"
    """Experiment tracker that receives settings, curves and final figures: Weights & Biases, or MLflow."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, more time."""


def _refuse_unknown_encoder(setting: str, name: str) -> None:
    if name not in ENCODERS and not name.startswith(TIMM_PREFIX):
        known = did_you_mean(name, [*ENCODERS, "timm:NAME"])
        raise ConfigError(f"setting {setting}: got {name!r}{known}")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run, saved as `config.toml` in the run folder before the first step."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not self.data.kept_crops:
            return
        needed = {
            "optim.freeze_encoder=true": self.optim.freeze_encoder,
            "method.name=supervised": self.method.name == "supervised",
        }
        for setting, is_set in needed.items():
            if not is_set:
                raise ConfigError(f"setting data.kept_crops: got {self.data.kept_crops}; needs --set {setting}")
