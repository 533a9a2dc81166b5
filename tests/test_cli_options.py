"""Every option of every command takes what is typed, or refuses it in one line with exit code 2."""

import math

import click
import pytest

from hvdlm import cli
from hvdlm.cli.options import Number, WholeNumber

EDGES = "nan inf -inf -1 0 1 2 2147483648 9223372036854775807 9223372036854775808 18446744073709551616 1e3 1_0 1e-40"
EDGES += " 1e-300 1e-400 1e308 1e400 0x10 010 1.5 word 1,000 ١ -"
VALUES = [*EDGES.split(), "", " ", " 7 ", "9" * 5000]


def commands_of(group, names=()):
    for name, command in group.commands.items():
        yield from (
            commands_of(command, (*names, name)) if isinstance(command, click.Group) else [((*names, name), command)]
        )


def numbers_of(command):
    return [
        one for one in command.params if isinstance(one, click.Option) and isinstance(one.type, WholeNumber | Number)
    ]


COMMANDS = dict(commands_of(cli.cli))


def dummy(parameter):
    choices = getattr(parameter.type, "choices", None)
    return next(iter(choices)) if choices else "1"


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_a_number_of_an_option_is_within_bounds_or_refused(names, monkeypatch, capsys):
    command, taken = COMMANDS[names], []
    monkeypatch.setattr(command, "callback", lambda **given: taken.append(given) or 0)
    for option in numbers_of(command):
        for value in VALUES:
            words = []
            for other in command.params:
                if other.required and other is not option:
                    words += [dummy(other)] if isinstance(other, click.Argument) else [other.opts[-1], dummy(other)]
            taken.clear()
            with pytest.raises(SystemExit) as caught:
                cli.main([*names, option.opts[-1], value, *words])
            assert caught.value.code == (0 if taken else 2), (option.opts, value)
            assert "Traceback" not in capsys.readouterr().err
            if taken:
                found = taken[0][option.name]
                assert math.isfinite(found)
                assert isinstance(option.type, Number) or abs(found) < 2**63


def test_numbers_are_written_as_in_a_config():
    assert [WholeNumber(1).convert(text, None, None) for text in ("1e3", "1_000", "010")] == [1000, 1000, 10]
    for text in ("nan", "inf", "1e400", "x", ""):
        with pytest.raises(click.BadParameter, match="is no finite number"):
            Number(0).convert(text, None, None)
    for text in ("9223372036854775808", "1e30", "-0x1_0000_0000_0000_0000"):  # of 65 bits
        with pytest.raises(click.BadParameter, match=r"is not in the range -9\d*7<=x<=9223372036854775807"):
            WholeNumber().convert(text, None, None)
    with pytest.raises(click.BadParameter, match="'1.5' is no whole number from 1 on"):
        WholeNumber(1).convert("1.5", None, None)


def test_no_option_reads_numbers_in_another_way():
    """click's own types take nan, inf and whole numbers of any length."""
    strange = [
        (names, option.opts)
        for names, command in COMMANDS.items()
        for option in command.params
        if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType)
        and not isinstance(option.type, WholeNumber | Number)
        and option.opts != ["--time"]
    ]
    assert not strange
