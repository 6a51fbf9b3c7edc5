"""docs/reliability.md names tests that exist, and every scenario once."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_scenario_has_a_number_and_its_test_exists():
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 62))
    without = []
    for number, held in rows:
        named = re.findall(r"`(tests/[\w/.]+)::(\w+)`(\*?)", held)
        if not named:
            without.append(int(number))
        for file, test, slow in named:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == test]
            assert found, (number, test)
            marks = [ast.unparse(mark) for mark in found[0].decorator_list]
            assert ("pytest.mark.slow" in marks) == bool(slow), (number, test)
    assert not without
