"""Runs that push to the Hub in HF_ENDPOINT: `python tests/builders/hub_run.py FOLDER {push,fail,clean,students} ...`.

Every run has a folder of its name in FOLDER.
"""

import hashlib
import json
import logging
import os
import sys
import time
from pathlib import Path

import torch
from cleanings import clean_planted, saved_teacher
from huggingface_hub import snapshot_download
from peft import PeftModel
from planted import planted_images
from runs import differing, files_in, make_trainer, small_student
from transformers import AutoImageProcessor, AutoModel
from zoo import images, tiny_vit

REPO = "someone/student"


def push(folder: Path) -> dict:
    """Trains with a push at every save, pushes the end, and reads everything back as a stranger would."""
    token = {"hub_token": os.environ["HF_TOKEN"]}
    hub = {"push_to_hub": True, "hub_model_id": REPO, "hub_strategy": "every_save", "hub_always_push": True}
    trainer = make_trainer(folder, ema_decay=0.9, **hub, **token)
    trainer.train()
    trainer.push_to_hub()
    student = AutoModel.from_pretrained(REPO, add_pooling_layer=False)
    adapted = PeftModel.from_pretrained(tiny_vit(), REPO, subfolder="singer").eval()
    copy = Path(snapshot_download(REPO))
    with torch.no_grad():
        expected = trainer.distiller.teacher(images()).last_hidden_state
        same_refined = torch.equal(adapted(images()).last_hidden_state, expected)
    return {
        "student": sorted(differing(student.state_dict(), trainer.student.state_dict())),
        "refined": same_refined,
        "processor": AutoImageProcessor.from_pretrained(REPO).to_dict() == trainer.processing_class.to_dict(),
        "copied": sorted(files_in(copy)),
        "equal": all((copy / name).read_bytes() == (folder / name).read_bytes() for name in files_in(copy)),
        "card": (copy / "README.md").read_text(),
    }


def digest(folder: Path) -> str:
    """One number for all files of the folder and their contents."""
    contents = [(name, (folder / name).read_bytes()) for name in sorted(files_in(folder))]
    return hashlib.sha256(repr(contents).encode()).hexdigest()


def fail(folder: Path) -> dict:
    """Pushes that are refused, cut off, or answered by an error; then a training whose pushes all fail."""
    sleep, time.sleep = time.sleep, lambda seconds: None  # the client's waits between its attempts
    trainer = make_trainer(folder, max_steps=2)
    trainer.train()
    results = {}
    for kind in ("forbidden", "cut", "error"):
        trainer.args.hub_model_id, trainer.hub_model_id = f"someone/{kind}", None
        try:
            trainer.push_to_hub()
        except RuntimeError as error:
            results[kind] = {"message": str(error), "files": sorted(files_in(folder)), "digest": digest(folder)}
    records = []
    logging.getLogger("singer_hf.training.hub").addHandler(Recorder(records))
    hub = {"push_to_hub": True, "hub_model_id": "someone/error", "hub_strategy": "every_save", "license": "mit"}
    other = make_trainer(folder.with_name("trained"), **hub)
    other.train()
    for _ in range(500):  # the message comes from the upload's own thread
        if not records:
            sleep(0.01)
    time.sleep = sleep
    results["trained"] = {"step": other.state.global_step, "warnings": records}
    return results


def clean(folder: Path) -> dict:
    """Cleans the planted ViT with a push at every save and at the end, and loads the adapter as a stranger would."""
    saved_teacher(folder / "teacher")
    hub = {"push_to_hub": True, "hub_model_id": "someone/adapter", "hub_strategy": "every_save"}
    token = {"hub_token": os.environ["HF_TOKEN"], "hub_always_push": True}
    steps = {"max_steps": 4, "save_steps": 2}
    cleaned = clean_planted(str(folder / "teacher"), output_dir=str(folder / "cleaned"), **hub, **token, **steps)
    teacher = AutoModel.from_pretrained(folder / "teacher", add_pooling_layer=False)
    loaded = PeftModel.from_pretrained(teacher, "someone/adapter").eval()
    copy = Path(snapshot_download("someone/adapter"))
    with torch.no_grad():
        both = [model(planted_images(2)).last_hidden_state for model in (loaded, cleaned)]
    return {"equal": torch.equal(*both), "copied": sorted(files_in(copy)), "card": (copy / "README.md").read_text()}


def students(folder: Path) -> dict:
    """Trains two students with a push at every save, and reads each back from its repository."""
    hub = {"push_to_hub": True, "hub_model_id": REPO, "hub_strategy": "every_save", "hub_always_push": True}
    both = {"a": small_student(), "b": small_student(hidden_size=32)}
    trainer = make_trainer(folder, model=both, hub_token=os.environ["HF_TOKEN"], **hub)
    trainer.train()
    trainer.push_to_hub()
    results = {}
    for name, run in trainer.runs.items():
        loaded = AutoModel.from_pretrained(f"{REPO}-{name}", add_pooling_layer=False)
        copy = Path(snapshot_download(f"{REPO}-{name}"))
        results[name] = {
            "differing": sorted(differing(loaded.state_dict(), run.student.state_dict())),
            "copied": sorted(files_in(copy)),
            "card": (copy / "README.md").read_text(),
        }
    return {"students": results, "left": sorted(path.name for path in folder.glob("_push-*"))}


class Recorder(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


if __name__ == "__main__":
    runs = {"push": push, "fail": fail, "clean": clean, "students": students}
    print(json.dumps({name: runs[name](Path(sys.argv[1], name)) for name in sys.argv[2:]}))
