"""When a process that died is started again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchyard.pool.restarts import YOUNG_DEATHS_MAX, Restarts
from batchyard.wire import control


def test_one_that_lived_is_replaced_at_once() -> None:
    restarts = Restarts()
    for _ in range(100):
        assert restarts.pause_after(1.0, control.EXIT_FAILURE) == 0.0


def test_pauses_of_the_young_double_until_it_is_given_up() -> None:
    restarts = Restarts()
    pauses = [restarts.pause_after(None, control.EXIT_FAILURE) for _ in range(YOUNG_DEATHS_MAX)]
    assert pauses == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, None]


def test_a_long_life_is_a_new_beginning() -> None:
    restarts = Restarts()
    for _ in range(YOUNG_DEATHS_MAX - 1):
        restarts.pause_after(0.5, control.EXIT_FAILURE)
    assert restarts.pause_after(1.5, control.EXIT_FAILURE) == 0.0
    assert restarts.pause_after(0.5, control.EXIT_FAILURE) == 0.0
    assert restarts.pause_after(0.5, control.EXIT_FAILURE) == 0.1


def test_lasting_reasons_are_not_tried_again() -> None:
    for code in (control.EXIT_CONFIGURATION, control.EXIT_DEVICE, control.EXIT_MODEL):
        assert Restarts().pause_after(None, code) is None
        assert Restarts().pause_after(100.0, code) is None


@given(lives=st.lists(st.none() | st.floats(0, 2), max_size=60))
def test_it_is_given_up_after_so_many_young_deaths_in_a_row_and_never_before(
    lives: list[float | None],
) -> None:
    restarts = Restarts()
    in_a_row = 0
    for lived_s in lives:
        pause_s = restarts.pause_after(lived_s, control.EXIT_FAILURE)
        in_a_row = 0 if lived_s is not None and lived_s >= 1 else in_a_row + 1
        if in_a_row == YOUNG_DEATHS_MAX:
            assert pause_s is None
            return
        assert pause_s is not None
        assert 0 <= pause_s <= 30
        assert (pause_s == 0) == (in_a_row <= 1)
