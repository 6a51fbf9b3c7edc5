"""config.memory="auto": the fastest way to compute a step that fits, and the same one on resume."""

import jax
import numpy as np
import pytest
from small_run import prepared

from vit_jax import config as configuration
from vit_jax.errors import UserError
from vit_jax.runtime import host_memory, sharding
from vit_jax.runtime.pace import temporary_bytes
from vit_jax.training import auto_memory, memory, run
from vit_jax.training.auto_memory import Choice
from vit_jax.training.evaluators import eval_batch_size
from vit_jax.training.setup import compile_train_step, computed_as

FASTEST = Choice("none", 1)


@pytest.fixture(scope="module")
def setup():
    return prepared(memory="auto", batch_size="128")


@pytest.fixture(scope="module")
def needed(setup):
    """Bytes of the fastest choice."""
    return memory.needed_bytes(setup, compile_train_step(setup))


@pytest.fixture(autouse=True)
def no_pages_are_kept(monkeypatch):
    """Whatever commands ran before in this process."""
    monkeypatch.setattr(host_memory, "freed_pages_are_kept", lambda: False)


@pytest.fixture
def compiles(monkeypatch):
    """What is compiled from here on."""
    found = []

    def count(setup):
        found.append(chosen(setup))
        return compile_train_step(setup)

    monkeypatch.setattr(auto_memory, "compile_train_step", count)
    return found


def chosen(setup):
    return Choice(setup.program.model.remat or "none", setup.config.accumulation_steps)


def test_without_need_nothing_is_rematerialised(setup, needed, compiles, capsys):
    found, _, _ = auto_memory.choose(setup, needed)
    assert chosen(found) == FASTEST
    assert compiles == [FASTEST]
    assert "remat=none, accumulation_steps=1: " in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.7, 0.45])
def test_the_choice_fits_and_few_programs_are_compiled(setup, needed, compiles, share, capsys):
    limit = int(share * needed)
    found, compiled, _ = auto_memory.choose(setup, limit)
    assert memory.needed_bytes(found, compiled) <= limit
    assert compiles[0] == FASTEST and compiles[-1] == chosen(found) != FASTEST
    assert len(compiles) <= 4
    order = sorted(
        auto_memory.choices(setup), key=lambda choice: auto_memory.seconds(setup, choice)
    )
    assert [order.index(choice) for choice in compiles] == sorted(map(order.index, compiles))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[-1] for line in lines] == [
        *["does not fit"] * (len(compiles) - 1), "the fastest that fits"
    ]  # fmt: skip


def test_the_step_stays_the_same_up_to_the_order_of_sums(setup, needed):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (128, 16, 16, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, 128).astype(np.int32),
    }
    after = []
    for limit in (needed, int(0.45 * needed)):
        found, compiled, _ = auto_memory.choose(setup, limit)
        now, metrics = compiled(
            found.program.initialise(), sharding.to_devices(batch, found.program.mesh)
        )
        after.append(jax.device_get((now.params, metrics["train/loss"])))
    (params, loss), (others, other_loss) = after
    assert other_loss == pytest.approx(loss, rel=1e-5)
    for path in params:
        np.testing.assert_allclose(others[path], params[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_resumed_run_keeps_its_choice(setup, needed, compiles, capsys):
    before = Choice("products", 2)
    found, _, _ = auto_memory.choose(setup, needed, before)  # a faster one would fit by now
    assert chosen(found) == before and compiles == [before]
    assert "as before" in capsys.readouterr().out


def test_a_run_that_cannot_go_on_as_it_began_says_so(setup, needed, capsys):
    limit = int(0.7 * needed)
    found, compiled, _ = auto_memory.choose(setup, limit, FASTEST)
    assert chosen(found) != FASTEST and memory.needed_bytes(found, compiled) <= limit
    assert f"this run began with {FASTEST}; rounding differs" in capsys.readouterr().out


@pytest.mark.parametrize("before", [None, Choice("full", 128)])
def test_a_model_that_never_fits_is_refused(setup, before):
    limit = int(1.1 * memory.state_bytes(setup))
    with pytest.raises(UserError, match=r"with remat=full, accumulation_steps=128 and") as error:
        auto_memory.choose(setup, limit, before)
    assert "\n" not in str(error.value)


def test_a_compiler_that_refuses_is_a_choice_that_does_not_fit(setup, monkeypatch):
    def refuse(setup):
        if chosen(setup) == FASTEST:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in hbm.")
        return compile_train_step(setup)

    monkeypatch.setattr(auto_memory, "compile_train_step", refuse)
    found, _, _ = auto_memory.choose(setup, 2**40)
    order = sorted(
        auto_memory.choices(setup), key=lambda choice: auto_memory.seconds(setup, choice)
    )
    assert chosen(found) == order[1]


def test_accumulation_is_cheap_until_a_part_is_small():
    setup = prepared(batch_size="1024")  # of 16 patches each

    def of(*choice):
        return auto_memory.seconds(setup, Choice(*choice))

    assert 1 == of("none", 1) < of("none", 2) < of("products", 1) < of("none", 64)


def test_the_choice_is_saved(setup, tmp_path):
    assert auto_memory.read(tmp_path) is None
    auto_memory.write(tmp_path, computed_as(setup, remat="products", accumulation_steps=4))
    assert auto_memory.read(tmp_path) == Choice("products", 4)
    (tmp_path / auto_memory.FILE).write_text('{"parts": 4}')
    with pytest.raises(UserError, match=r"memory\.json is damaged"):
        auto_memory.read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(memory="automatic"), r"config\.memory='automatic' must be as_configured or auto"),
        (dict(memory="auto", accumulation_steps="2"), "chooses config.accumulation_steps"),
        (dict(memory="auto", model__remat="full"), "leave them out"),
    ],
)
def test_settings_that_contradict(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        auto_memory.choose_setup(prepared(**settings), tmp_path, resuming=False)


def test_a_mistake_is_said_before_the_first_stage(tmp_path):
    config = configuration.load("configs/quickstart.py", {"memory": "automatic"})
    with pytest.raises(UserError, match="must be as_configured or auto"):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def pages_are_kept(monkeypatch, no_pages_are_kept):
    """As in a command that computes on CPUs; returns what is given back."""
    calls = []
    monkeypatch.setattr(host_memory, "freed_pages_are_kept", lambda: True)
    monkeypatch.setattr(host_memory, "return_freed_pages", lambda: calls.append(1))
    return calls


@pytest.mark.parametrize("mode", ["as_configured", "auto"])
@pytest.mark.parametrize("spare", [0, -1])
def test_freed_pages_are_kept_where_temporaries_fit_twice(
    mode, spare, pages_are_kept, monkeypatch, tmp_path, capsys
):
    # In one part, so that nothing else is faster.
    setup = prepared(memory=mode, batch_size="1", checkpoint_every_steps="5")
    compiled = compile_train_step(setup)
    most = memory.needed_bytes(setup, compiled, kept=True)
    assert most == memory.needed_bytes(setup, compiled) + temporary_bytes(compiled)
    monkeypatch.setattr(auto_memory, "CLEARING", 1.01)  # the next best thing
    monkeypatch.setattr(memory, "device_memory", lambda config: most + spare)
    found, _, expected = auto_memory.choose_setup(setup, tmp_path, resuming=False)
    assert chosen(found) == FASTEST
    assert bool(pages_are_kept) == ("freed pages are returned" in capsys.readouterr().out)
    assert bool(pages_are_kept) == (spare < 0)
    assert expected > host_memory.resident_bytes()


def test_rematerialisation_is_preferred_to_giving_pages_back(setup, needed, pages_are_kept):
    found, compiled, kept = auto_memory.choose(setup, needed)  # so not for temporaries twice
    assert kept and chosen(found) != FASTEST
    assert memory.needed_bytes(found, compiled, kept=True) <= needed


def test_evaluation_takes_no_more_images_at_once_than_training(setup):
    config = computed_as(setup, remat="none", accumulation_steps=4).config
    assert eval_batch_size(config) == 32
    config.eval_batch_size = 100
    assert eval_batch_size(config) == 100
