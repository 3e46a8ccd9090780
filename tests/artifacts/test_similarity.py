import pytest
import torch

from singer_hf.artifacts.similarity import GramDistance, LinearCka, OutlierOverlap, PatchCosine, unbiased_hsic


def _tokens(seed, batch=3, patches=20, width=8):
    return torch.randn(batch, patches, width, generator=torch.Generator().manual_seed(seed))


def _hsic_by_hand(k, m):
    """HSIC₁ as a U-statistic: the mean over all ordered quadruples of different rows (Song et al. 2012, eq. 4)."""
    n, total, count = len(k), 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
                        count += 1
    return total / count


def test_hsic_is_the_mean_over_all_quadruples():
    k, m = (tokens @ tokens.T for tokens in (_tokens(0, 1, 7)[0].double(), _tokens(1, 1, 7, 3)[0].double()))
    assert float(unbiased_hsic(k, m)) == pytest.approx(_hsic_by_hand(k, m), rel=1e-9)


def test_cka_is_made_of_unbiased_minibatches():
    students, teachers = _tokens(0, 2, 8), _tokens(1, 2, 8, 5) + _tokens(0, 2, 8)[..., :5]
    triples = torch.zeros(3, dtype=torch.float64)
    for rows in (slice(0, 6), slice(6, 12), slice(12, 16)):
        x, y = (tokens.flatten(0, 1)[rows].double() for tokens in (students, teachers))
        k, m = x @ x.T, y @ y.T
        triples += torch.tensor([_hsic_by_hand(k, m), _hsic_by_hand(k, k), _hsic_by_hand(m, m)])
    expected = triples[0] / (triples[1] * triples[2]).sqrt()
    result = LinearCka(minibatch_size=6).compute(predictions=students, references=teachers)
    assert result == {"cka": pytest.approx(float(expected), rel=1e-6)}


def test_cka_is_one_up_to_rotation_scale_and_shift_and_about_zero_without_relation():
    tokens = _tokens(0, 20)
    rotation = torch.linalg.qr(_tokens(1, 1, 8)[0]).Q
    assert LinearCka().compute(predictions=tokens, references=3 * tokens @ rotation + 5)["cka"] == pytest.approx(1)
    # The biased estimate would give 0.14 here.
    assert abs(LinearCka(64).compute(predictions=tokens, references=_tokens(2, 20))["cka"]) < 0.03


def test_gram_distance_is_the_root_mean_square_difference_of_cosines():
    students, teachers = _tokens(0), _tokens(1, width=4)
    distances = []
    for student, teacher in zip(students, teachers, strict=True):
        total = 0.0
        for i in range(20):
            for j in range(20):
                cosines = [float(torch.cosine_similarity(side[i], side[j], dim=0)) for side in (student, teacher)]
                total += (cosines[0] - cosines[1]) ** 2
        distances.append((total / 400) ** 0.5)
    result = GramDistance().compute(predictions=students, references=teachers)
    assert result == {"gram_distance": pytest.approx(sum(distances) / 3, rel=1e-5)}


def test_cosine_is_split_at_the_teachers_outliers():
    teacher = torch.ones(1, 10, 2)
    teacher[0, 4] = torch.tensor([100.0, 0.0])
    student = torch.ones(1, 10, 2)
    student[0, 4] = torch.tensor([0.0, 3.0])
    result = PatchCosine().compute(predictions=student, references=teacher)
    assert result == {
        "cosine": pytest.approx(0.9),
        "cosine_outliers": pytest.approx(0.0),
        "cosine_others": pytest.approx(1.0),
    }


def test_overlap_counts_shared_outliers_and_correlates_the_maps():
    student, teacher = torch.ones(2, 12), torch.ones(2, 12)
    teacher[0, [1, 2]], teacher[1, 3] = 10.0, 20.0
    student[0, [2, 5]] = 4.0
    result = OutlierOverlap().compute(predictions=student, references=teacher)
    correlation = torch.corrcoef(torch.stack([student.flatten(), teacher.flatten()]))[0, 1]
    assert result == {
        "iou": pytest.approx(1 / 4),
        "inherited": pytest.approx(1 / 3),
        "correlation": pytest.approx(float(correlation), rel=1e-5),
        "student_share": pytest.approx(2 / 24),
        "teacher_share": pytest.approx(3 / 24),
    }


def test_clean_models_have_no_overlap_to_speak_of():
    result = OutlierOverlap().compute(predictions=torch.ones(2, 9), references=torch.ones(2, 9))
    assert (result["iou"], result["inherited"], result["correlation"]) == (None, None, None)


@pytest.mark.parametrize("metric", [LinearCka(32), GramDistance(), PatchCosine()])
def test_metrics_do_not_depend_on_the_batches_and_start_anew(metric):
    students, teachers = _tokens(0, 6), _tokens(1, 6)
    whole = metric.compute(predictions=students.numpy(), references=teachers.numpy())
    for rows in ([0], [1, 2], [3, 4, 5]):
        metric.add_batch(predictions=students[rows], references=teachers[rows])
    split = metric.compute()
    for name, value in whole.items():
        assert split[name] == (None if value is None else pytest.approx(value, rel=1e-6))
    metric.add(prediction=students[0].tolist(), reference=teachers[0].tolist())
    assert metric.compute() != split


def test_metrics_write_no_files(tmp_path):
    metric = GramDistance(cache_dir=str(tmp_path))
    metric.compute(predictions=_tokens(0), references=_tokens(1))
    assert list(tmp_path.iterdir()) == []
    assert metric.name == "gram_distance"
    assert "cosine similarities" in metric.description


def test_metrics_say_what_is_wrong():
    with pytest.raises(ValueError, match="`compute` needs features: pass them, or call `add_batch` first"):
        GramDistance().compute()
    with pytest.raises(ValueError, match=r"got shapes \(3, 20, 8\) and \(3, 10, 8\); bring them to one grid"):
        GramDistance().compute(predictions=_tokens(0), references=_tokens(1, patches=10))
    with pytest.raises(ValueError, match="`predictions` and `references` must both be given, got None"):
        GramDistance().compute(predictions=_tokens(0))
    with pytest.raises(ValueError, match="pass the student's tokens through its projector"):
        PatchCosine().compute(predictions=_tokens(0), references=_tokens(1, width=4))
    with pytest.raises(ValueError, match="`minibatch_size` must be at least 4, got 3"):
        LinearCka(3)
