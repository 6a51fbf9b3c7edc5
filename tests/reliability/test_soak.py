"""Scenario 36: random deaths in a row; `python tests/soak.py --minutes=60` does it for longer."""

import os

import pytest
import soak


@pytest.mark.slow
def test_36_random_deaths_end_in_the_undisturbed_bytes():
    counts = soak.soak(minutes=0.3, seed=int(os.environ.get("SOAK_SEED", "0")), steps=200)
    assert counts["runs"] >= 1 and sum(counts.values()) > counts["runs"]
