"""`vit-jax flops`: the tables and the JSON that others read."""

import json

from vit_jax.cli import main


def test_json_is_table_6(capsys):
    assert main(["flops", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 18
    needed = {"variant", "epochs", "params", "gmacs", "exaflops", "published_exaflops"}
    assert all(needed <= set(row) for row in rows)
    row = next(row for row in rows if (row["variant"], row["epochs"]) == ("B/16", 7))
    assert (row["params"], row["published_exaflops"]) == (86_567_656, 224)


def test_tables(capsys):
    assert main(["flops", "--table1", "--table6"]) == 0
    out = capsys.readouterr().out
    assert "86,567,656" in out and "632,045,800" in out
    assert out.count("the paper is inconsistent") == 2


def test_named_variants(capsys):
    assert main(["flops", "B/16", "--image_size=384", "--num_classes=10", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert 55.3 < row["gmacs"] < 55.6
    assert main(["flops", "B/16", "R50x1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_bad_input(capsys):
    assert main(["flops", "B/61"]) == 1
    assert "Did you mean 'B/16'" in capsys.readouterr().err
    assert main(["flops", "B/16", "--image_size=225"]) == 1
    assert "not divisible by the patch size 16" in capsys.readouterr().err
    assert main(["flops", "--image_size=x"]) == 2
    assert main(["flops", "--table6", "--json"]) == 2
    assert main(["flops", "--table6", "--image_size=384"]) == 2
    assert "--image_size is for variants" in capsys.readouterr().err
