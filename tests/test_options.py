"""Option objects: frozen, typed, in range, and names with a hint."""

import json

import pytest
from pydantic import Field, ValidationError

from sbi_dgm.errors import OptionError
from sbi_dgm.options import Options, describe, make, name_in, restore


class Tea(Options):
    minutes: int = Field(default=4, ge=1, le=10)
    kind: str = "green"
    sizes: tuple[int, ...] = (1, 2)


class Tray(Options):
    tea: Tea = Tea()
    cups: int = 2


TABLE = {"tea": (__name__, "Tea"), "tray": (__name__, "Tray")}


@pytest.mark.parametrize(("given", "nearest"), [("minute", "minutes"), ("minutse", "minutes"), ("kinds", "kind")])
def test_an_unknown_option_suggests_the_nearest(given, nearest):
    with pytest.raises(OptionError, match=f"unknown option of Tea '{given}': did you mean '{nearest}'"):
        Tea(**{given: 1})


def test_an_option_like_none_lists_the_known():
    with pytest.raises(OptionError, match=r"'qqq'\. Known: kind, minutes, sizes\."):
        Tea(qqq=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"minutes": 0}, r"Tea\(minutes=0\): input should be greater than or equal to 1"),
        ({"minutes": 11}, r"Tea\(minutes=11\): input should be less than or equal to 10"),
        ({"minutes": 2.5}, r"minutes=2\.5"),
        ({"minutes": "long"}, r"minutes='long'"),
        ({"minutes": None}, r"minutes=None"),
        ({"sizes": (1, "big")}, r"sizes\.1='big'"),
    ],
)
def test_a_value_out_of_range_or_type_is_refused_with_name_and_value(given, said):
    with pytest.raises(OptionError, match=said):
        Tea(**given)


def test_options_are_frozen_and_compare_by_value():
    tea = Tea(minutes=3)
    with pytest.raises(ValidationError, match="frozen"):
        tea.minutes = 5
    assert tea == Tea(minutes=3) != Tea(minutes=4)


def test_make_finds_by_name_and_suggests():
    assert make("drink", TABLE, "tea", minutes=3) == Tea(minutes=3)
    assert name_in(TABLE, Tea()) == "tea"
    with pytest.raises(OptionError, match="unknown drink 'tee': did you mean 'tea'"):
        make("drink", TABLE, "tee")


@pytest.mark.parametrize("options", [Tea(), Tea(minutes=7, sizes=(3,)), Tray(tea=Tea(kind="black"), cups=5)])
def test_description_survives_json(options):
    assert restore("drink", TABLE, json.loads(json.dumps(describe(TABLE, options)))) == options


def test_a_stored_option_that_is_unknown_is_refused():
    with pytest.raises(OptionError, match="milk"):
        restore("drink", TABLE, {"name": "tray", "options": {"tea": {"name": "tea", "options": {"milk": 1}}}})
