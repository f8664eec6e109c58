"""Every command in README and docs exists, takes the options it is given, and names targets and files that exist."""

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import typer
import yaml
from snakemake.cli import get_argument_parser

from smmil.cli.app import VERBS, app
from smmil.cli.pipeline import check_targets
from smmil.config.experiment import merge, parse_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
OURS = ("smmil", "snakemake", "python", "make")
# programs of others: only their names are checked
OTHERS = {*"apptainer docker git pip python3 squeue tail tmux vips xdg-open .".split(), ".venv/bin/pip"}


class ParsedOptions(Exception):
    """Ends a command once its arguments are parsed."""


def commands(page: Path) -> Iterator[list[str]]:
    """Yield every command of a page as words, without comments, redirections and settings of variables."""
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        first = text.split(maxsplit=1)[0] if text.strip() else ""
        if language in ("bash", "sh") or (not language and first in OURS):
            for line in text.replace("\\\n", " ").splitlines():
                yield from split_line(line)


def split_line(line: str) -> Iterator[list[str]]:
    words: list[str] = []
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
    lexer.whitespace_split = True
    for word in [*lexer, ";"]:
        if set(word) <= set("&;|"):
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []
        else:
            words.append(word)


def split_targets(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split Snakemake's arguments at `--`."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def check_snakemake(arguments: list[str]) -> None:
    options, targets = split_targets(arguments)
    parser = get_argument_parser([])
    with mock.patch.object(parser, "error", side_effect=ValueError):
        parsed, unknown = parser.parse_known_args(options)
    assert not unknown, f"unknown {unknown}"
    check_targets([*(parsed.targets or []), *targets])
    for file in parsed.configfile or []:
        assert str(file) == "$C" or file.suffix == ".yaml", f"{file} is taken for a configuration file"
        assert file.parts[0] != "workflow" or (ROOT / file).is_file(), file
    profile = parsed.workflow_profile
    assert profile in (None, "none") or (ROOT / profile).is_dir(), profile


def check_module(name: str, arguments: list[str]) -> None:
    """Parse the arguments of `python -m NAME` with the parser of that module, and do not run it."""
    if name in ("pytest", "venv", "mypy"):
        assert all((ROOT / word).exists() for word in arguments if word.startswith("tests/"))
        return
    assert (path := ROOT / name.replace(".", "/")).with_suffix(".py").is_file() or (path / "__main__.py").is_file(), (
        name
    )
    module = importlib.import_module(f"{name}.__main__" if path.is_dir() else name)
    run_parser(module.main, arguments)


def run_parser(main, arguments: list[str]) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, argv=None, namespace=None):
        parse(parser, argv, namespace)
        raise ParsedOptions

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop), pytest.raises(ParsedOptions):
        main(arguments)


@cache
def verbs():
    return typer.main.get_command(app)


def check_smmil(arguments: list[str]) -> None:
    arguments, passed = split_targets(arguments)
    if not arguments or arguments[0].startswith("-"):
        assert set(arguments) <= {"--help", "--version", "--install-completion"}, arguments
        return
    name, *rest = arguments
    if name in VERBS:
        verb = VERBS[name]
        if (ROOT / (verb.module.replace(".", "/") + ".py")).is_file():
            run_parser(importlib.import_module(verb.module).main, [*verb.first, *rest])
        return
    command = verbs().commands[name]
    values, _, _ = command.make_parser(command.context_class(command, info_name=name)).parse_args(rest)
    check_targets(values.get("targets") or [])
    check_snakemake(passed)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_a_page_parse(page):
    for words in commands(page):
        try:
            if words[0] == "smmil":
                check_smmil(words[1:])
            elif words[0] == "snakemake":
                check_snakemake(words[1:])
            elif words[:2] == ["python", "-m"]:
                check_module(words[2], words[3:])
            elif words[0] == "python":
                assert words[1] in ("convert.py", "label.py") or (ROOT / words[1]).is_file()
            elif words[0] == "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
            else:
                assert words[0] in OTHERS, "unknown program"
        except (SystemExit, Exception) as error:
            raise AssertionError(f"{page.relative_to(ROOT)}: {' '.join(words)}: {error!r}") from error


def test_pages_that_are_named_exist():
    """In code, configuration and other pages."""
    named = re.compile(r"docs/[a-z/-]+\.md")
    files = [
        path
        for folder in ("smmil", "preprocessing", "workflow", "envs", "tests")
        for path in (ROOT / folder).rglob("*")
    ]
    files += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "config.yaml", "Makefile")]
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        if path.suffix in {".py", ".md", ".yaml", ".smk", ".json", ".j2", ""} and path.is_file()
        for name in named.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    }
    assert not missing


MINE = {"kind": "custom", "root": "data", "source": {"manifest": "manifest.csv"}, "encoders": ["resnet50_bt"]}


def test_settings_in_examples_are_accepted():
    paper = yaml.safe_load((ROOT / "config.yaml").read_text())
    for page in PAGES:
        for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
            # the pages on registering things have settings of things that are not registered
            if language == "yaml" and "adding-" not in page.name:
                values = yaml.safe_load(text)
                values = values if "instances" not in values else {"datasets": {"mine": values}}
                used = {*values.get("datasets", ()), *values.get("use", ())}
                datasets = {"mine": MINE} | {name: paper["datasets"][name] for name in used & {*paper["datasets"]}}
                parse_config(merge({**paper, "sweeps": {}, "datasets": datasets}, values), str(page))


def test_a_wrong_command_is_seen(tmp_path):
    page = tmp_path / "page.md"
    for line in (
        "snakemake tabel1",
        "snakemake --corse 4",
        "snakemake --configfile mine.yaml qc",
        "python -m smmil.methds",
        "python -m smmil.evaluate --indx a",
        "make dmeo",
        "smmil rnu",
        "smmil run --cors 3",
        "smmil qc -- --corse 3",
        "smmil predict --modle a",
        "frobnicate",
    ):
        page.write_text(f"```bash\n{line}\n```\n")
        with mock.patch.object(Path, "relative_to", lambda path, *_: path), pytest.raises(AssertionError):
            test_commands_of_a_page_parse(page)
    page.write_text("```bash\nCUDA=1 snakemake qc --cores 8 --configfile mine.yaml  # look | first\n```\n")
    with mock.patch.object(Path, "relative_to", lambda path, *_: path):
        test_commands_of_a_page_parse(page)
