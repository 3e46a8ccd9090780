"""Evaluators for training: the same images at every call, metrics that serve as metric_for_best_model."""

import sys

import pytest
import torch
import transformers as hf
from datasets import Dataset
from labelled import colour_dataset, saved_model, tiny_model, tiny_processor
from runs import make_trainer
from torch import nn
from zoo import FAMILIES, HIDDEN, IMAGE

from singer_hf.commands import distill as distill_command
from singer_hf.data.image_processors import image_spec
from singer_hf.evaluation.benchmarks.evaluated_model import EvaluatedModel
from singer_hf.evaluation.benchmarks.protocols import get_protocol
from singer_hf.evaluation.heads.linear_heads import LinearHead
from singer_hf.evaluation.online_probes import OnlineProbes


def probes(train=None, test=None, **options):
    train, test = train or colour_dataset(60), test or colour_dataset(30, seed=1)
    return OnlineProbes(train, test, tiny_processor(), **{"share": 1.0, **options})


def test_both_metrics_of_a_model_that_sees_colours_are_high():
    metrics = probes()(tiny_model())
    assert set(metrics) == {"knn_top1", "linear_probe_top1"}
    assert all(value > 0.9 for value in metrics.values())


def test_shuffled_classes_cannot_be_learned():
    train = colour_dataset(90)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0)).tolist()
    labels = [train[i]["label"] for i in order]
    train = train.remove_columns("label").add_column("label", labels)
    metrics = probes(train)(tiny_model())
    assert all(value < 0.7 for value in metrics.values())


def test_every_call_gives_the_same_metrics_and_leaves_the_model_as_it_was():
    model, online = tiny_model().train(), probes(share=0.5)
    model.layers[0].eval()
    first, second = online(model), online(model)
    assert first == second
    assert model.training
    assert not model.layers[0].training


def test_the_share_is_drawn_once_by_the_seed_and_keeps_every_class():
    first, same, other = (probes(share=0.1, seed=seed) for seed in (3, 3, 4))
    assert len(first.train_labels) == 6
    assert first.train_rows.dataset["image"][:] == same.train_rows.dataset["image"][:]
    assert first.train_rows.dataset["image"][:] != other.train_rows.dataset["image"][:]
    assert set(first.train_labels.tolist()) == {0, 1, 2}


def test_the_number_of_images_is_limited():
    assert len(probes(max_images=12).train_labels) == 12


def test_only_the_chosen_probes_are_run():
    assert set(probes(probes=["knn"])(tiny_model())) == {"knn_top1"}


def test_metrics_do_not_depend_on_the_number_of_workers():
    assert probes(share=0.3)(tiny_model()) == probes(share=0.3, num_workers=1)(tiny_model())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": ["cnn"]}, r"`probes` must be some of \('knn', 'linear_probe'\), got \['cnn'\]"),
        ({"share": 0.0}, r"`share` must lie in \(0, 1\], got 0.0"),
        ({"max_images": 1}, r"`max_images` must be at least 2, got 1"),
        (
            {"train": colour_dataset(9).remove_columns("label")},
            r"`train_dataset` must have labels for the evaluators, got the columns \['image'\]",
        ),
        (
            {"train": colour_dataset(9).to_iterable_dataset()},
            r"`train_dataset` must be a dataset of the `datasets` library that is not streamed",
        ),
        ({"train": colour_dataset(9, num_classes=1)}, r"`train_labels` must hold at least 2 classes"),
        ({"train": colour_dataset(8, num_classes=2)}, r"`test_labels` must be classes of the training set, got \[2\]"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        probes(**options)


def test_the_trainer_saves_the_best_student_by_an_evaluator_s_metric(tmp_path):
    online = OnlineProbes(colour_dataset(24), colour_dataset(12, seed=1), tiny_processor(32), share=1.0)

    def worsening(student: nn.Module) -> dict[str, float]:
        metrics = online(student)
        worsening.calls += 1
        return {**metrics, "knn_top1": metrics["knn_top1"] - worsening.calls}

    worsening.calls = 0
    images: Dataset = colour_dataset(16)
    trainer = make_trainer(
        tmp_path / "out",
        train_dataset=images,
        eval_dataset=images,
        evaluators=[worsening],
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="knn_top1",
        greater_is_better=True,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    row = next(row for row in trainer.state.log_history if "eval_knn_top1" in row)
    assert 0 <= row["eval_linear_probe_top1"] <= 1


# Any backbone


@pytest.mark.parametrize("protocol", ["singer", "dinov2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_input_of_the_heads(family, protocol):
    model = FAMILIES[family].build().eval()
    evaluated = EvaluatedModel(family, model, image_spec(tiny_processor(IMAGE)))
    images = torch.randn(2, 3, IMAGE, IMAGE)
    extract, choices, notes = evaluated.linear_features(get_protocol(protocol))
    features = extract(model, images)
    logits = [LinearHead(features, 3, tokens, blocks)(features) for tokens, blocks in choices]
    assert len(logits) == (4 if protocol == "dinov2" and "cls" in features else len(choices))
    assert all(scores.shape == (2, 3) and scores.isfinite().all() for scores in logits)
    assert ("no class token: mean patch" in notes) == ("cls" not in features)
    dense, notes = evaluated.dense_features(get_protocol(protocol))
    features = dense(model, images)
    assert features["map"].shape[:2] == (2, HIDDEN)
    assert features["map"].isfinite().all()
    assert features["global"].shape == (2, HIDDEN)


def test_a_convolutional_network_gives_its_last_feature_map():
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    evaluated = EvaluatedModel("resnet", hf.ResNetModel(config).eval(), image_spec(tiny_processor(IMAGE)))
    extract, choices, notes = evaluated.linear_features(get_protocol("dinov2"))
    assert choices == (("mean", 1),)
    assert notes == ["no transformer: mean of the last feature map"]
    assert extract(evaluated.model, torch.randn(2, 3, IMAGE, IMAGE))["mean"].shape == (2, 1, 16)


# The flag of the training script


@pytest.fixture
def distill(monkeypatch):
    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["distill.py", *map(str, flags)])
        distill_command.main()

    return run


def test_the_script_takes_evaluators_by_name(distill, tmp_path):
    colour_dataset(60).to_parquet(tmp_path / "train.parquet")
    colour_dataset(30, seed=1).to_parquet(tmp_path / "test.parquet")
    model, data, out = saved_model(tmp_path / "vit"), tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").rename(data / f"{split}.parquet")
    flags = ["--teacher_name_or_path", model, "--student_name_or_path", model, "--dataset_name", data]
    flags += ["--method", "fitnet", "--max_steps", 2, "--per_device_train_batch_size", 4, "--output_dir", out]
    flags += ["--eval_split", "test", "--max_eval_samples", 4, "--eval_strategy", "steps", "--eval_steps", 1]
    flags += ["--save_steps", 1, "--load_best_model_at_end", "--metric_for_best_model", "knn_top1", "--use_cpu"]
    distill(*flags, "--evaluators", "knn", "linear_probe", "--report_to", "none", "--disable_tqdm", True)
    state = (out / "checkpoint-2" / "trainer_state.json").read_text()
    assert '"eval_knn_top1"' in state
    assert '"eval_linear_probe_top1"' in state
    assert "knn_top1" in (out / "README.md").read_text()


def test_evaluators_need_an_evaluation_split(distill, tmp_path, capsys):
    flags = ("--teacher_name_or_path", "t", "--student_name_or_path", "s", "--dataset_name", "d")
    with pytest.raises(SystemExit) as end:
        distill(*flags, "--output_dir", tmp_path, "--evaluators", "knn")
    assert end.value.code == 2
    assert "error: `--evaluators` need `--eval_split`, and labelled images" in capsys.readouterr().err
