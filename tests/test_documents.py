"""The documents name commands and files that there are."""

import re

import pytest
from harness import ROOT


def readme_blocks():
    """Of each of the README's `console` blocks the lines that start with `$ `."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [[line[2:] for line in block.splitlines() if line.startswith("$ ")] for block in blocks]


def readme_commands():
    """All but those about the corpora that have to be fetched."""
    return [command for block in readme_blocks() if "apt-get" not in block[0] for command in block]


def test_the_readmes_make_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {word for command in readme_commands() if command.startswith("make ") for word in command.split()[1:2]}
    assert {"quickstart", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_links_in_the_documents_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
        if not link.startswith(("http://", "https://")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
