"""Upload of a run to the Hugging Face Hub, without the files that only resuming needs."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from singer_hf.cards.licences import license_warning
from singer_hf.training.guards.output_folder import PUSH_PREFIX
from singer_hf.training.guards.settings import SETTINGS_FILE

logger = logging.getLogger(__name__)

# Needed only to resume the training.
_STATE_FILES = ["optimizer.*", "scheduler.*", "scaler.*", "rng_state*", "trainer_state.json", SETTINGS_FILE, "*fsdp*"]
PRIVATE_FILES = [*_STATE_FILES, "raw_student/*"]


def upload_checkpoint(folder: str, repo_id: str, message: str, args: TrainingArguments) -> list[Future]:
    """Uploads a checkpoint in the background, in the layout of a finished run: student, ``singer/``, ``projectors/``.

    With ``hub_strategy`` "checkpoint" or "all_checkpoints" all of it, with the files for resuming, also goes into
    ``last-checkpoint/`` or a folder of its own name. A failure is logged as a warning and the training goes on.

    Args:
        folder: The checkpoint. It is copied first, so that it may be rotated away meanwhile: into the run's folder, by
            hard links, which take no space.
        repo_id: Target repository.
        message: Commit message.
        args: Arguments of the run, for token, revision and strategy.
    """
    try:
        copy = _copy(Path(folder), args.output_dir)
    except OSError as error:
        _warn(error, folder, repo_id)
        return []
    targets = {".": PRIVATE_FILES}
    if args.hub_strategy == HubStrategy.CHECKPOINT:
        targets["last-checkpoint"] = None
    elif args.hub_strategy == HubStrategy.ALL_CHECKPOINTS:
        targets[Path(folder).name] = None
    jobs = [
        HfApi().upload_folder(
            repo_id=repo_id,
            folder_path=copy,
            path_in_repo=target,
            commit_message=message,
            token=args.hub_token,
            revision=args.hub_revision,
            ignore_patterns=ignored,
            run_as_future=True,
        )
        for target, ignored in targets.items()
    ]
    for job in jobs:
        job.add_done_callback(lambda done: _finish(done, jobs, copy, folder, repo_id))
    return jobs


def _finish(job: Future, jobs: list[Future], copy: str, folder: str, repo_id: str) -> None:
    if all(other.done() for other in jobs):
        shutil.rmtree(copy, ignore_errors=True)
    if error := job.exception():
        _warn(error, folder, repo_id)


def _warn(error: BaseException, folder: str, repo_id: str) -> None:
    message = "the upload of %s failed (%s: %s); training goes on. By hand: hf upload %s %s"
    logger.warning(message, folder, type(error).__name__, error, repo_id, folder)


def _copy(folder: Path, output_dir: str) -> str:
    copy = tempfile.mkdtemp(prefix=PUSH_PREFIX, dir=output_dir)
    try:
        shutil.copytree(folder, copy, dirs_exist_ok=True, copy_function=_link)
    except OSError:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    return copy


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has hard links
        shutil.copy2(source, target)


@contextmanager
def explain_failed_upload(repo_id: str, folder: str) -> Iterator[None]:
    """A context that adds to a failed upload the command that repeats it.

    Args:
        repo_id: Target repository.
        folder: The run's folder.

    Raises:
        RuntimeError: If the upload fails.
    """
    try:
        yield
    except Exception as error:
        raise RuntimeError(
            f"the upload failed ({type(error).__name__}: {error}). Everything is saved in {folder!r}; upload it "
            f'without training: hf upload {repo_id} {folder} --exclude "checkpoint-*"'
        ) from error


class PushMixin:
    """Overrides of `transformers.Trainer` for uploads at the end of a run and at its checkpoints."""

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Saves and uploads what the run made, with its card; the local folder stays complete if that fails.

        Raises:
            RuntimeError: If the upload fails; the message has the command that repeats it without training.
        """
        if not self.args.push_to_hub:  # else it was said at the start
            self.warn_of_license()
        if self.hub_model_id is None:
            # First, so that the folder is complete even where the Hub refuses to create the repository.
            self.save_model(_internal_call=True)
        repo = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).name
        with explain_failed_upload(repo, self.args.output_dir):
            return super().push_to_hub(*args, **kwargs)

    def warn_of_license(self) -> None:
        """Logs a warning if the card will state no licence."""
        warning = license_warning(self.args.license, self.source_names[-1])
        if warning and self.is_world_process_zero():
            logger.warning(warning)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.signals.received:  # there may be seconds left, and nothing of a stopped run is published
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if not busy or self.args.hub_always_push:
            message = f"Training in progress, step {self.state.global_step}"
            jobs = list(self.push_in_progress.jobs) if busy else []
            for folder, repo in self._uploads(checkpoint_folder):
                jobs += upload_checkpoint(folder, repo, message, self.args)
            self.push_in_progress = PushInProgress(jobs)

    def _uploads(self, checkpoint_folder: str) -> list[tuple[str, str]]:
        """What is uploaded of a checkpoint: its folders with their repositories."""
        return [(checkpoint_folder, self.hub_model_id)]
