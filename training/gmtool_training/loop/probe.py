"""A run whose method is the probe: fitted, validated and saved once; its choices and times are recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from gmtool.artifact.run_config import save_run_config
from gmtool.artifact.run_record import Choice, read_record, save_record
from gmtool.config import TrainConfig
from gmtool.console import remark
from gmtool.files import write_atomically
from gmtool.nn.model import GuidedMixNet
from gmtool.nn.saving import save_checkpoint
from gmtool.report.metrics import Int64Array
from gmtool_training.loop.fit import FitResult, scores
from gmtool_training.loop.prepare import RunContext
from gmtool_training.loop.progress import TrainingProgress
from gmtool_training.loop.validate import validate_decoders
from gmtool_training.pictures.pairs import PICTURE_NAME
from gmtool_training.pictures.worst import draw_worst
from gmtool_training.probe.collect import is_bf16
from gmtool_training.probe.encoders import choose_encoder, with_encoder_of
from gmtool_training.probe.input_scale import choose_input_scale
from gmtool_training.probe.pictures import draw_unlabeled
from gmtool_training.probe.run import ProbeResult, check_probe, fit_probe
from gmtool_training.watch.examples import ValidationImages
from gmtool_training.watch.log import WORST, RunLog
from gmtool_training.watch.stages import Stages

ENCODERS_NAME = "encoders.md"
"""Table of the encoders that were compared, in the run folder."""


def run_probe(run: RunContext, network: GuidedMixNet, *, started: float) -> FitResult:
    """Fit the probe, validate it, and save it as the last and best checkpoint.

    Args:
        run: Settings, folder, device, data.
        network: With the decoder `pyramid`.
        started: When the run began, `time.monotonic`.

    Raises:
        ConfigError: The settings do not fit the probe.
    """
    check_probe(run.config, labeled=len(run.data.labeled.samples), processes=run.machine.processes)
    stages = Stages()
    network, config, choices = _chosen_network(run, network, stages)
    if config != run.config:
        save_run_config(run.run_dir, config)
    machine, data, classes, read = run.machine, run.data, run.classes, run.readers
    # Fit, validate, save
    fitted = fit_probe(network, config, data, classes, read, started=started, stages=stages)
    seen = ValidationImages(data.val)
    remark(f"validating on {len(data.val.samples)} images")
    with stages("validation"):
        matrices = validate_decoders(
            machine,
            network,
            fitted.decoders,
            data.val,
            classes=classes,
            config=config.data,
            before_image=lambda: None,
            read=read.val,
            seen=seen,
        )
    steps = fitted.steps * len(matrices)
    miou = scores(matrices[-1])["miou"]
    progress, _ = TrainingProgress(iteration=steps).after_validation(miou)
    save_checkpoint(
        run.run_dir,
        ["last", "best"],
        network,
        iteration=steps,
        miou=miou,
        model=replace(config.model, decoder_channels=fitted.channels),
        classes=classes,
        labeled_sha256=data.labeled.sha256,
    )
    # Figures of each round, pictures, choices
    with stages("pictures"), _open_log(run, steps) as log:
        _log_rounds(log, matrices, steps=fitted.steps)
        _draw(run, network, fitted, log, steps)
        if seen.worst:
            log.png(WORST, steps, draw_worst(seen.worst, run.classes))
    record = replace(
        read_record(run.run_dir),
        choices=(*choices, *fitted.choices),
        stages=stages.times,
        processor_seconds=stages.processor_seconds,
    )
    save_record(run.run_dir, record)
    return FitResult(progress, matrices[-1], worst=seen.worst, truth_sha256=seen.truth_sha256(machine))


def _open_log(run: RunContext, steps: int) -> RunLog:
    return RunLog(run.run_dir, iterations=steps, class_names=run.classes.names, tracker=run.tracker)


def _log_rounds(log: RunLog, matrices: Sequence[Int64Array], *, steps: int) -> None:
    """Log the scores of labels alone and of each round of self-training, each after `steps` more steps."""
    for number, matrix in enumerate(matrices):
        log.event("val", steps * (number + 1), {"round": number, **scores(matrix)})


def _draw(run: RunContext, network: GuidedMixNet, fitted: ProbeResult, log: RunLog, steps: int) -> None:
    """Draw unlabeled images with what the teacher gives them, if there are any."""
    if fitted.teaching is None:
        return
    picture = draw_unlabeled(
        network,
        run.data.unlabeled,
        run.readers.unlabeled,
        fitted.teaching,
        classes=run.classes,
        autocast=run.machine.autocast,
        bf16=is_bf16(run.config),
    )
    if picture is not None:
        write_atomically(run.run_dir / PICTURE_NAME, picture)
        log.png("pseudo masks", steps, picture)


def _chosen_network(
    run: RunContext, network: GuidedMixNet, stages: Stages
) -> tuple[GuidedMixNet, TrainConfig, tuple[Choice, ...]]:
    """Return the network with the best of several encoders, or of several input scales, in evaluation mode."""
    config, device = run.config, run.machine.device
    if config.probe.encoders:
        with stages("choice of the encoder"):
            network, model, table, choice = choose_encoder(config, run.data, run.classes, run.readers, device)
        write_atomically(run.run_dir / ENCODERS_NAME, table)
        return network, replace(config, model=model), (choice,)
    network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with stages("choice of the input scale"):
        scale, found = choose_input_scale(network, config, run.data, run.classes, run.readers)
    choices = () if found is None else (found,)
    if scale == config.model.input_scale:
        return network, config, choices
    model = replace(config.model, input_scale=scale)
    return with_encoder_of(network, model, run.classes), replace(config, model=model), choices
