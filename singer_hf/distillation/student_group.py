"""Several students of one teacher: one teacher pass and one adapter in a step for all of them."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.distillation.trained_module import TeacherStep, TrainedModule
from singer_hf.tuner.layer import SingerLayer


@dataclass
class GroupOutput(ModelOutput):
    """Losses of one step of several students.

    Attributes:
        loss: Sum of the students' losses and of the adapter's weighted terms, scalar.
        components: Unweighted scalars by name: ``<student>_kd_loss`` and the like, and the adapter's terms, which are
            there once.
    """

    loss: Tensor | None = None
    components: dict[str, Tensor] | None = None


class StudentGroup(TrainedModule):
    """Distils one teacher into several students, each with projectors of its own.

    The leading member computes the teacher's side of a step for all: features, targets, and the adapter's terms, which
    count once. No loss of one student has a gradient to another. With ``detach_refined=False`` the adapter gets the
    sum of all L_KD.

    Args:
        members: Name -> the distiller of a student. All have the same teacher, blocks of the teacher and input of the
            teacher (``teacher_input``), and form targets alike.
        lead: Name of the leading member. None: the first.

    Attributes:
        teacher: The teacher.

    Raises:
        ValueError: If there is no member, or they do not share teacher, blocks or input.
    """

    def __init__(self, members: Mapping[str, FeatureDistiller], lead: str | None = None) -> None:
        super().__init__()
        if not members:
            raise ValueError("`members` must hold the distiller of at least one student, got none")
        self.names, self._lead = tuple(members), lead or next(iter(members))
        self.distillers = nn.ModuleList(members.values())
        for name, member in members.items():
            self._check(name, member)
            member.target_norms = self.lead.target_norms  # one set of statistics, which the lead observes
        self.teacher = self.lead.teacher

    @property
    def members(self) -> dict[str, FeatureDistiller]:
        """The distillers of the students by name."""
        return dict(zip(self.names, self.distillers, strict=True))

    @property
    def lead(self) -> FeatureDistiller:
        """The member that computes the teacher's side of a step."""
        return self.members[self._lead]

    @property
    def singer_layers(self) -> dict[int, SingerLayer]:
        """The adapters of the teacher, by block."""
        return self.lead.singer_layers

    @property
    def in_adapter_warmup(self) -> bool:
        """Whether L_KD has weight 0 for all students; set for all at once."""
        return self.lead.in_adapter_warmup

    @in_adapter_warmup.setter
    def in_adapter_warmup(self, value: bool) -> None:
        for member in self.distillers:
            member.in_adapter_warmup = value

    def forward(self, pixel_values: Tensor) -> GroupOutput:
        """Computes the losses of images (B, 3, H, W), normalised for the students."""
        students = {name: member.student_extractor(pixel_values) for name, member in self.members.items()}
        teacher = self.lead.teacher_step(pixel_values)
        own = TeacherStep(teacher.targets)  # the adapter's terms are added once
        outputs = {name: member.losses(students[name], own) for name, member in self.members.items()}
        losses = [output.loss for output in outputs.values()]
        components = {
            f"{name}_{term}": value
            for name, output in outputs.items()
            for term, value in output.components.items()
            if term not in ("outlier_loss", "info_loss")
        }
        if teacher.loss is not None:
            losses.append(teacher.loss)
        return GroupOutput(torch.stack(losses).sum(), {**components, **teacher.components})

    @contextmanager
    def attached(self) -> Iterator[None]:
        """A context in which the hooks stay on teacher and students between steps, as compilation needs."""
        with ExitStack() as stack:
            stack.enter_context(self.lead.attached())
            captures = [m.student_extractor.capture for m in self.distillers if m is not self.lead]
            for capture in filter(None, captures):
                stack.enter_context(capture)
            yield

    def compile_teacher(self) -> None:
        """Compiles the teacher's pass apart from the students."""
        self.lead.compile_teacher()

    def activation_checkpointing_enable(self, *args: object, **kwargs: object) -> None:
        """Enables activation checkpointing in the students."""
        for member in self.distillers:
            member.activation_checkpointing_enable(*args, **kwargs)

    def _check(self, name: str, member: FeatureDistiller) -> None:
        lead = self.lead
        for what, own, expected in (
            ("teacher", member.teacher, lead.teacher),
            ("teacher_input", member.teacher_input, lead.teacher_input),
        ):
            if own is not expected:
                raise ValueError(f"`members` must share one {what}, that of {name!r} is another one")
        if member.teacher_layers != lead.teacher_layers or member.target_norm != lead.target_norm:
            raise ValueError(
                f"`members` must share blocks and targets, {name!r} has {member.teacher_layers} with "
                f"{member.target_norm!r}, the first one {lead.teacher_layers} with {lead.target_norm!r}"
            )
