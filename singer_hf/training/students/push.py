"""Upload of several students, each to a repository of its own."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from singer_hf.training.hub import PushMixin, explain_failed_upload
from singer_hf.training.students.student_run import StudentRun, student_repo

_NOT_PUSHED = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*"]


class StudentsPushMixin(PushMixin):
    """Overrides of `transformers.Trainer` for uploads; of several students each goes to ``<hub_model_id>-<name>``."""

    @property
    def named_runs(self) -> list[StudentRun]:
        """The students of a run of several; of one student an empty list."""
        return [run for run in self.runs.values() if run.name]

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Creates the repositories."""
        if not self.named_runs:
            super().init_hf_repo(token=token, private=private)
            return
        if not self.is_world_process_zero():
            return
        whole = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        options = {"token": token or self.args.hub_token, "exist_ok": True}
        options["private"] = self.args.hub_private_repo if private is None else private
        for run in self.named_runs:
            url = HfApi().create_repo(student_repo(whole, run.name), **options)
        self.hub_model_id, self.push_in_progress = url.repo_id.removesuffix(f"-{run.name}"), None

    def push_to_hub(self, commit_message: str = "End of training", *args: Any, **kwargs: Any) -> Any:
        """Saves and uploads what the run made, with its card; the local folder stays complete if that fails.

        Returns:
            What `Trainer.push_to_hub` returns; of several students a list with one entry for each.

        Raises:
            RuntimeError: If the upload fails; the message has the command that repeats it without training.
        """
        if not self.named_runs:
            return super().push_to_hub(commit_message, *args, **kwargs)
        if not self.args.push_to_hub:  # else it was said at the start
            self.warn_of_license()
        self.save_model(_internal_call=True)
        if self.hub_model_id is None:
            self.init_hf_repo(token=kwargs.get("token"), private=kwargs.get("private"))
        if not self.is_world_process_zero():
            return []
        self._finish_current_push()
        return [self._push_student(run, commit_message, **kwargs) for run in self.named_runs]

    def _push_student(
        self, run: StudentRun, message: str, token: str | None = None, revision: str | None = None, **_: Any
    ) -> Any:
        folder = str(run.folder(self.args.output_dir))
        with explain_failed_upload(run.hub_model_id, folder):
            return HfApi().upload_folder(
                repo_id=run.hub_model_id,
                folder_path=folder,
                commit_message=message,
                token=token or self.args.hub_token,
                revision=revision or self.args.hub_revision,
                ignore_patterns=_NOT_PUSHED,
            )

    def _uploads(self, checkpoint_folder: str) -> list[tuple[str, str]]:
        return [(str(run.folder(checkpoint_folder)), run.hub_model_id) for run in self.runs.values()]
