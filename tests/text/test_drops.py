"""What is left out is counted by reason, with its id."""

from hf_clsi.text.drops import Drop, Drops


def test_drops_are_counted_and_written():
    drops = Drops()
    drops.add("b", "empty")
    drops.add("a", "duplicate", "as b")
    drops.add("c", "empty")
    assert drops.counts() == {"duplicate": 1, "empty": 2}
    lines = [drop.to_dict() for drop in drops]
    assert lines[1] == {"id": "a", "reason": "duplicate", "message": "as b"}
    assert Drops(lines) == drops and Drops([Drop("x", "y")]).counts() == {"y": 1}
