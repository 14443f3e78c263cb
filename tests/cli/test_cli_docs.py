"""What the pages say to type is what the command line takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from rdvla.cli.main import app

ROOT = Path(__file__).parents[2]
PATTERNS = ("*.md", "docs/*.md", "packages/*/*.md", "checkpoints/*/*.md")
HISTORY = {Path("CHANGELOG.md"), Path("docs/LOG.md")}  # commands of their day
PAGES = sorted({page.relative_to(ROOT) for pattern in PATTERNS for page in ROOT.glob(pattern)} - HISTORY)
FENCE = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r'\b(\w+)="([^"]*)"')
COMMAND = typer.main.get_command(app)
UsageError = typer.BadParameter.__base__  # click's own, or the copy that newer versions of typer bring


def told(text):
    """Yield (words, whole) for every `rdvla` command; one with "...", or within a sentence, may be a part of one."""
    for block in FENCE.findall(text):
        script = block.replace("\\\n", " ")
        for name, value in VARIABLE.findall(block):
            script = script.replace(f"${name}", value)
        for line in script.replace("; rdvla", "\nrdvla").splitlines():
            if line.strip().startswith("rdvla "):
                words = shlex.split(line, comments=True)[1:]
                yield [word for word in words if word != "..."], "..." not in words
    for span in re.findall(r"`rdvla ([^`]+)`", FENCE.sub("", text)):
        yield [word for word in shlex.split(span) if word != "..."], False


def wrong(words, whole):
    """Return what the command line has against these words, or None."""
    command, context = COMMAND, None
    while words and words[0] in getattr(command, "commands", {}):
        context = command.make_context(words[0], [], parent=context, resilient_parsing=True)
        command, words = command.commands[words[0]], words[1:]
    if hasattr(command, "commands") and words and not words[0].startswith("-"):
        return f"no command {words[0]}"
    if whole:
        try:
            command.make_context(command.name, list(words), parent=context)
        except UsageError as error:
            return error.format_message()
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if re.match("--?[a-z]", word) and word.partition("=")[0] not in known]
    return ", ".join(unknown) if unknown and not command.context_settings.get("ignore_unknown_options") else None


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_commands_of_a_page_parse(page):
    found = {" ".join(words): wrong(words, whole) for words, whole in told((ROOT / page).read_text(encoding="utf-8"))}
    assert not {words: error for words, error in found.items() if error}


MISTAKES = (
    "`rdvla eval --no-such`",
    "`rdvla evil`",
    "```\nrdvla eval --suite toy  # no --output\n```",
    "```\nrdvla eval \\\n ... --suit toy\n```",
    "```\nrdvla dataset convert SOURCE\n```",
)


@pytest.mark.parametrize("text", MISTAKES)
def test_a_command_that_does_not_parse_is_found(text):
    assert all(wrong(*command) for command in told(text))
    assert list(told(text))
