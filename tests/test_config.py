"""Dataclass <-> JSON and overrides."""

import dataclasses
import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax import config
from bert_jax.errors import BertJaxError
from bert_jax.models.config import PRESETS, EncoderConfig


@dataclasses.dataclass(frozen=True)
class Circle:
    radius: float = 1.0


@dataclasses.dataclass(frozen=True)
class Square:
    side: int = 2
    name: str = "square"


@dataclasses.dataclass(frozen=True)
class Drawing:
    title: str
    shapes: tuple[Circle | Square, ...] = ()
    frame: Square | None = None
    colour: Literal["red", "blue"] = "red"
    steps: int = 10
    scale: float | None = None
    filled: bool = False
    sizes: tuple[int, ...] = (1, 2)


FULL = Drawing("a", (Circle(0.5), Square(3, "s")), Square(4), "blue", 7, 0.25, True, ())


@pytest.mark.parametrize("value", [Drawing("plain"), FULL, dataclasses.replace(FULL, frame=None, scale=None)])
def test_round_trip_through_text(value, tmp_path):
    assert config.from_json(Drawing, json.loads(json.dumps(config.to_json(value)))) == value
    config.save(value, tmp_path / "drawing.json")
    assert config.load(Drawing, tmp_path / "drawing.json") == value


def test_every_preset_survives():
    for name, preset in PRESETS.items():
        assert config.from_json(EncoderConfig, json.loads(json.dumps(config.to_json(preset)))) == preset, name


@given(
    st.builds(
        Drawing,
        title=st.text(),
        shapes=st.lists(
            st.builds(Circle, radius=st.floats(allow_nan=False))
            | st.builds(Square, side=st.integers(), name=st.text()),
        ).map(tuple),
        frame=st.none() | st.builds(Square),
        steps=st.integers(),
        scale=st.none() | st.floats(allow_nan=False),
        sizes=st.lists(st.integers()).map(tuple),
    )
)
def test_any_value_survives(value):
    assert config.from_json(Drawing, json.loads(json.dumps(config.to_json(value)))) == value


def test_fields_left_out_keep_their_defaults():
    assert config.from_json(Drawing, {"title": "x", "frame": {"kind": "Square"}}) == Drawing("x", frame=Square())


def test_whole_floats_are_integers_and_integers_are_floats():
    read = config.from_json(Drawing, {"title": "x", "steps": 1e6, "scale": 2, "sizes": [3.0]})
    assert (read.steps, read.scale, read.sizes) == (1_000_000, 2.0, (3,))
    assert [type(v) for v in (read.steps, read.scale, read.sizes[0])] == [int, float, int]
    assert config.override(FULL, ["steps=1e6"]).steps == 1_000_000


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"titel": "x"}, "config: unknown key 'titel' in Drawing; did you mean 'title'?"),
        ({"zzz": 1}, "config: unknown key 'zzz' in Drawing; choose from title, shapes, frame"),
        ({"frame": {"sides": 1}}, "config.frame: unknown key 'sides' in Square; did you mean 'side'?"),
        ({"shapes": [{"kind": "Circl"}]}, "config.shapes.0: unknown kind 'Circl'; did you mean 'Circle'?"),
        ({"shapes": [3]}, 'config.shapes.0: expected an object such as {"kind": "Circle"}, got 3; kinds are Circle, Square'),
        ({"shapes": "Square"}, """config.shapes: expected a list such as [{"kind": "Square"}], got 'Square'"""),
        ({"shapes": ["Square"]}, """config.shapes.0: expected an object such as {"kind": "Square"}, got 'Square'; kinds are"""),
        ({"shapes": [{"kind": ["x"]}]}, "config.shapes.0: unknown kind ['x']; choose from Circle, Square"),
        ({"shapes": {"kind": "Circle"}}, "config.shapes: expected a list"),
        ({"frame": {"kind": "Circle"}}, "config.frame: expected Square, got Circle"),
        ({"frame": 3}, "config.frame: expected an object for Square, got 3"),
        ({"colour": "green"}, "config.colour: 'green' is not one of red, blue"),
        ({"steps": 1.5}, "config.steps: expected int, got 1.5"),
        ({"steps": True}, "config.steps: expected int, got True"),
        ({"steps": None}, "config.steps: expected int, got None"),
        ({"scale": "1"}, "config.scale: expected float, got '1'"),
        ({"scale": True}, "config.scale: expected float, got True"),
        ({"filled": 1}, "config.filled: expected bool, got 1"),
        ({"title": 3}, "config.title: expected str, got 3"),
        ({"sizes": [1, "2"]}, "config.sizes.1: expected int, got '2'"),
        ({"sizes": "12"}, "config.sizes: expected a list"),
    ],
)
def test_refusals_say_where_and_what(changes, message):
    with pytest.raises(BertJaxError) as error:
        config.from_json(Drawing, {"title": "x"} | changes)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_required_field_must_be_there():
    with pytest.raises(BertJaxError, match="config: .*title"):
        config.from_json(Drawing, {"steps": 3})


def test_overrides_by_path():
    changed = config.override(
        FULL,
        ["title=b=c", "shapes.0.radius=3", "shapes.1.name=new", "frame.side=9", "colour=red", "scale=null",
         "filled=false", "sizes=[5, 6]", "steps = 12"],
    )
    assert changed == Drawing("b=c", (Circle(3.0), Square(3, "new")), Square(9), "red", 12, None, False, (5, 6))
    assert config.override(FULL, []) == FULL
    assert config.override(FULL, ['shapes.0={"kind": "Square", "side": 8}']).shapes[0] == Square(8)


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("steps", "--set steps: expected path.to.field=value"),
        ("stepz=3", "--set stepz: there is no field 'stepz'; did you mean 'steps'?"),
        ("frame.sid=3", "--set frame.sid: there is no field 'frame.sid'; did you mean 'side'?"),
        ("steps.more=3", "--set steps.more: there is no field 'steps.more'; choose from nothing: it is a value"),
        ("shapes.2.side=3", "--set shapes.2.side: shapes.2 is not an index below 2"),
        ("shapes.x=3", "--set shapes.x: shapes.x is not an index below 2"),
        ("frame.kind=Circle", "--set frame.kind: there is no field 'frame.kind'"),
        ("steps=many", "config.steps: expected int, got 'many'"),
        ("colour=green", "config.colour: 'green' is not one of red, blue"),
    ],
)
def test_overrides_that_are_refused(assignment, message):
    with pytest.raises(BertJaxError) as error:
        config.override(FULL, [assignment])
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_an_override_that_breaks_an_invariant_is_refused():
    with pytest.raises(BertJaxError, match="encoder.hidden_width 768 is not a multiple of heads 7"):
        config.override(EncoderConfig(), ["heads=7"])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(BertJaxError, match="absent.json cannot be read: No such file"):
        config.load(Drawing, tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(BertJaxError, match="broken.json is not JSON"):
        config.load(Drawing, tmp_path / "broken.json")
    (tmp_path / "wrong.json").write_text('{"title": 3}')
    with pytest.raises(BertJaxError, match=r"wrong.json.title: expected str, got 3"):
        config.load(Drawing, tmp_path / "wrong.json")
