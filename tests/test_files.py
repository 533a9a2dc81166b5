"""Files that appear whole or not at all, and what is written into them."""

import json
import math

import numpy as np
import pytest

from hvdlm.files import to_json


def test_json_has_null_for_what_is_not_finite():
    """RFC 8259 has no NaN: other programs refuse it."""
    value = {"a": math.nan, "b": [math.inf, (1.5, -math.inf)], "c": {"d": np.float64("nan")}, "e": "NaN", "f": 7}
    expected = {"a": None, "b": [None, [1.5, None]], "c": {"d": None}, "e": "NaN", "f": 7}
    assert json.loads(to_json(value), parse_constant=pytest.fail) == expected
    assert to_json({"a": 0.1}, indent=1) == json.dumps({"a": 0.1}, indent=1)
