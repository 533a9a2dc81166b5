"""Tasks of labelled records, from shards to figures; the same numbers for any batches."""

import json
import threading

import numpy as np
import pytest
import torch
from labelled import ANSWERED, FIELDS, TAGGED, answered, make_data, run_of, tagged

from hvdlm.data.corpora import open_corpora
from hvdlm.data.manifest import read_manifest
from hvdlm.data.record_batches import Layout, RecordBatches
from hvdlm.data.records import Records
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.models import MODELS, Vocabulary, build_model
from hvdlm.parallel.axes import axes_of
from hvdlm.tasks import TASKS, TaskContext
from hvdlm.tasks.language_model import NoiseConfig, ObjectiveConfig
from hvdlm.tasks.layouts.text import room_for
from hvdlm.tasks.pooling import POOLINGS
from hvdlm.train.setup import build_learner, train
from hvdlm.train.step import GradientLearner
from hvdlm.train.token_plan import TokenPlan
from hvdlm.world.place import Place
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads

TRANSFORMER = {"family": "transformer", "causal": False, "layers": 1, "heads": 2, "width": 32}
DECODER = {"family": "transformer", "layers": 2, "heads": 2, "width": 32}
TRANSLATOR = {
    "family": "transformer",
    "layers": 1,
    "encoder_layers": 1,
    "heads": 2,
    "width": 32,
    "positions": {"kind": "learned", "max_seq_len": 64},
}
LSTM = {"family": "lstm", "bidirectional": True, "layers": 1, "width": 24}
KINDS = {
    "records": (),
    "tagged": (tagged, TAGGED),
    "answered": (answered, ANSWERED),
    "plain": (tagged, {**TAGGED, "tags": "labels"}),
}
# name -> data, model, task, steps' epochs, figure and what it has to reach
CNN = {"family": "cnn", "embed_width": 16, "kernels": [1, 2], "maps": 16}
OF_LABEL = {"kind": "classify", "label": "label"}
BALANCED = {**OF_LABEL, "class_weights": "balanced"}
WRITTEN = {"kind": "seq2seq", "language": "en", "metrics": ["bleu", "exact_match"]}
CASES = {
    "class": ("records", TRANSFORMER, {**OF_LABEL, "pair": "other"}, 10, ("accuracy", 0.85)),
    "cnn": ("records", CNN, {**OF_LABEL, "pooling": "max"}, 16, ("accuracy", 0.8)),
    "balanced": ("records", LSTM, BALANCED, 10, ("f1_macro", 0.75)),
    "several": ("records", TRANSFORMER, {**OF_LABEL, "label": "topics", "pooling": "max"}, 8, ("accuracy", 0.8)),
    "number": ("records", LSTM, {"kind": "classify", "label": "score"}, 8, ("pearson", 0.7)),
    "tag": ("tagged", LSTM, {"kind": "tag"}, 16, ("f1", 0.8)),
    "tag without crf": ("tagged", LSTM, {"kind": "tag", "crf": False}, 8, ("accuracy", 0.6)),
    "predicate": ("tagged", LSTM, {"kind": "tag", "predicate": "asked"}, 16, ("f1", 0.8)),
    "span": ("answered", TRANSFORMER, {"kind": "span", "stride": 8}, 20, ("exact_match", 0.8)),
    "match": ("answered", LSTM, {"kind": "span", "stride": 8, "match": True}, 40, ("exact_match", 0.8)),
    "seq2seq": ("records", TRANSLATOR, WRITTEN, 30, ("bleu", 6)),
    "packed": ("records", DECODER, {**WRITTEN, "metrics": ["rouge"], "packing": True}, 40, ("rouge1", 0.3)),
    "decoder": ("records", DECODER, {**WRITTEN, "metrics": ["rouge"], "beams": 2}, 30, ("rouge1", 0.4)),
}


@pytest.fixture(scope="module")
def data_of(tmp_path_factory):
    """A folder of shards of each kind, made once."""
    made = {}

    def data_of(kind):
        if kind not in made:
            made[kind] = make_data(tmp_path_factory.mktemp(kind), SerialWorld(), *KINDS[kind])
        return made[kind]

    return data_of


@pytest.mark.parametrize("name", CASES)
def test_each_task_learns_and_is_judged(name, data_of, tmp_path):
    kind, model, task, epochs, (figure, bar) = CASES[name]
    config = run_of(data_of(kind), tmp_path / "run", f"train.epochs={epochs}", "optim.lr=5e-3", model=model, task=task)
    train(config, SerialWorld())
    lines = tmp_path / "lines.jsonl"
    found = evaluate_checkpoint(tmp_path / "run", (), "test", SerialWorld(), predictions=lines)
    assert found["num_records"] == 61 and found[figure] >= bar, found
    low, high = found[f"{figure}_interval"]
    assert low <= found[figure] <= high
    assert len(lines.read_text().splitlines()) == 61


def task_of(data, kind, **settings):
    manifest = read_manifest(data)
    vocabulary = Vocabulary(manifest.vocab_size, manifest.eos_id, manifest.bos_id)
    context = TaskContext(vocabulary, ObjectiveConfig(), NoiseConfig(), None, manifest.fields)
    return TASKS[kind](kind=kind, **settings).build(context), vocabulary, Records(data, "train", manifest)


def fitted(data, model, kind, **settings):
    """(task, model, layout, rows of 12 examples)."""
    task, vocabulary, records = task_of(data, kind, **settings)
    section = MODELS[model["family"]](**model).for_sequences(32)
    size = vocabulary.size + task.config.extra_ids
    built = build_model(section, Vocabulary(size, vocabulary.eos_id, vocabulary.bos_id), seed=0)
    task.fit(built)
    layout = task.layout(records, 32, training=True)
    return task, built, layout, layout.rows(np.arange(12))


SPLIT_CASES = {
    name: CASES[name]
    for name in ("class", "several", "number", "tag", "tag without crf", "span", "match", "seq2seq", "decoder")
}


@pytest.mark.parametrize("name", SPLIT_CASES)
def test_a_gradient_is_the_same_however_examples_are_batched(name, data_of):
    """M2, M18, M35: one batch of 12 against 12 of one, each with its own width."""
    kind, model, settings, *_ = CASES[name]
    task, built, layout, rows = fitted(data_of(kind), model, **settings)
    ids = torch.from_numpy(rows)
    total = task.count(rows)
    assert total == task.count_of(layout.targets[:12])
    gradients, values = [], []
    for parts in ([ids], [ids[row : row + 1] for row in range(12)]):
        built.zero_grad()
        added = 0
        for part in parts:
            width = int((part != -100).any(0).nonzero()[-1]) + 1
            width = -(-width // task.columns) * task.columns
            sums, _ = task.loss(built, task.batch(part[:, :width], None, None, training=True), None, None)
            (sums.aim / total).backward()
            added = added + sums.values
        gradients.append([parameter.grad.clone() for parameter in built.parameters() if parameter.grad is not None])
        values.append(added)
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=1e-6)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-6)
    assert float(values[0][1]) == total


def test_a_reader_that_matches_words_with_the_question_is_not_exported(data_of):
    task, model, *_ = fitted(data_of("answered"), LSTM, "span", stride=8, match=True)
    with pytest.raises(
        UserError, match=r"^task\.match: transformers has no such head; a reader without it is exported$"
    ):
        task.head_for_exchange(model)


def test_records_that_share_a_row_are_learnt_as_if_each_stood_alone(data_of):
    """M10: the sums and gradients of all packs are those of all records, and changing one changes no other."""
    plain = fitted(data_of("records"), DECODER, **WRITTEN)
    packed = fitted(data_of("records"), DECODER, **WRITTEN, packing=True)
    found = []
    for task, built, layout, training in ((*plain[:3], False), (*packed[:3], True)):
        rows = torch.from_numpy(layout.rows(np.arange(layout.num_examples)))
        sums, _ = task.loss(built, task.batch(rows, None, None, training=training), None, None)
        sums.aim.backward()
        found.append((sums.values, [parameter.grad for parameter in built.parameters()]))
        assert task.count(rows.numpy()) == layout.targets.sum() == int(sums.values[1])
    torch.testing.assert_close(*(values for values, _ in found), rtol=1e-6, atol=1e-6)
    for one, other in zip(*(gradients for _, gradients in found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert packed[2].num_examples < 0.6 * plain[2].num_examples
    assert packed[2].lengths.mean() > 0.9 * 32 and packed[2].lengths.max() <= 32


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_has_no_part_in_what_is_pooled(pooling):
    hidden, lengths = torch.randn(3, 5, 4), torch.tensor([1, 3, 5])
    pooled = POOLINGS[pooling](hidden, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = POOLINGS[pooling](hidden[row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(pooled[row], alone[0])


class OfLengths(Layout):
    def __init__(self, lengths):
        self.lengths = np.array(lengths)
        self.targets, self.records = np.ones(len(lengths), dtype=np.int64), np.arange(len(lengths))

    def rows(self, examples):
        return examples[:, None]


@pytest.mark.parametrize("budget", [0, 64, 500])
def test_every_example_comes_once_an_epoch_and_batches_keep_to_the_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 60, 700)
    batches = RecordBatches(OfLengths(lengths), seed=1, most=32, batch_tokens=budget)
    for epoch in range(3):
        examples = batches.examples(epoch * 700 + np.arange(700))
        assert sorted(examples.tolist()) == list(range(700))
        assert batches.tokens_before(epoch * 700 + 5) == epoch * lengths.sum() + lengths[examples[:5]].sum()
    if budget:
        plan = TokenPlan(batches)
        sizes = [plan.batch_at(step) for step in range(plan.steps_for(1400))]
        assert sum(sizes) == 1400 and [plan.samples_before(step) for step in (0, 1)] == [0, sizes[0]]
        for step, size in enumerate(sizes):
            places = plan.samples_before(step) + np.arange(size)
            assert size == 1 or (size <= 32 and size * lengths[batches.examples(places)].max() <= budget)
        assert plan.steps_for(plan.samples_before(9)) == 9
        padded = sum(
            size * lengths[batches.examples(plan.samples_before(n) + np.arange(size))].max()
            for n, size in enumerate(sizes)
        )
        assert 1 - 2 * lengths.sum() / padded < 0.25


def test_a_budget_leaves_less_than_a_micro_batch_a_rank_without_an_example(data_of, tmp_path):
    words = ("train.batch_tokens=40", "train.global_batch=120", "train.micro_batch=2")
    learner, _ = build_learner(run_of(data_of("records"), tmp_path / "run", *words, task=OF_LABEL), SerialWorld())
    for size in (1, 2, 3):
        learner.examples.num_parts = size
        for step in range(learner.total_steps):
            parts = [learner.examples.slices(step, part) for part in range(size)]
            assert len({len(mine) for mine in parts}) == 1
            micro_batches = [one for mine in parts for one in mine]
            assert [n for one in micro_batches for n in one] == list(range(learner.plan.batch_at(step)))
            assert sum(len(one) == 0 for one in micro_batches) < size


def test_the_longest_text_gives_way_first():
    kept = room_for([np.array([30, 5, 9, 1]), np.array([4, 30, 9, 1])], 16)
    assert [part.tolist() for part in kept] == [[12, 5, 8, 1], [4, 11, 8, 1]]


def test_texts_that_are_too_long_are_cut_and_counted(data_of):
    task, _, records = task_of(data_of("records"), "classify", label="label", pair="other")
    layout = task.layout(records, 8)
    assert layout.num_cut == int((records.num_tokens() + records.num_ids("other") > 8).sum()) > 0
    assert layout.lengths.max() == 8
    eos = read_manifest(data_of("records")).eos_id
    rows = layout.rows(np.arange(20))[:, 1:]
    assert all((row == eos).sum() == 2 for row in rows)  # both texts have kept their ends


def test_words_that_are_cut_off_count_as_predicted_outside(data_of, tmp_path):
    config = run_of(data_of("tagged"), tmp_path / "run", "train.epochs=4", model=LSTM, task={"kind": "tag"})
    train(config, SerialWorld())
    whole = evaluate_checkpoint(tmp_path / "run", (), "test", SerialWorld())
    cut = evaluate_checkpoint(tmp_path / "run", ("data.seq_len=4",), "test", SerialWorld())
    assert cut["num_words"] == whole["num_words"] and cut["cut_words"] > 0
    gold = sum(values["support"] for values in whole["by_type"].values())
    assert gold == sum(values["support"] for values in cut["by_type"].values())
    assert cut["recall"] < whole["recall"]


def test_an_answer_is_found_in_whichever_window_it_stands(data_of):
    task, _, records = task_of(data_of("answered"), "span", stride=2)
    layout = task.layout(records, 8)
    assert layout.num_examples > len(records)
    texts = records.num_tokens()
    for number in range(len(records)):
        windows = np.flatnonzero(layout.records == number)
        seen = np.zeros(texts[number], dtype=bool)
        for window in windows:
            seen[layout.starts[window] : layout.starts[window] + layout.widths[window]] = True
        assert seen.all()
        rows = layout.rows(windows)
        assert (rows[:, 0] > 0).any()  # some window has the answer
        first, last = layout.tokens_of(number, *records.values("answer", number).tolist())
        start, stop = layout.characters_of(number, first, last)
        assert [start, stop] == records.values("answer", number).tolist()


def test_questions_without_an_answer_are_remarked_on_unless_that_is_learnt(tmp_path, caplog):
    def sometimes(random):
        record = answered(random)
        return {**record, "answer": record["answer"] if random.random() < 0.7 else []}

    data = make_data(tmp_path, SerialWorld(), sometimes, ANSWERED)
    records = Records(data, "train", read_manifest(data))
    told = f"{(records.num_values('answer') == 0).sum()} of 240 records of train have no answer; task.may_lack: true"
    for may_lack in (False, True):
        caplog.clear()
        task = {"kind": "span", "may_lack": may_lack}
        train(run_of(data, tmp_path / f"run{may_lack}", "train.epochs=1", model=LSTM, task=task), SerialWorld())
        assert (told in caplog.text) is not may_lack


WRONG = [
    ({"kind": "classify"}, "task.label: the data have label and topics and score .* name one"),
    ({"kind": "classify", "label": "other"}, "task.label: other is no field of type label or number"),
    ({"kind": "classify", "label": "label", "class_weights": [1.0]}, "1 weights for 2 labels"),
    ({"kind": "tag"}, "task.labels: the data have no field of type labels"),
    ({"kind": "span"}, "task.answer: the data have no field of type span"),
]


@pytest.mark.parametrize(("task", "message"), WRONG)
def test_a_task_that_the_data_have_no_field_for_is_one_line(task, message, data_of):
    with pytest.raises(UserError, match=message) as error:
        task_of(data_of("records"), **task)
    assert "\n" not in str(error.value)


def test_settings_that_do_not_go_together(data_of, tmp_path, data_dir):
    data = data_of("records")
    for overrides, message in (
        (("data.order=documents",), "is of text; task: classify reads records"),
        (("noise.word_dropout=0.1",), "noise: is for task: lm"),
        (("task.kind=lm", "train.batch_tokens=5", "model.causal=true"), "train.batch_tokens: is for tasks of labelled"),
    ):
        with pytest.raises(UserError, match=message):
            run_of(data, tmp_path / "run", *overrides)
    with pytest.raises(UserError, match="holds texts, not labelled records"):
        train(run_of(data_dir, tmp_path / "run"), SerialWorld())


def test_other_labels_are_refused_in_evaluation(data_of, tmp_path):
    config = run_of(data_of("records"), tmp_path / "run", task=OF_LABEL)
    train(config, SerialWorld())
    fields = {**FIELDS, "label": {"type": "label", "labels": ["up", "down"]}}
    other = make_data(tmp_path / "o", SerialWorld(), fields=fields)
    with pytest.raises(UserError, match="label has the labels up, down; .* was trained with down, up"):
        evaluate_checkpoint(tmp_path / "run", (f"data.path={other}",), "test", SerialWorld())


@pytest.mark.parametrize("model", [TRANSLATOR, DECODER], ids=["encoder", "decoder"])
def test_a_target_begins_with_what_is_written_first(model, tmp_path):
    """With a vocabulary that has a beginning of text, which is no part of what is written."""
    bpe = {"kind": "bpe", "vocab_size": 260}
    plain = make_data(tmp_path / "plain", SerialWorld(), tokenizer=bpe)
    content = json.loads((plain / "tokenizer.json").read_text())
    begin = {"id": 260, "content": "<s>", **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)}
    content["added_tokens"].append({**begin, "special": True})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = {"kind": "bpe", "path": str(tmp_path / "tokenizer.json"), "bos": "<s>"}
    data = make_data(tmp_path / "data", SerialWorld(), tokenizer=tokenizer)
    assert read_manifest(data).bos_id == 260
    task, _, layout, rows = fitted(data, model, **WRITTEN)
    targets = rows[:, 1::2]
    assert (targets != 260).all() and (rows[:, 0] == 260).all()
    firsts = [row[row != -100][0] for row in targets]
    records = Records(data, "train", read_manifest(data))
    assert firsts == [records.ids("other", number)[1] for number in range(12)]
    assert task.count(rows) == layout.targets[:12].sum()


def test_nothing_is_written_beyond_the_learned_positions(data_of, tmp_path):
    model = {**DECODER, "positions": {"kind": "learned"}}
    config = run_of(data_of("records"), tmp_path / "run", "data.seq_len=14", "train.steps=1", model=model, task=WRITTEN)
    train(config, SerialWorld())  # such a model seldom ends
    lines = tmp_path / "lines.jsonl"
    evaluate_checkpoint(tmp_path / "run", (), "test", SerialWorld(), predictions=lines)
    assert len(lines.read_text().splitlines()) == 61


def test_a_predicate_has_to_be_a_word_that_is_not_cut_off(data_of, tmp_path):
    task, _, records = task_of(data_of("tagged"), "tag", predicate="asked")
    with pytest.raises(UserError, match="data.seq_len: 3 cuts the predicate off record"):
        task.layout(records, 3)
    odd = make_data(tmp_path / "odd", SerialWorld(), lambda random: {**tagged(random), "asked": 99}, TAGGED)
    task, _, records = task_of(odd, "tag", predicate="asked")
    with pytest.raises(UserError, match="asked of record 0 of train is 99, and its . words are counted from 0"):
        task.layout(records, 30)


def test_terms_of_training_are_no_part_of_the_loss_that_is_told(data_of, tmp_path):
    config = run_of(data_of("records"), tmp_path / "run", task={**BALANCED, "class_weights": [1.0, 5.0]})
    train(config, SerialWorld())
    plain = evaluate_checkpoint(tmp_path / "run", (), "test", SerialWorld())["loss"]
    smooth = evaluate_checkpoint(tmp_path / "run", ("objective.label_smoothing=0.5",), "test", SerialWorld())["loss"]
    assert plain == smooth
    with pytest.raises(UserError, match="objective.label_smoothing: task: tag knows no such term"):
        train(
            run_of(data_of("tagged"), tmp_path / "t", "objective.label_smoothing=0.1", task={"kind": "tag"}),
            SerialWorld(),
        )


def test_the_best_follows_what_is_loaded(data_of, tmp_path):
    """Killed before the link was set; resumed with another figure."""
    words = ("train.eval_every=5", "checkpoint.best=accuracy", "checkpoint.keep=1")
    config = run_of(data_of("records"), tmp_path / "run", *words, "train.epochs=2", task=OF_LABEL)
    summary = train(config, SerialWorld())
    link = tmp_path / "run" / "checkpoints" / "best"
    link.unlink()
    link.symlink_to("step_00000001")
    again = train(config, SerialWorld())
    assert again["best_step"] == summary["best_step"] and link.resolve().name == f"step_{summary['best_step']:08d}"
    other = run_of(
        data_of("records"), tmp_path / "run", *words, "train.epochs=3", "checkpoint.best=loss", task=OF_LABEL
    )
    best = train(other, SerialWorld())["best_step"]
    assert best > 20 and link.resolve().name == f"step_{best:08d}"


def test_lm_trains_on_the_texts_of_labelled_records(data_of, tmp_path):
    config = run_of(data_of("records"), tmp_path / "run", model=DECODER, task={"kind": "lm"})
    assert train(config, SerialWorld())["val_loss"] < 3


def test_the_best_checkpoint_is_kept_and_used(data_of, tmp_path):
    words = ("train.eval_every=5", "train.epochs=4", "checkpoint.best=accuracy", "checkpoint.keep=1")
    config = run_of(data_of("records"), tmp_path / "run", *words, task=OF_LABEL)
    summary = train(config, SerialWorld())
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line for line in metrics if "accuracy" in line}
    best = min(scores, key=lambda step: (-scores[step]["accuracy"], scores[step]["loss"], step))
    highest = [step for step in scores if scores[step]["accuracy"] == scores[best]["accuracy"]]
    assert summary["best_step"] == best > min(highest)  # of equal ones it is not the first
    assert evaluate_checkpoint(tmp_path / "run", (), "val", SerialWorld())["step"] == best
    again = evaluate_checkpoint(tmp_path / "run", (), "val", SerialWorld())["accuracy"]
    assert again == scores[best]["accuracy"]


UNKNOWN = {
    "of another task": ("records", LSTM, OF_LABEL, "bleu", "take auto for accuracy, or one of accuracy, f1_macro"),
    "of classes": (
        "records",
        LSTM,
        {"kind": "classify", "label": "score"},
        "accuracy",
        "take auto for pearson, or one of",
    ),
    "of spans": (
        "plain",
        LSTM,
        {"kind": "tag"},
        "f1",
        "take auto for accuracy, or one of accuracy, f1_macro, f1_weighted",
    ),
    "of what is written": ("records", DECODER, WRITTEN, "bleu", "take auto for loss, or one of loss, token_accuracy"),
    "of text": (
        "records",
        DECODER,
        {"kind": "lm"},
        "accuracy",
        "take auto for loss, or one of loss, perplexity, bits",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_figure_that_no_validation_has_is_refused_before_the_first_step(name, data_of, tmp_path):
    kind, model, task, figure, remedy = UNKNOWN[name]
    config = run_of(data_of(kind), tmp_path / "run", f"checkpoint.best={figure}", model=model, task=task)
    with pytest.raises(UserError, match=f"checkpoint.best: {figure} is no figure of this task's validations; {remedy}"):
        train(config, SerialWorld())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_part_of_a_split_has_no_figures_of_predictions_to_choose_by(data_of, tmp_path):
    def run(*words):
        run_dir = tmp_path / "-".join(words)
        return train(run_of(data_of("records"), run_dir, *words, model=CNN, task=OF_LABEL), SerialWorld())

    with pytest.raises(UserError, match="take auto for loss, or one of loss .*train.eval_tokens: null"):
        run("train.eval_tokens=20", "checkpoint.best=accuracy")
    assert run("train.eval_tokens=20", "checkpoint.best=auto")["best_figure"] == "loss"
    assert run("train.eval_tokens=20000", "checkpoint.best=accuracy")["best_figure"] == "accuracy"


@pytest.mark.parametrize(
    ("kind", "task", "figure"),
    [
        ("records", {"kind": "classify", "label": "score"}, "pearson"),
        ("tagged", {"kind": "tag"}, "f1"),
        ("plain", {"kind": "tag"}, "accuracy"),
    ],
)
def test_auto_is_what_the_task_is_measured_by(kind, task, figure, data_of, tmp_path):
    config = run_of(data_of(kind), tmp_path / "run", "checkpoint.best=auto", "train.epochs=1", model=LSTM, task=task)
    assert train(config, SerialWorld())["best_figure"] == figure


def test_a_figure_of_which_less_is_better_keeps_the_least(data_of, tmp_path):
    words = ("checkpoint.best=calibration_error", "train.eval_every=5")
    config = run_of(data_of("records"), tmp_path / "run", *words, model=CNN, task=OF_LABEL)
    summary = train(config, SerialWorld())
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    errors = {line["step"]: line["calibration_error"] for line in metrics if "calibration_error" in line}
    assert errors[summary["best_step"]] == min(errors.values()) < max(errors.values())


def test_a_budget_is_shared_by_replicas_that_the_batch_does_not_divide_by(data_of, tmp_path):
    """12 examples at most in micro-batches of 4, by 2 ranks: a step's examples are those of one process."""
    words = ("train.batch_tokens=60", "train.global_batch=12", "train.micro_batch=4", "sync=tree", "train.steps=4")
    config = run_of(data_of("records"), tmp_path / "run", *words, task=OF_LABEL)
    corpora, building = open_corpora(config.data), threading.Lock()  # weights come from torch's one generator

    def norms(world):
        axes = axes_of(world, config.parallel)
        with building:
            learner = GradientLearner(config, corpora.records("train"), corpora.manifest, axes, Place(0, 1, 1))
        learner.agree()
        found = [float(result.grad_norm) for result in learner.run(0, 4)]
        learner.close()
        return found

    (expected,) = run_on_threads(1, norms)
    for found in run_on_threads(2, norms):
        assert found == pytest.approx(expected, rel=1e-5)
