"""Step function of a run: method, teacher in the run's precision, class weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from gmtool.classes import ClassSet
from gmtool.config import MethodConfig
from gmtool_training.engine.machine import Machine, in_precision
from gmtool_training.method.other_run import load_teacher
from gmtool_training.method.step import Step, guidedmix_step, supervised_step


def build_step(
    method: MethodConfig,
    classes: ClassSet,
    machine: Machine,
    *,
    average: nn.Module | None,
    class_weights: Tensor | None,
) -> Step:
    """Return the step of a run.

    Args:
        method: Switches of the method; `teacher_run` is loaded here.
        classes: Classes of the run.
        machine: Device and precision; the teacher computes in it too.
        average: Moving average of the weights; None without one.
        class_weights: (C,), those of `method.balance`, on the device; None: all classes alike.

    Raises:
        CheckpointError: `method.teacher_run` cannot be loaded.
    """
    if method.name == "supervised":
        return partial(supervised_step, method=method, classes=classes, class_weights=class_weights)
    teacher = average
    if method.teacher_run is not None:
        teacher = load_teacher(method.teacher_run, classes, machine.device)
        method = replace(method, teacher="average")
    teacher = None if teacher is None else in_precision(teacher, machine)
    return partial(guidedmix_step, method=method, classes=classes, average=teacher, class_weights=class_weights)
