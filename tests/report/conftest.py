"""`rdvla results` on the command line."""

import json

import pytest
import typer
from typer.testing import CliRunner

from rdvla.cli.results import results_command

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(results_command)


@pytest.fixture
def results(tmp_path):
    """Return a function that makes a table and returns its JSON and the page."""

    def call(*arguments):
        page, numbers = tmp_path / "docs" / "results.md", tmp_path / "numbers.json"
        command = [*map(str, arguments), "--output", str(page), "--json", str(numbers)]
        result = CliRunner().invoke(app, command)
        if result.exception is not None:
            raise result.exception
        return json.loads(numbers.read_text()), page.read_text()

    return call
