"""The schedule of the warm-up."""

import pytest

from zsp.inference.sampling.warmup import Window, schedule


def test_a_thousand_transitions_are_divided_as_in_stan():
    lengths = [(window.length, window.estimates_mass) for window in schedule(1000, adapts_mass=True)]
    assert lengths == [(75, False), (25, True), (50, True), (100, True), (200, True), (500, True), (50, False)]


def test_every_schedule_is_as_long_as_was_asked_for():
    for n in range(2000):
        for adapts_mass in (True, False):
            windows = schedule(n, adapts_mass)
            assert sum(window.length for window in windows) == n
            assert all(window.length > 0 for window in windows)
            if windows:
                assert not windows[-1].estimates_mass, "step sizes are adapted to the last mass matrix"
            if n >= 20 and adapts_mass:
                assert not windows[0].estimates_mass
                lengths = [window.length for window in windows if window.estimates_mass]
                assert lengths and lengths == sorted(lengths)
            else:
                assert not any(window.estimates_mass for window in windows)


@pytest.mark.parametrize("n, expected", [(0, []), (19, [19]), (100, [15, 75, 10]), (150, [75, 25, 50])])
def test_short_warm_ups(n, expected):
    assert [window.length for window in schedule(n, adapts_mass=True)] == expected
    assert schedule(n, adapts_mass=False) == ([Window(n, False)] if n else [])
