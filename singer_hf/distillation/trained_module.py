"""What the Trainer, compilation, checkpoints and FSDP need of a module that holds student and teacher."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers.utils import ModelOutput


@dataclass
class DistillerOutput(ModelOutput):
    """Losses of one distillation step, scalars. Components are unweighted and averaged over the distilled blocks.

    Attributes:
        loss: Σ weight x component.
        kd_loss: L_KD.
    """

    loss: Tensor | None = None
    kd_loss: Tensor | None = None

    @property
    def components(self) -> dict[str, Tensor]:
        """The unweighted loss components, scalars, by name."""
        return {name: value for name, value in self.items() if name != "loss"}


@dataclass(frozen=True)
class TeacherStep:
    """What the teacher gives in one step to every student that is distilled from it.

    Attributes:
        targets: Target tokens (B, P+N, D_T) by teacher block.
        loss: Σ weight x component of the terms without a student, scalar; None if there are none.
        components: These terms, unweighted scalars, by name.
    """

    targets: Mapping[int, Tensor]
    loss: Tensor | None = None
    components: Mapping[str, Tensor] = field(default_factory=dict)


class TrainedModule(nn.Module):
    """Base of the distillers, which have ``student``, ``teacher``, ``projectors`` and their extractors."""

    kd_weight: float

    @property
    def loss_weights(self) -> dict[str, float]:
        """Name of each component of the loss in the log -> its weight in the sum."""
        return {"kd_loss": self.kd_weight}

    accepts_loss_kwargs = False
    main_input_name = "pixel_values"

    @property
    def trained_modules(self) -> dict[str, nn.Module]:
        """The trained modules beside student and adapter, by the name of the attribute."""
        return {"projectors": self.projectors}

    @property
    def saved_modules(self) -> dict[str, nn.Module]:
        """The trained modules and the statistics of the targets, by the name of the folder they are saved in."""
        statistics = {"target_norms": self.target_norms} if self.target_norms.state_dict() else {}
        return {**self.trained_modules, **statistics}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """A context in which the hooks stay on teacher and student between steps, as compilation needs."""
        with self._teacher_capture, self.student_extractor.capture or nullcontext():
            yield

    def compile_teacher(self) -> None:
        """Compiles the teacher's pass apart from the student, which may stay as it is or change its code."""
        self._teacher_capture.compile()

    def train(self, mode: bool = True) -> "TrainedModule":
        """Sets the mode of student and projectors; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def activation_checkpointing_enable(self, *args: object, **kwargs: object) -> None:
        """Enables activation checkpointing in the student; the teacher's main pass stores no activations."""
        self.student.activation_checkpointing_enable(*args, **kwargs)

    @property
    def _no_split_modules(self) -> list[str]:
        # FSDP shards modules of these classes one by one: the blocks themselves, not the adapters around them.
        views = filter(None, (self.teacher_view, getattr(self.student_extractor, "view", None)))
        return sorted({type(view.blocks[0]).__name__ for view in views})
