"""DAG files by parsing alone: what they import, and that the real command line takes the commands they run."""

import ast
import shlex
import sys
from pathlib import Path

import pytest

DAGS = sorted((Path(__file__).resolve().parents[2] / "dags").glob("*.py"))


@pytest.mark.parametrize("path", DAGS, ids=lambda path: path.name)
def test_imports_airflow_and_the_standard_library_alone(path: Path) -> None:
    tree = ast.parse(path.read_text())
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add((node.module or "").split(".")[0])
    assert roots <= set(sys.stdlib_module_names) | {"airflow"}
    assert ast.get_docstring(tree)


def commands_of(path: Path) -> dict[str, str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["COMMANDS"]:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} has no COMMANDS")


@pytest.mark.parametrize("path", DAGS, ids=lambda path: path.name)
def test_the_command_line_takes_every_command(path: Path) -> None:
    from typer.main import get_command

    from pipelines.cli import app

    group = get_command(app)
    commands = commands_of(path)
    assert list(commands) == ["extract", "train", "encode", "status"]
    for task, line in commands.items():
        words = shlex.split(line)
        assert words[0] == "${SOUNDLAKE_COMMAND:-soundlake}"
        command = group.commands[words[1]]
        # Parses options and arguments without running the command; a wrong one raises.
        context = command.make_context(words[1], ["/audio" if w == "$SOUNDLAKE_AUDIO" else w for w in words[2:]])
        assert context.params["as_json"], task
