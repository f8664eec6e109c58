"""Pages made from the code while the documentation is built: configuration keys and command lines."""

import contextlib
import importlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from docutils import nodes
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from preprocessing.common.options import CT_PRESETS, WSI_PRESETS, CtOptions, WsiOptions
from preprocessing.datasets import DATASETS
from smmil.cli.app import VERBS, app
from smmil.config.experiment import Config

ROOT = Path(__file__).resolve().parents[1]


def resolve(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return what a reference of a JSON schema points to, with the keys beside it."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return definitions[name] | schema if name else schema


def type_text(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Describe the type of a value in a few characters."""
    schema = resolve(schema, definitions)
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(type_text(option, definitions) for option in options))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {type_text(schema['items'], definitions)}" if schema.get("items") else "list"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {type_text(schema['additionalProperties'], definitions)}"
    names = {"null": "null", "boolean": "true or false", "integer": "integer", "object": "mapping", "string": "text"}
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in schema
    ]
    return " ".join([str(names.get(kind, kind)), ", ".join(bounds)]).strip()


def sections(
    schema: dict[str, Any], definitions: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping of the configuration with its path of keys, outermost first."""
    schema = resolve(schema, definitions)
    for option in schema.get("anyOf", []):
        yield from sections(option, definitions, path)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from sections(schema["additionalProperties"], definitions, f"{path}.NAME")
    if "properties" in schema:
        yield path, schema
        for key, value in schema["properties"].items():
            yield from sections(value, definitions, f"{path}.{key}".strip("."))


def cell(value: object) -> str:
    """Return one line for a table."""
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def default_text(schema: dict[str, Any], required: bool) -> str:
    """Return the default of a key as YAML writes it."""
    value = schema.get("default")
    if required:
        return "required"
    if isinstance(value, bool) or value is None:
        return {True: "`true`", False: "`false`", None: "`null`"}[value]
    return "" if isinstance(value, dict | list) and value else f"`{value}`" if value != "" else "empty"


def configuration() -> str:
    """Return every key of the configuration as Markdown: one table per section."""
    wsi, ct = "datasets.NAME.instances.wsi", "datasets.NAME.instances.ct"
    presets = {
        wsi: f"Slides. `preset` is one of {', '.join(f'`{name}`' for name in WSI_PRESETS)}; other keys override it.",
        ct: f"Head CT. `preset` is one of {', '.join(f'`{name}`' for name in CT_PRESETS)}; other keys override it.",
    }
    models: list[tuple[str, type[BaseModel]]] = [("", Config), (wsi, WsiOptions), (ct, CtOptions)]
    for kind, dataset in DATASETS.items():
        path = f"datasets.NAME.source, kind {kind}"
        presets[path] = f"Options of {dataset.title}."
        models.append((path, dataset.options))
    return "\n".join(line for path, model in models for line in model_tables(path, model, presets.get(path, "")))


def model_tables(start: str, model: type[BaseModel], about: str) -> Iterator[str]:
    """Yield the tables of a model and of the models inside it."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for path, section in sections(schema, definitions, start):
        yield from [f"## `{path}`" if path else "## Top level", ""]
        yield from [about if path == start and about else section.get("description", ""), ""]
        yield from ["| key | value | default | meaning |", "|---|---|---|---|"]
        for key, value in section["properties"].items():
            text = default_text(value, key in section.get("required", ()))
            meaning = resolve(value, definitions).get("description", "")
            yield f"| `{key}` | {cell(type_text(value, definitions))} | {cell(text)} | {cell(meaning)} |"
        yield ""


def modules() -> list[str]:
    """Return the names of all modules that are commands."""
    files = [path for package in ("preprocessing", "smmil") for path in (ROOT / package).rglob("*.py")]
    commands = [path for path in files if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in commands]
    return sorted(name.removesuffix(".__main__") for name in names)


def printed(command: Callable[[], object]) -> str:
    """Return what a command prints before it ends."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        command()
    return text.getvalue()


def module_help(name: str) -> str:
    """Return what `python -m NAME --help` prints."""
    path = ROOT / name.replace(".", "/")
    main = importlib.import_module(f"{name}.__main__" if path.is_dir() else name).main
    return printed(lambda: main(["--help"]))


def verb_help(name: str) -> str:
    """Return what `smmil NAME --help` prints."""
    if name in VERBS:
        return printed(lambda: VERBS[name].run(name, ["--help"]))
    return printed(lambda: app([name, "--help"], prog_name="smmil"))


def commands() -> str:
    """Return the help of every command line as Markdown: the verbs of `smmil`, then the modules."""
    os.environ["COLUMNS"] = "88"
    group: Any = typer.main.get_command(app)
    helps = {f"smmil {name}": verb_help(name) for name in group.commands}
    helps |= {f"python -m {name}": module_help(name) for name in modules() if not name.startswith("smmil.cli")}
    lines = []
    for command, text in helps.items():
        lines += [f"## `{command}`", "", "```text", text.rstrip(), "```", ""]
    return "\n".join(lines)


class Generated(SphinxDirective):
    """`{generated} NAME`: the Markdown that the function NAME of this module returns."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the text in place, in every build, because the code may have changed."""
        self.env.note_reread()
        text = {"configuration": configuration, "commands": commands}[self.arguments[0]]()
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True}
