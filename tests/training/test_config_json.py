"""--config=RUN/config.json: the experiment of an earlier run, read as data."""

import copy
import json
import tarfile
from pathlib import Path

import pytest

from vit_jax import config as configuration
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.training.workdir import BEFORE, config_of

SHIPPED = ("quickstart.py", "pretrain.py:B/16,jft", "finetune.py:L/16,cifar10,384", "vtab.py",
           "masked_patch.py", "ablation.py", "few_shot.py:B/32,imagenet21k,9000000",
           "bit_hyperrule.py", "from_scratch_small.py")  # fmt: skip
QUICKSTART = json.loads(configuration.to_json(configuration.load("quickstart.py")))


def written(tmp_path, values) -> Path:
    file = tmp_path / "config.json"
    file.write_text(values if isinstance(values, str) else json.dumps(values))
    return file


@pytest.mark.parametrize("source", SHIPPED)
def test_a_written_config_reads_back_equal(source, tmp_path):
    config = configuration.load(source)
    found = config_of(written(tmp_path, configuration.to_json(config)))
    assert configuration.to_json(found) == configuration.to_json(config)
    assert type(found.schedule.boundaries_percent) is tuple


def changed(key, value):
    values = copy.deepcopy(QUICKSTART)
    *sections, name = key.split("/")
    inner = values
    for section in sections:
        inner = inner[section]
    inner[name] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed("batchsize", 3), r"config.json.batchsize is not a setting.*batch_"),
        (changed("data/dataset", 3), r"config.json.data.dataset=3 must be text"),
        (changed("batch_size", 2.5), r"batch_size=2.5 must be a whole number"),
        (changed("batch_size", None), r"batch_size=None must be a whole number"),
        (changed("batch_size", True), r"batch_size=True must be"),
        (changed("batch_size", 10**40), r"is too large"),
        (changed("batch_size", {"a": 1}), r"batch_size=.* must be one value"),
        (changed("schedule", 1), r"schedule=1 must be a section"),
        (changed("schedule/learning_rate", float("nan")), r"learning_rate=nan must be"),
        (changed("pretrain/seed", -1), r"config.json.pretrain.seed=-1 must be"),
        (changed("pretrain/pretrain", 5), r"pretrain"),
        (changed("augment", {"a.b": 1}), r"augment.a.b is not a setting"),
        (changed("optimizer/momentum", 5), r"momentum=5 must be a number in"),
        (changed("format", 3), r"format 3"),
        (changed("format", "vit_jax"), r"format 'vit_jax'"),
        (changed("format", True), r"format 'True'"),
        (changed("objective/name", "/tmp/x.py:f"), r"is a program.*--config.objective.name=/tmp/x"),
        (changed("evaluators/knn", {"name": "x.py:f"}), r"evaluators.knn.name='x.py:f' is a prog"),
        (changed("pretrain/data/dataset", "x.py:f"), r"pretrain.data.dataset='x.py:f' is a prog"),
        ({"format": "vit_jax 1", "variant": "B/16"}, r"is not the config.json of a run"),
        ([1], r"is not the config.json of a run"),
        ("{", r"is not JSON"),
        ("[" * 100_000, r"is not JSON"),
        ('{"a":' * 2000 + "1" + "}" * 2000, r"is not JSON|is not the config.json of a run"),
        (" " * 2**21, r"is not the config.json of a run"),
    ],
)  # fmt: skip
def test_invalid_files_are_one_sentence(values, message, tmp_path):
    file = written(tmp_path, values)
    with pytest.raises(UserError, match=message) as refused:
        config_of(file)
    assert "config.json" in str(refused.value) and "\n" not in str(refused.value)


def test_a_key_that_is_there_twice_is_refused_and_a_byte_order_mark_is_not(tmp_path):
    text = configuration.to_json(configuration.load("quickstart"))
    (tmp_path / "config.json").write_text(text, encoding="utf-8-sig")
    assert config_of(tmp_path / "config.json").batch_size
    (tmp_path / "config.json").write_text('{"batch_size": 8,' + text[1:])
    with pytest.raises(UserError, match=r"config\.json has the key 'batch_size' twice; keep one"):
        config_of(tmp_path / "config.json")


def test_named_programs_run_only_if_the_command_line_names_them(tmp_path, capsys):
    program = tmp_path / "mine.py"
    program.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(): pass")
    file = written(tmp_path, changed("objective/name", f"{program}:f"))
    command = ["train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    assert main(command) == 1
    assert "is a program" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "run").exists()
    assert main([*command, "--print_config", f"--config.objective.name={program}:f"]) == 0


def test_the_command_line_comes_on_top(tmp_path, capsys):
    file = written(tmp_path, changed("schedule/learning_rate", 1))  # another program's 1.0
    more = ["--config.schedule.learning_rate=0.5", "--config.optimizer.momentum=0.8"]
    assert main(["train", f"--config={file}", "--print_config", *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schedule"]["learning_rate"] == 0.5 and found["optimizer"]["momentum"] == 0.8
    assert main(["train", f"--config={tmp_path}/none.json", "--print_config"]) == 1
    assert "There is no config file" in capsys.readouterr().err


def test_settings_absent_from_an_earlier_file_get_their_old_values(tmp_path):
    values = copy.deepcopy(QUICKSTART)
    for stage in (values, values["pretrain"]):
        del stage["dropout_bits"], stage["keep_best"], stage["data"]["sampling"]
    found = config_of(written(tmp_path, values))
    assert found.dropout_bits == found.pretrain.dropout_bits == BEFORE["dropout_bits"]
    assert (found.keep_best, found.data.sampling) == ("", "uniform")
    with tarfile.open(Path(__file__).parents[1] / "golden" / "format_1.tar.gz") as archive:
        archive.extract("run/config.json", tmp_path, filter="data")
    first = config_of(tmp_path / "run" / "config.json")
    assert first.polyak_ramp and first.data.orient is False and first.polyak_decay == 0.99
