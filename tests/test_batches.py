"""Windows of the stream: training sees each once an epoch, evaluation predicts each token once."""

import numpy as np
import pytest

from hvdlm.batches import IGNORED, EvaluationWindows, TrainBatches
from hvdlm.errors import UserError
from hvdlm.shards import TokenStream


@pytest.fixture(scope="module")
def stream(data_dir):
    return TokenStream(data_dir, "train")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_epoch_of_windows_is_the_stream(stream, size):
    batches = TrainBatches(stream, seq_len=64, global_batch=6, seed=3)
    steps = -(-batches.num_samples // 6)
    windows = np.concatenate(
        [batches.of_step(step, rank=rank, size=size) for step in range(steps) for rank in range(size)]
    )
    windows = windows[: batches.num_samples]
    assert windows.shape[1] == 65
    whole = stream.read(0, len(stream))
    expected = np.stack([whole[i * 64 : i * 64 + 65] for i in range(batches.num_samples)])
    assert sorted(map(bytes, windows)) == sorted(map(bytes, expected))
    assert not (windows == expected).all()


def test_a_split_shorter_than_a_window_is_an_error(stream):
    with pytest.raises(UserError, match="fewer than one sequence"):
        TrainBatches(stream, seq_len=10**8, global_batch=2, seed=0)


@pytest.mark.parametrize("max_tokens", [0, 1, 31, 32, 33, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_token_is_a_target_exactly_once(stream, size, max_tokens):
    windows = EvaluationWindows(stream, seq_len=32, eos_id=256, max_tokens=max_tokens)
    pairs = [pair for rank in range(size) for pair in windows.batches(4, rank=rank, size=size)]
    inputs, targets = (np.concatenate(part).ravel() for part in zip(*pairs, strict=True))
    is_target = targets != IGNORED
    whole = stream.read(0, max_tokens or len(stream))
    assert targets[is_target].tolist() == whole.tolist()
    assert inputs[is_target].tolist() == [256, *whole[:-1].tolist()]
