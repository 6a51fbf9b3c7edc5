"""What the compiler is given does not change by accident: the lowered steps against their hashes.

A hash changes only in a commit that says which arithmetic changed and why, by running
`python tests/lowered_steps.py`. The text depends on the version of JAX, so the hashes are for one:
the oldest that is supported.
"""

import json
import os

import jax
import lowered_steps
import pytest

STORED = json.loads(lowered_steps.STORED.read_text())


def require_stored_version():
    """Skips where JAX is another one, unless the environment says that it must not be."""
    here, there = lowered_steps.versions(), STORED["made_with"]
    if here["jax"] == there["jax"]:
        return
    text = f"the hashes are for jax {there['jax']}, this is {here['jax']}"
    if os.environ.get("REQUIRE_HOLDING_TEST"):
        pytest.fail(text)
    pytest.skip(text)


@pytest.mark.parametrize("name", lowered_steps.CASES)
def test_the_lowered_steps_are_what_they_were(name):
    require_stored_version()
    texts = lowered_steps.texts(name)
    found = {step: lowered_steps.digest(text) for step, text in texts.items()}
    assert found == STORED["hashes"][name], (
        f"another arithmetic than with {STORED['made_with']}; here {lowered_steps.versions()}"
    )


def test_every_stored_case_is_tested():
    assert set(STORED["hashes"]) == set(lowered_steps.CASES)
    training = [steps["train"] for steps in STORED["hashes"].values()]
    assert len(set(training)) == len(training)


def test_a_tpu_and_a_cpu_are_given_different_programs():
    tpu = lowered_steps.texts("tpu")
    cpu = lowered_steps.texts("debug_bfloat16_two_devices")
    assert tpu["train"] != cpu["train"]


def test_another_epsilon_is_another_program():
    plain, changed = (
        lowered_steps.lower(lowered_steps.Case(lowered_steps.DEBUG | more, jax.device_count()))
        for more in ({}, {"model.layer_norm_epsilon": 1e-5})
    )
    for step in ("train", "eval"):
        assert lowered_steps.digest(plain[step]) != lowered_steps.digest(changed[step])


def test_names_and_places_do_not_count_but_operations_do():
    text = (
        "module @jit_step {\n"
        "  func.func public @main(%arg0: tensor<f32> loc(unknown)) {\n"
        "    %0 = call @_itself(%arg0) : (tensor<f32>) -> tensor<f32> loc(#loc2)\n"
        "    %1 = stablehlo.add %0, %0 : tensor<f32>\n"
        '  }\n}\n#loc2 = loc("layers.py":3:1)\n'
    )
    renamed = text.replace("_itself", "identity.1").replace("layers.py", "numerics.py")
    assert lowered_steps.canonical(renamed) == lowered_steps.canonical(text)
    other = text.replace("stablehlo.add", "stablehlo.multiply")
    assert lowered_steps.canonical(other) != lowered_steps.canonical(text)
    assert "loc" not in lowered_steps.canonical(text) and "@2" in lowered_steps.canonical(text)
