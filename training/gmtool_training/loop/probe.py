"""A run whose method is the probe: fitted, validated and saved once."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from gmtool.artifact.run_config import save_run_config
from gmtool.config import TrainConfig
from gmtool.console import remark
from gmtool.files import write_atomically
from gmtool.nn.model import GuidedMixNet
from gmtool.nn.saving import save_checkpoint
from gmtool.report.metrics import mean_iou
from gmtool_training.loop.fit import FitResult
from gmtool_training.loop.prepare import RunContext
from gmtool_training.loop.progress import TrainingProgress
from gmtool_training.loop.validate import validate
from gmtool_training.probe.encoders import choose_encoder, with_encoder_of
from gmtool_training.probe.input_scale import choose_input_scale
from gmtool_training.probe.run import check_probe, fit_probe
from gmtool_training.watch.examples import WorstImages
from gmtool_training.watch.log import RunLog

ENCODERS_NAME = "encoders.md"
"""Table of the encoders that were compared, in the run folder."""


def run_probe(run: RunContext, network: GuidedMixNet) -> FitResult:
    """Fit the probe, validate it, and save it as the last and best checkpoint.

    Raises:
        ConfigError: The settings do not fit the probe.
    """
    check_probe(run.config, labeled=len(run.data.labeled.samples), processes=run.machine.processes)
    started = time.monotonic()
    network, config = _chosen_network(run, network)
    if config != run.config:
        save_run_config(run.run_dir, config)
    machine, data, classes, read = run.machine, run.data, run.classes, run.readers
    # Fit, validate, save
    fitted = fit_probe(network, config, data, classes, read, started=started)
    worst = WorstImages(data.val)
    remark(f"validating on {len(data.val.samples)} images")
    matrix = validate(
        machine,
        network,
        data.val,
        classes=classes,
        config=config.data,
        before_image=lambda: None,
        read=read.val,
        worst=worst,
    )
    miou = mean_iou(matrix)
    progress, _ = TrainingProgress(iteration=fitted.steps).after_validation(None if math.isnan(miou) else miou)
    with RunLog(run.run_dir, iterations=fitted.steps) as log:
        log.event("val", fitted.steps, {"miou": progress.best_miou, "best": progress.best_miou})
    save_checkpoint(
        run.run_dir,
        ["last", "best"],
        network,
        iteration=fitted.steps,
        miou=progress.best_miou,
        model=replace(config.model, decoder_channels=fitted.channels),
        classes=classes,
        labeled_sha256=data.labeled.sha256,
    )
    return FitResult(progress, matrix, worst=worst.examples)


def _chosen_network(run: RunContext, network: GuidedMixNet) -> tuple[GuidedMixNet, TrainConfig]:
    """Return the network with the best of several encoders, or of several input scales, in evaluation mode."""
    config, device = run.config, run.machine.device
    if config.probe.encoders:
        network, model, table = choose_encoder(config, run.data, run.classes, run.readers, device)
        write_atomically(run.run_dir / ENCODERS_NAME, table)
        return network, replace(config, model=model)
    network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    scale = choose_input_scale(network, config, run.data, run.classes, run.readers)
    if scale == config.model.input_scale:
        return network, config
    model = replace(config.model, input_scale=scale)
    return with_encoder_of(network, model, run.classes), replace(config, model=model)
