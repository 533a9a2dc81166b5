"""Figures of classes, labels and numbers equal scikit-learn's, from sums that any order of ranks adds up alike."""

import math
import warnings

import numpy as np
import pytest

from hvdlm.errors import UserError
from hvdlm.scoring import confusion as views
from hvdlm.scoring.classification import (
    averages,
    calibration_error,
    calibration_figures,
    calibration_sums,
    class_figures,
    confusion,
    label_figures,
    label_rows,
    number_figures,
    roc_auc,
)

LABELS = ["ant", "bee", "cat", "dog"]


@pytest.fixture
def sklearn():
    return pytest.importorskip("sklearn.metrics", reason="scikit-learn, which figures are compared with, is missing")


def some_classes(num_classes=4, num=400, seed=0):
    random = np.random.default_rng(seed)
    gold = random.choice(num_classes, num, p=np.arange(1, num_classes + 1) / np.arange(1, num_classes + 1).sum())
    return gold, np.where(random.random(num) < 0.6, gold, random.integers(num_classes, size=num))


def some_label_sets(seed=0):
    random = np.random.default_rng(seed)
    gold = random.random((300, 5)) < [0.5, 0.2, 0.1, 0.3, 0.05]
    return gold, np.where(random.random(gold.shape) < 0.85, gold, ~gold)


@pytest.mark.parametrize("how", ["micro", "macro", "weighted"])
def test_averages_of_classes_equal_scikit_learn(sklearn, how):
    gold, predicted = some_classes()
    gold[gold == 1], predicted[predicted == 1] = 2, 0  # a class that is neither there nor said
    told = class_figures(confusion(gold, predicted, 4), LABELS)
    wanted = sklearn.precision_recall_fscore_support(gold, predicted, average=how, zero_division=0)
    assert [told[f"{kind}_{how}"] for kind in ("precision", "recall", "f1")] == pytest.approx(list(wanted[:3]))
    assert told["accuracy"] == pytest.approx(sklearn.accuracy_score(gold, predicted))


def test_the_matrix_and_each_class_equal_scikit_learn(sklearn):
    gold, predicted = some_classes()
    matrix = confusion(gold, predicted, 4)
    assert matrix.tolist() == sklearn.confusion_matrix(gold, predicted).tolist()
    report = sklearn.classification_report(gold, predicted, target_names=LABELS, output_dict=True)
    for label, told in class_figures(matrix, LABELS)["by_class"].items():
        wanted = report[label]
        assert told == pytest.approx(
            {"precision": wanted["precision"], "recall": wanted["recall"], "f1": wanted["f1-score"]}
            | {"support": wanted["support"]}
        )


@pytest.mark.parametrize("how", ["micro", "macro", "weighted"])
def test_averages_of_label_sets_equal_scikit_learn(sklearn, how):
    gold, predicted = some_label_sets()
    told = label_figures(label_rows(gold, predicted), list("abcde"))
    wanted = sklearn.precision_recall_fscore_support(gold, predicted, average=how, zero_division=0)
    assert [told[f"{kind}_{how}"] for kind in ("precision", "recall", "f1")] == pytest.approx(list(wanted[:3]))
    assert told["accuracy"] == pytest.approx(sklearn.accuracy_score(gold, predicted))


def test_sums_of_parts_are_those_of_the_whole():
    """F1 of ranks or batches is not averaged."""
    gold, predicted = some_classes()
    parts = [confusion(gold[part], predicted[part], 4) for part in (slice(0, 33), slice(33, 34), slice(34, None))]
    assert (sum(parts) == confusion(gold, predicted, 4)).all()
    of_parts = np.mean([class_figures(part, LABELS)["f1_macro"] for part in parts])
    assert of_parts != pytest.approx(class_figures(sum(parts), LABELS)["f1_macro"], abs=1e-3)


def test_intervals_hold_the_value_and_narrow_with_records():
    few, many = (class_figures(confusion(*some_classes(num=num), 4), LABELS) for num in (100, 10_000))
    for name in [name for name in few if f"{name}_interval" in few]:
        for told in (few, many):
            assert told[f"{name}_interval"][0] <= told[name] <= told[f"{name}_interval"][1], name
        few_width, many_width = (np.ptp(told[f"{name}_interval"]) for told in (few, many))
        assert 5 < few_width / many_width < 20, name


def test_the_majority_baseline_is_what_the_commonest_class_alone_gets():
    told = class_figures(np.array([[5, 1], [2, 12]]), ["a", "b"])
    assert told["majority"] == 14 / 20
    assert told["accuracy"] == 17 / 20
    sets = np.array([[1, 0], [1, 0], [0, 1], [0, 0]])
    assert label_figures(label_rows(sets, sets), ["a", "b"])["majority"] == 0.5


def test_nothing_right_or_no_record_is_no_division_by_zero():
    told = class_figures(np.array([[0, 3], [0, 0]]), ["a", "b"])
    assert told["f1_macro"] == told["accuracy"] == 0.0
    told = class_figures(np.zeros((2, 2), dtype=np.int64), ["a", "b"])
    assert told["accuracy"] == 0.0 and told["accuracy_interval"] == (0.0, 1.0)
    assert math.isnan(told["f1_macro_interval"][0])
    assert averages(np.zeros((3, 3)))["f1_micro"] == 0.0
    assert label_figures(label_rows(np.zeros((0, 2)), np.zeros((0, 2))), ["a", "b"])["accuracy"] == 0.0


def test_roc_auc_equals_scikit_learn_with_equal_scores_too(sklearn):
    random = np.random.default_rng(1)
    gold = random.integers(2, size=300)
    scores = np.round(gold + random.normal(size=300), 1)
    assert len(np.unique(scores)) < 80
    assert roc_auc(gold, scores)["roc_auc"] == pytest.approx(sklearn.roc_auc_score(gold, scores))
    gold, _ = some_classes()
    logits = random.normal(size=(400, 4)) + np.eye(4)[gold]
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = sklearn.roc_auc_score(gold, share, multi_class="ovr", average="macro")
    assert roc_auc(gold, share)["roc_auc"] == pytest.approx(wanted)


def test_the_interval_of_roc_auc_is_as_wide_as_its_spread_over_samples():
    random = np.random.default_rng(2)
    values, held = [], 0
    for _ in range(300):
        gold = np.arange(120) < 40
        told = roc_auc(gold, random.normal(size=120) + gold)
        values.append(told["roc_auc"])
        low, high = told["roc_auc_interval"]
        held += low <= 0.7602 <= high  # Phi(1 / sqrt(2))
    assert np.mean(values) == pytest.approx(0.7602, abs=0.01)
    assert 0.9 < held / 300 < 0.98


def test_roc_auc_leaves_out_classes_without_both_kinds():
    assert math.isnan(roc_auc(np.ones(3, dtype=int), np.arange(3.0))["roc_auc"])
    gold = np.array([0, 0, 1, 1])
    scores = np.stack((-np.arange(4.0), np.arange(4.0), np.zeros(4)), axis=1)
    assert roc_auc(gold, scores) == {"roc_auc": 1.0, "roc_auc_interval": (1.0, 1.0)}


def test_calibration_error_by_hand_and_in_any_order():
    confidence = np.array([0.05, 0.06, 0.95, 0.96, 0.97, 1.0, 0.0])
    correct = np.array([0, 1, 1, 1, 0, 1, 0])
    sums = calibration_sums(confidence, correct)
    assert sums[:, 0].tolist() == [3, *[0] * 13, 4]
    by_hand = (abs(0.11 - 1) + abs(3.88 - 3)) / 7
    assert calibration_error(sums) == pytest.approx(by_hand, abs=1e-9)
    random = np.random.default_rng(3)
    confidence = random.random(5000).astype(np.float32)
    correct = random.random(5000) < confidence
    order = random.permutation(5000)
    parts = [calibration_sums(confidence[part], correct[part]) for part in np.array_split(order, 3)]
    assert (sum(parts) == calibration_sums(confidence, correct)).all()
    told = calibration_figures(confidence, correct)
    low, high = told["calibration_error_interval"]
    assert low <= told["calibration_error"] <= high < 0.05
    worse = calibration_figures(confidence, random.random(5000) < 0.5)
    assert worse["calibration_error_interval"][0] > 0.2


def test_a_confidence_at_the_border_of_bins_belongs_to_the_lower():
    at = np.arange(1, 16) / 15 - 1e-9
    assert calibration_sums(at, np.ones(15))[:, 0].tolist() == [1] * 15
    assert calibration_sums(np.array([1.0]), np.ones(1))[14, 0] == 1


def test_correlations_and_errors_equal_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(4)
    gold = random.normal(size=80)
    predicted = np.round(gold + random.normal(size=80), 1)
    told = number_figures(gold, predicted)
    pearson = stats.pearsonr(gold, predicted)
    assert told["pearson"] == pytest.approx(pearson.statistic)
    assert told["pearson_interval"] == pytest.approx(tuple(pearson.confidence_interval()))
    assert told["spearman"] == pytest.approx(stats.spearmanr(gold, predicted).statistic)
    assert told["mse"] == pytest.approx(np.mean((gold - predicted) ** 2))
    for name in ("mse", "spearman"):
        assert told[f"{name}_interval"][0] < told[name] < told[f"{name}_interval"][1]


def test_a_constant_has_no_correlation():
    told = number_figures(np.arange(5.0), np.full(5, 2.0))
    assert math.isnan(told["pearson"]) and math.isnan(told["spearman_interval"][1])
    assert told["mse"] == 2.0
    assert number_figures(np.arange(5.0), 2 * np.arange(5.0))["pearson"] == pytest.approx(1)


CHINESE = ["体育", "财经", "房产", "家居", "教育", "科技", "时尚", "时政", "游戏", "娱乐"]
TWENTY = [*CHINESE, *(f"{name}（其他的分类，很长）" for name in CHINESE)]


def some_matrix(num, seed=0):
    matrix = np.random.default_rng(seed).integers(30, size=(num, num))
    return matrix + 9000 * np.eye(num, dtype=np.int64)


def test_a_small_table_has_every_cell():
    assert views.as_table(np.array([[5, 1], [0, 12]]), ["负面", "positive"]).splitlines() == [
        "gold \\ predicted  负面  positive",
        "负面                 5         1",
        "positive             0        12",
    ]


def test_a_table_of_twenty_classes_fits_a_terminal_and_tells_the_commonest_mistakes():
    from rich.cells import cell_len

    matrix = some_matrix(20)
    matrix[3, 7] = 400
    lines = views.as_table(matrix, TWENTY).splitlines()
    assert len(lines) == 14 and lines[-1] == "… 8 more with fewer mistakes, or as many; --json and --picture have all"
    assert all(cell_len(line) <= views.WIDTH for line in lines)
    assert lines[0].split() == ["class", "records", "found", "taken", "for"]
    assert lines[1].startswith(" 4 ") and "时政 400, " in lines[1] and lines[1].endswith("…")  # the most mistakes
    assert views.as_table(np.diag([7] * 20), TWENTY).splitlines()[1].split() == ["1", "体育", "7", "100.0", "%"]


@pytest.mark.parametrize("fonts", ["those here", "none for Chinese"])
def test_a_picture_of_twenty_chinese_classes_is_drawn_with_any_fonts(tmp_path, monkeypatch, fonts):
    if fonts == "none for Chinese":
        monkeypatch.setattr(views, "CJK_FONTS", ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        views.draw(some_matrix(20), TWENTY, tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")


def test_labels_are_text_and_an_unknown_suffix_is_refused(tmp_path):
    views.draw(np.eye(2, dtype=int), ["$x_", "b"], tmp_path / "matrix.svg")
    with pytest.raises(UserError, match="matrix.doc"):
        views.draw(np.eye(2, dtype=int), ["a", "b"], tmp_path / "matrix.doc")
