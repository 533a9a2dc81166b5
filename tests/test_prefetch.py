"""What is read ahead is what would have been read."""

import pytest

from hvdlm.train.prefetch import Prefetch


def test_the_expected_read_is_used_once_and_another_is_made_anew():
    made = []
    reader = Prefetch(lambda *key: made.append(key) or key)
    reader.expect(1, 0)
    assert reader.get(1, 0) == (1, 0)
    assert made == [(1, 0)]
    assert reader.get(1, 0) == (1, 0)
    reader.expect(2, 0)
    assert reader.get(7, 0) == (7, 0)
    reader.close()
    assert sorted(made) == [(1, 0), (1, 0), (2, 0), (7, 0)]


def test_an_error_of_the_thread_is_raised_where_the_data_is_needed():
    def read(step):
        raise OSError(f"cannot read step {step}")

    reader = Prefetch(read)
    reader.expect(3)
    with pytest.raises(OSError, match="step 3"):
        reader.get(3)
    reader.close()
