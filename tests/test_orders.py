"""Windows of the stream: training sees each once an epoch, evaluation predicts each token once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdlm.config import validate
from hvdlm.data.config import DataConfig
from hvdlm.data.orders import ContiguousBatches, OrderSettings, TrainBatches, order_over
from hvdlm.data.stream import TokenStream
from hvdlm.data.windows import IGNORED, EvaluationStreams, EvaluationWindows
from hvdlm.errors import UserError
from hvdlm.partition import slice_of


@pytest.fixture(scope="module")
def stream(data_dir):
    return TokenStream(data_dir, "train")


class Numbers:
    """A stream whose token i is i."""

    def __init__(self, length):
        self._length = length

    def __len__(self):
        return self._length

    def read(self, start, length):
        assert start + length <= self._length
        return np.arange(start, start + length)

    def read_windows(self, starts, length):
        assert starts.max() + length <= self._length
        return starts[:, None] + np.arange(length)


def places(step, global_batch, rank=0, size=1):
    mine = slice_of(rank, size, global_batch)
    return step * global_batch + np.arange(mine.start, mine.stop)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_epoch_of_windows_is_the_stream(stream, size):
    batches = TrainBatches(stream, seq_len=64, seed=3)
    steps = -(-batches.num_samples // 6)
    windows = np.concatenate(
        [batches.windows(places(step, 6, rank, size), step) for step in range(steps) for rank in range(size)]
    )
    windows = windows[: batches.num_samples]
    assert windows.shape[1] == 65
    whole = stream.read(0, len(stream))
    expected = np.stack([whole[i * 64 : i * 64 + 65] for i in range(batches.num_samples)])
    assert sorted(map(bytes, windows)) == sorted(map(bytes, expected))
    assert not (windows == expected).all()


def test_the_random_order_is_frozen():
    """A changed order would silently change the data of every resumed run."""
    batches = TrainBatches(Numbers(41 * 4), seq_len=4, seed=7)
    assert (batches.windows(places(9, 6), 9)[:, 0] // 4).tolist() == [33, 34, 10, 23, 37, 0]


def test_a_split_shorter_than_a_window_is_an_error(stream):
    with pytest.raises(UserError, match="fewer than one sequence"):
        TrainBatches(stream, seq_len=10**8, seed=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 600), st.data())
def test_contiguous_streams_go_on_and_see_each_token_once_an_epoch(seq_len, global_batch, extra, data):
    stream = Numbers(seq_len * global_batch + 1 + extra)
    size = data.draw(st.sampled_from([size for size in (1, 2, 3) if global_batch % size == 0]))
    batches = ContiguousBatches(stream, seq_len=seq_len, global_batch=global_batch)
    steps = batches.epoch_steps
    assert batches.epoch_samples == [steps * global_batch]
    windows = np.stack(
        [
            np.concatenate([batches.windows(places(step, global_batch, rank, size), step) for rank in range(size)])
            for step in range(2 * steps)
        ]
    )  # (steps, global_batch, seq_len + 1)
    for step in range(1, 2 * steps):
        goes_on = windows[step, :, 0] == windows[step - 1, :, -1]
        assert batches.starts_anew(step) == (step == steps)
        assert goes_on.all() or batches.starts_anew(step)
    assert batches.starts_anew(0)
    assert (windows[:steps] == windows[steps:]).all()
    targets = np.sort(windows[:steps, :, 1:].ravel())
    assert targets.tolist() == list(range(1, len(targets) + 1))  # none twice, none left out inside
    assert len(stream) - 1 - len(targets) < global_batch * seq_len


def test_contiguous_streams_lie_one_after_the_other():
    windows = ContiguousBatches(Numbers(25), seq_len=4, global_batch=2).windows(np.array([2, 3]), 1)
    assert windows.tolist() == [[4, 5, 6, 7, 8], [16, 17, 18, 19, 20]]


def test_places_of_another_step_are_refused():
    batches = ContiguousBatches(Numbers(100), seq_len=4, global_batch=2)
    with pytest.raises(ValueError, match="places 2 to 3 are not in step 2"):
        batches.windows(np.array([2, 3]), 2)


def test_streams_shorter_than_a_window_are_an_error():
    assert ContiguousBatches(Numbers(41), seq_len=4, global_batch=10).epoch_steps == 1
    with pytest.raises(UserError, match=r"40 tokens, fewer than one sequence of 4 in each of 10 streams; lower"):
        ContiguousBatches(Numbers(40), seq_len=4, global_batch=10)


def test_the_order_is_chosen_by_name(stream):
    for order, kind in (("random", TrainBatches), ("contiguous", ContiguousBatches)):
        assert isinstance(order_over(stream, OrderSettings(8, 2, 0, 256), order), kind)


def test_a_mixture_has_no_contiguous_order(tmp_path):
    values = {"mixture": [{"path": "a", "weight": 1}], "order": "contiguous"}
    with pytest.raises(UserError, match=r"order: contiguous is an order of one corpus; set data.path, or data.order="):
        validate(DataConfig, values, tmp_path)
    assert validate(DataConfig, {"path": "a", "order": "contiguous"}, tmp_path).order == "contiguous"


def read_by_all(read, size):
    """Flat (inputs, targets) of everything that `size` ranks read, without padding."""
    pieces = []
    for rank in range(size):
        if isinstance(read, EvaluationWindows):
            pieces += read.batches(4, rank=rank, size=size)
        else:
            pieces += [piece for group in read.groups(2, rank=rank, size=size) for piece in read.chunks(group, 50)]
    inputs, targets = [], []
    for piece in pieces:
        for row, context in zip(piece.ids, piece.context, strict=True):
            is_target = row[1:] != IGNORED
            is_target[:context] = False
            inputs += row[:-1][is_target].tolist()
            targets += row[1:][is_target].tolist()
    return inputs, targets


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_token_is_a_target_exactly_once(stream, size):
    windows = EvaluationWindows(stream, seq_len=32, eos_id=256)
    whole = stream.read(0, len(stream)).tolist()
    assert read_by_all(windows, size) == ([256, *whole[:-1]], whole)
    assert windows.num_tokens == len(whole)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize(
    ("length", "seq_len", "stride"), [(100, 20, 5), (103, 20, 7), (20, 20, 3), (7, 20, 3), (64, 8, 8)]
)
def test_windows_that_overlap_predict_each_token_once(length, seq_len, stride, size):
    """Each from the token before it, and from seq_len - stride more at least, but for those of the first window."""
    windows = EvaluationWindows(Numbers(length), seq_len, 999, stride=stride)
    inputs, targets = read_by_all(windows, size)
    assert targets == list(range(length))
    assert inputs == [999, *range(length - 1)]
    first, *rest = [context for piece in windows.batches(3, rank=0, size=1) for context in piece.context.tolist()]
    assert first == 0
    assert set(rest) <= {seq_len - stride}


@pytest.mark.parametrize("streams", [1, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_token_is_a_target_of_some_stream_exactly_once(size, streams):
    read = EvaluationStreams(Numbers(1000), 20, 1000, streams)
    inputs, targets = read_by_all(read, size)
    assert sorted(targets) == list(range(1000))
    assert read.num_tokens == 1000
    assert dict(zip(targets, inputs, strict=True)) == {token: token - 1 if token else 1000 for token in targets}


def test_a_stream_is_read_from_its_beginning_to_its_end():
    (group,) = EvaluationStreams(Numbers(103), 20, 999, 2).groups(2, rank=0, size=1)
    pieces = EvaluationStreams(Numbers(103), 20, 999, 2).chunks(group, 7)
    rows = np.concatenate([piece.ids[:, 1:] for piece in pieces], 1)
    assert [row[row != IGNORED].tolist() for row in rows] == [list(range(51)), list(range(51, 103))]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("max_tokens", [1, 31, 32, 33, 1000, 3000, 10**9])
def test_a_part_is_windows_from_everywhere_at_any_number_of_ranks(size, max_tokens):
    """One of each of equally long parts of the split, of which the last window is shorter."""
    windows = EvaluationWindows(Numbers(3210), seq_len=32, eos_id=9999, max_tokens=max_tokens)
    num = min(101, -(-max_tokens // 32))
    inputs, targets = read_by_all(windows, size)
    assert [max(0, token - 1) for token in targets] == [0 if token == 9999 else token for token in inputs]
    assert len(targets) == windows.num_tokens
    chosen = sorted({token // 32 for token in targets})
    assert len(chosen) == num
    assert [window * num // 101 for window in chosen] == pytest.approx(range(num), abs=1)
    assert targets == sorted(targets) == [token for at in chosen for token in range(at * 32, min(at * 32 + 32, 3210))]


@pytest.mark.parametrize(("streams", "max_tokens", "num"), [(4, 0, 4), (4, 400, 4), (4, 20_000, 62), (1, 20_000, 62)])
def test_a_part_of_streams_is_their_beginnings_and_of_a_long_split_more_streams(streams, max_tokens, num):
    read = EvaluationStreams(Numbers(100_000), 20, 1, streams, max_tokens)
    assert read.num_streams == num
    firsts = [span[0] for span in read._spans(range(num))]
    assert firsts == [number * 100_000 // num for number in range(num)]
    assert read.num_tokens == pytest.approx(max_tokens or 100_000, rel=0.01)
