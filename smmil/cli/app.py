"""The command `smmil`.

Commands import what they need when they run, so that help and shell completion are quick.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from preprocessing.common.cli import PROGRAM, Main, guard
from smmil import __version__


@dataclass(frozen=True)
class Verb:
    """A verb that another command line carries out; its arguments are passed on as they are.

    Attributes:
        module: with the function `main(argv) -> exit code`.
        summary: one line for `smmil --help`.
        first: arguments that precede those of the user.
    """

    module: str
    summary: str
    first: tuple[str, ...] = ()

    def run(self, name: str, arguments: Sequence[str]) -> int:
        """Carry out the verb and return the exit code; help and errors call it `smmil NAME`, as the user did."""
        main: Main = import_module(self.module).main
        # parsers of subcommands append their name
        called = PROGRAM.set("smmil" if self.first else f"smmil {name}")
        try:
            return main([*self.first, *arguments])
        finally:
            PROGRAM.reset(called)


VERBS = {
    "predict": Verb("smmil.predict.__main__", "Label, score and map of new slides or scans, with finished runs."),
    "view": Verb("smmil.view.__main__", "Look at slides and scans with their maps in a browser."),
    "explain": Verb("smmil.provenance", "Trace a cell of a table to its runs, weights, bags and images."),
    "import": Verb("preprocessing.exchange.__main__", "Take over features of CLAM, TRIDENT or torchmil.", ("import",)),
    "export": Verb("preprocessing.exchange.__main__", "Write bags for CLAM, TRIDENT, torchmil or QuPath.", ("export",)),
    "config": Verb("smmil.config.__main__", "Check configuration files and print the result, or the schema."),
}


class Verbs(TyperGroup):
    """The verbs; whatever follows `--` is kept for the program that a verb starts."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Split the arguments at the first `--`."""
        if "--" in args:
            at = args.index("--")
            ctx.obj, args = args[at + 1 :], args[:at]
        rest: list[str] = super().parse_args(ctx, args)
        return rest


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # boxes and colours on a terminal, plain text elsewhere
    rich_markup_mode="markdown" if sys.stdout.isatty() else None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Multiple-instance learning for slides and scans: from raw files to tables, figures and maps.",
    epilog="Start with `smmil doctor`, then `smmil init FOLDER`, `smmil qc`, `smmil run`.",
)


def _complete_target(incomplete: str) -> list[str]:
    from smmil.cli.pipeline import target_names

    return [name for name in target_names() if name.startswith(incomplete)]


ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "-c",
        "--config",
        "--configfile",
        metavar="FILE",
        help="Your settings, over those of the paper; repeatable. Default: mine.yaml in this folder.",
    ),
]
Cores = Annotated[str, typer.Option("--cores", metavar="N", help="Cores to use at once.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show the output of Snakemake and of every job.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"smmil {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options before the verb."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Slides, or folders of DICOM files, at any depth.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Configuration to write.")] = Path(
        "mine.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the configuration and the manifests.")] = False,
) -> None:
    """Look at slides or scans; write a configuration and a manifest."""
    from smmil.cli.init import write_study
    from smmil.cli.screen import print_survey, with_bar
    from smmil.cli.survey import survey

    seen = survey(folder, with_bar)
    print_survey(seen, write_study(seen, out, force=force))


@app.command()
def doctor(config: ConfigFiles = None) -> None:
    """Is everything here that a run needs? Exit code 1 if not."""
    from smmil.cli.doctor import examine
    from smmil.cli.screen import print_checks

    raise typer.Exit(print_checks(examine(config or [])))


@app.command()
def run(
    ctx: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET",
            help="What to make: all (default), qc, report, table1, fig5, ..., or a file.",
            autocompletion=_complete_target,
        ),
    ] = None,
    config: ConfigFiles = None,
    cores: Cores = "all",
    verbose: Verbose = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what it will take (bags, tiles, disk, hours) and run nothing.")
    ] = False,
) -> None:
    """Run the workflow: from raw files to the report. What follows `--` goes to Snakemake, e.g. `-- -n`."""
    from smmil.cli.pipeline import read_setup
    from smmil.cli.run import run_workflow

    setup = read_setup(config or [])
    if plan:
        from smmil.cli.probe import measured
        from smmil.cli.screen import print_estimate

        print_estimate(measured(setup.config, cores))
        return
    raise typer.Exit(run_workflow(setup, targets or [], ctx.obj or [], cores=cores, verbose=verbose))


@app.command()
def qc(ctx: typer.Context, config: ConfigFiles = None, cores: Cores = "all", verbose: Verbose = False) -> None:
    """Cut every bag and draw contact sheets of the tissue masks."""
    run(ctx, ["qc"], config, cores, verbose)


@app.command()
def status(
    config: ConfigFiles = None,
    bags: Annotated[bool, typer.Option("--bags", help="List every bag, not only those that are not ok.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it until Ctrl-C.")] = False,
) -> None:
    """Show the outcome of every bag and the state of the trainings."""
    from smmil.cli.pipeline import read_setup
    from smmil.cli.screen import print_status

    print_status(read_setup(config or []), every_bag=bags, watch=watch)


def _add_passing(name: str, verb: Verb) -> None:
    def passing(ctx: typer.Context) -> None:
        raise typer.Exit(verb.run(name, [*ctx.args, *(["--", *ctx.obj] if ctx.obj else [])]))

    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command(name, help=verb.summary, context_settings=settings, add_help_option=False)(passing)


for _name, _verb in VERBS.items():
    _add_passing(_name, _verb)


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; it ends by raising `SystemExit`."""
    app(args=None if argv is None else [*argv], prog_name="smmil")
    return 0
