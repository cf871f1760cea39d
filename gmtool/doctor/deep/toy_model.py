"""Deep check that makes toy data, a short run on the processor, and its models in three precisions."""

from __future__ import annotations

from gmtool.artifact.spec import Precision
from gmtool.config import TrainConfig
from gmtool.data.toy import ToyConfig, generate_toy
from gmtool.doctor.deep.result import Checked, Setting
from gmtool.settings import Settings, build_config

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
TOY = ToyConfig(labeled=8, unlabeled=12, val=4, height_px=48, width_px=64)
STEPS = 60
"""Steps of the run, after which the network knows most of its classes."""


def check(setting: Setting) -> Checked:
    """Generate data, train, and export in all precisions."""
    import torch
    from gmtool_export.run import ExportOptions, export_run
    from gmtool_training.loop.run import train

    torch.set_num_threads(1)  # for so small a network more are no faster, and many are slower
    config = toy_config(setting, {"optim.iterations": STEPS, "method.balance": 0.5})
    report = train(config, setting.run).report
    for precision in PRECISIONS:
        # Without its proof, which takes most of the time: another check compares the masks
        export_run(setting.run, options=ExportOptions(precision=precision, symmetric=True, parity=False))
    text = f"{STEPS} steps on the processor, mIoU {report.miou:.1%}; ONNX models in {', '.join(PRECISIONS)}"
    return Checked(text, figures={"miou": report.miou})


def toy_config(setting: Setting, changes: Settings) -> TrainConfig:
    """Return a configuration of a run on toy data, which is generated if it does not exist yet."""
    generate_toy(setting.data, TOY)
    settings: Settings = {
        "data.root": setting.data,
        "data.classes": str(setting.data / "classes.json"),
        "data.labeled": setting.data / "splits" / "labeled.txt",
        "data.crop_px": 32,
        "data.labeled_batch": 4,
        "data.unlabeled_batch": 4,
        "data.workers": 0,
        "model.encoder": "toy",
        "model.encoder_weights": "none",
        "model.decoder_channels": 32,
        "optim.lr": 0.02,
        "optim.head_lr_multiplier": 1.0,
        "run.device": "cpu",
        "run.precision": "32-true",
        "run.validations": 1,
    }
    return build_config(settings, changes)
