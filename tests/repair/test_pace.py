"""How long a repair rests: the share, the floor, the cap, and zeros, which the settings accept."""

from __future__ import annotations

import pytest

from raidd.repair.pace import MIB, Pace


def test_an_idle_array_is_repaired_at_full_speed() -> None:
    assert Pace("low", 8, 0).delay_s(MIB, 1.0, busy=False) == 0


@pytest.mark.parametrize(("priority", "rest_s"), [("low", 3.0), ("normal", 1.0), ("high", 0.0)])
def test_a_busy_array_is_repaired_for_a_share_of_the_time(priority: str, rest_s: float) -> None:
    assert Pace(priority, 0, 0).delay_s(MIB, 1.0, busy=True) == pytest.approx(rest_s)  # type: ignore[arg-type]


def test_the_floor_shortens_the_rest() -> None:
    assert Pace("low", 8, 0).delay_s(16 * MIB, 1.0, busy=True) == pytest.approx(1.0)


def test_below_the_floor_there_is_no_rest() -> None:
    assert Pace("low", 8, 0).delay_s(MIB, 1.0, busy=True) == 0


def test_the_cap_holds_even_when_idle() -> None:
    assert Pace("high", 8, 2).delay_s(6 * MIB, 1.0, busy=False) == pytest.approx(2.0)
