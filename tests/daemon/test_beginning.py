"""How far a start is: nothing is told that is not known yet."""

from __future__ import annotations

from raidd.daemon.beginning import Beginning


def test_a_plain_start_waits_but_knows_everything() -> None:
    beginning = Beginning(reindexing=False)
    assert "last run" in beginning.waiting()
    assert beginning.unknown() == ""
    assert beginning.activity() is None
    assert not beginning.over


def test_while_the_catalog_is_made_again_it_says_how_far() -> None:
    beginning = Beginning(reindexing=True)
    assert "being made again" in beginning.unknown() == beginning.waiting()
    activity = beginning.activity()
    assert activity is not None
    assert (activity.kind, activity.progress) == ("reindex", 0.0)
    beginning.progress(25, 100)
    assert beginning.unknown().endswith("(25 of 100 segments)")
    activity = beginning.activity()
    assert activity is not None
    assert activity.progress == 0.25


def test_afterwards_nothing_is_left_of_it() -> None:
    beginning = Beginning(reindexing=True)
    beginning.progress(100, 100)
    beginning.ended()
    assert (beginning.over, beginning.unknown(), beginning.waiting(), beginning.activity()) == (True, "", "", None)
