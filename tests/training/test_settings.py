"""Settings from plain data and files, changes by dotted names, and what is refused with which words."""

import json
import math
from dataclasses import dataclass, field

import pytest

from hf_clsi.training.recipes import Recipe, recipe
from hf_clsi.training.settings import KEYS, from_plain, read_file, to_yaml, with_changes
from hf_clsi.training.sizes import SIZES


@dataclass(frozen=True)
class Inner:
    name: str
    rate: float = 0.5
    betas: tuple[float, float] = (0.9, 0.98)
    weights: tuple[float, ...] | None = None
    every: int | str = 1


@dataclass(frozen=True)
class Outer:
    count: int
    inner: Inner
    parts: dict[str, float] = field(default_factory=dict, metadata={KEYS: lambda _: None})
    free: dict = field(default_factory=lambda: {"size": 3, "on": True, "left": None, "deep": {"x": 1.0}})
    known: dict = field(default_factory=dict, metadata={KEYS: lambda _: {"width", "depth"}})
    stages: tuple[Inner, ...] = ()
    flag: bool = False


PLAIN = {"count": 1, "inner": {"name": "i"}, "stages": [{"name": "a"}, {"name": "b", "every": "story"}]}
OUTER = Outer(1, Inner("i"), stages=(Inner("a"), Inner("b", every="story")))


def test_plain_data_become_nested_settings():
    assert from_plain(Outer, PLAIN) == OUTER


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("count", 4e5, 400_000),
        ("inner.rate", 1, 1.0),
        ("inner.betas", [0, 1], (0.0, 1.0)),
        ("inner.weights", [1, 2, 3], (1.0, 2.0, 3.0)),
        ("inner.weights", None, None),
        ("inner.every", "story", "story"),
        ("inner.every", 2.0, 2),
        ("parts", {"en": 1}, {"en": 1.0}),
        ("flag", True, True),
        ("known", {"width": "any"}, {"width": "any"}),
    ],
)
def test_values_take_the_type_of_the_annotation_either_way(path, value, expected):
    data = json.loads(json.dumps(PLAIN))
    target = data
    for name in path.split(".")[:-1]:
        target = target[name]
    target[path.split(".")[-1]] = value
    for settings in (from_plain(Outer, data), with_changes(OUTER, {path: value})):
        found = settings
        for name in path.split("."):
            found = getattr(found, name)
        assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cuont": 2},
            r"unknown setting 'cuont': 'cuont' is not one of count, inner, .*Did you mean 'count'\?",
        ),
        ({"inner": {"nmae": "x"}}, r"unknown setting 'inner.nmae': .*Did you mean 'name'\?"),
        ({"inner": {}}, r"setting 'inner.name' is missing"),
        ({"inner": 3}, r"setting 'inner' must be a group of settings, got 3"),
        ({"count": "many"}, r"setting 'count' must be a whole number, got 'many'"),
        ({"count": True}, r"setting 'count' must be a whole number, got True"),
        ({"count": 0.5}, r"setting 'count' must be a whole number, got 0.5"),
        ({"count": None}, r"setting 'count' must be a whole number, got null"),
        ({"flag": 1}, r"setting 'flag' must be true or false, got 1"),
        ({"inner": {"name": "i", "rate": math.nan}}, r"'inner.rate' must be a finite number, got nan"),
        ({"inner": {"name": "i", "betas": [1]}}, r"'inner.betas' must be a list of 2, got \[1\]"),
        ({"inner": {"name": "i", "betas": [1, "x"]}}, r"'inner.betas.1' must be a finite number, got 'x'"),
        ({"inner": {"name": "i", "every": 0.5}}, r"'inner.every' must be a whole number or a word, got 0.5"),
        ({"parts": {"en": "x"}}, r"'parts.en' must be a finite number, got 'x'"),
        ({"parts": {1: 1}}, r"setting 'parts' must be a group of names and values"),
        ({"known": {"widht": 1}}, r"unknown setting 'known.widht': .*Did you mean 'width'\?"),
        (
            {"stages": [{"name": "a", "evry": 1}]},
            r"unknown setting 'stages.0.evry': .*Did you mean 'every'\?",
        ),
        ({"stages": "a"}, r"setting 'stages' must be a list, each entry a group of settings, got 'a'"),
    ],
)
def test_plain_data_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        from_plain(Outer, {**PLAIN, **changes})


def test_a_list_is_no_group():
    with pytest.raises(ValueError, match=r"the file must be a group of settings, got \[1\]"):
        from_plain(Outer, [1])


def test_changes_reach_entries_by_name_and_by_place_and_leave_the_rest():
    changed = with_changes(OUTER, {"stages.b.every": 2, "stages.0.rate": 1, "parts.de": 3, "free.deep.x": 2})
    assert changed.stages == (Inner("a", rate=1.0), Inner("b", every=2))
    assert (changed.parts, changed.free["deep"], changed.inner) == ({"de": 3.0}, {"x": 2.0}, OUTER.inner)
    assert (OUTER.parts, OUTER.free["deep"]) == ({}, {"x": 1.0})


def test_later_changes_win():
    assert with_changes(OUTER, {"count": 2, "inner.name": "x"}).count == 2
    assert with_changes(with_changes(OUTER, {"count": 2}), {"count": 3}).count == 3


def test_where_nothing_stood_anything_may_stand():
    assert with_changes(OUTER, {"free.left": [1]}).free["left"] == [1]
    assert with_changes(OUTER, {"known.depth": "x"}).known == {"depth": "x"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner": {"name": "x"}}, "setting 'inner' is a group; change its fields: inner.name, inner.rate"),
        ({"stages": []}, "setting 'stages' is a group; change the fields of its entries: stages.a, stages.b"),
        ({"stages.a": {}}, "setting 'stages.a' is a group; change its fields: stages.a.name"),
        ({"stages.c.rate": 1}, "unknown setting 'stages.c.rate': 'c' is not one of a, b"),
        ({"stages.7.rate": 1}, "unknown setting 'stages.7.rate': '7' is not one of a, b"),
        ({"count.x": 1}, "setting 'count.x': 'count' is the value 1 and has no fields"),
        ({"free.sise": 1}, r"unknown setting 'free.sise': .*Did you mean 'size'\?"),
        ({"free.on": 1}, "setting 'free.on' is True by default; got 1, which is of another type"),
        (
            {"known.widht": 1},
            r"unknown setting 'known.widht': 'widht' is not one of depth, width. Did you mean",
        ),
        ({"known": {"widht": 1}}, "unknown setting 'known.widht'"),
        (
            {"inner.weights": 1},
            "'inner.weights' is None by default; got 1, .*each entry a finite number or null",
        ),
    ],
)
def test_changes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        with_changes(OUTER, changes)


def write(tmp_path, text, name="x.yaml"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_yaml_is_read_as_version_1_2(tmp_path):
    text = """
        learning_rate: 5e-4
        budget: 61_440_000_000
        steps: 4e5
        decimal: .5
        languages: [no, en, yes]
        on: true
        nothing: null
        empty:
        quoted: "5e-4"
        date: 2024-01-01
        time: 12:30
        word: été
    """
    assert read_file(write(tmp_path, text)) == {
        "learning_rate": 0.0005, "budget": 61_440_000_000, "steps": 400_000.0, "decimal": 0.5,
        "languages": ["no", "en", "yes"], "on": True, "nothing": None, "empty": None, "quoted": "5e-4",
        "date": "2024-01-01", "time": "12:30", "word": "été",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.toml", "", r"settings are read from .yaml, .yml and .json files, got .*x.toml"),
        ("x.yaml", "a: [1", r"x.yaml cannot be read: .*expected ',' or '\]'"),
        ("x.yaml", "a: 1\nb: 2\na: 3\n", "x.yaml cannot be read: 'a' is given twice, again in line 3"),
        ("x.json", '{"a": 1, "a": 2}', "x.json cannot be read: 'a' is given twice"),
        ("x.json", "{", "x.json cannot be read: Expecting property name"),
        ("x.yaml", "a: !!python/object/apply:os.getcwd []", "x.yaml cannot be read: could not determine a"),
    ],
)
def test_files_that_are_no_settings_are_refused(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_file(write(tmp_path, text, name))


@pytest.mark.parametrize(
    "value",
    [
        "5e-4",
        "no",
        "true",
        "True",
        "null",
        "",
        "~",
        "1_000",
        "é",
        5e-4,
        1e20,
        1e-05,
        3,
        True,
        None,
        [],
        {},
        ["1"],
    ],
)
def test_what_is_written_as_yaml_is_read_back(tmp_path, value):
    found = read_file(write(tmp_path, to_yaml({"name": value})))
    assert found == {"name": value} and type(found["name"]) is type(value)


def test_a_recipe_comes_back_from_yaml_and_json(tmp_path):
    plan = with_changes(
        recipe("interleave", SIZES["1b"], ["no", "en"]),
        {"stages.interleaved.switching.probability": 0.3, "stages.interleaved.weights": [1, 3]},
    )
    assert Recipe.from_dict(read_file(write(tmp_path, to_yaml(plan.to_dict())))) == plan
    assert Recipe.from_dict(read_file(write(tmp_path, json.dumps(plan.to_dict()), "x.json"))) == plan
