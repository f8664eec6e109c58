"""Verbs that are command lines of other rooms: their arguments are passed on as they are."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from preprocessing.common.cli import Main


@dataclass(frozen=True)
class Verb:
    """A verb that another command line carries out.

    Attributes:
        module: with the function `main(argv) -> exit code`.
        summary: one line for `smmil --help`.
        first: arguments that precede those of the user.
    """

    module: str
    summary: str
    first: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """Return how the help of the command line names itself."""
        return " ".join(["python -m", self.module.removesuffix(".__main__"), *self.first])

    def run(self, name: str, arguments: Sequence[str]) -> int:
        """Carry out the verb; its help names it as the user called it.

        Args:
            name: of the verb.
            arguments: of the user.

        Returns:
            The exit code.
        """
        main: Main = import_module(self.module).main
        if not {"-h", "--help"} & {*arguments}:
            return main([*self.first, *arguments])
        text, code = io.StringIO(), 0
        with contextlib.redirect_stdout(text):
            try:
                code = main([*self.first, *arguments])
            except SystemExit as end:
                code = int(end.code or 0)
        print(text.getvalue().replace(self.command, f"smmil {name}"), end="")
        return code


VERBS = {
    "predict": Verb("smmil.predict.__main__", "Label, score and map of new slides or scans, with finished runs."),
    "view": Verb("smmil.view.__main__", "Look at slides and scans with their maps in a browser."),
    "explain": Verb("smmil.provenance", "Trace a cell of a table back to its runs, weights, bags and images."),
    "import": Verb("preprocessing.exchange.__main__", "Take over features of CLAM, TRIDENT or torchmil.", ("import",)),
    "export": Verb("preprocessing.exchange.__main__", "Write bags for CLAM, TRIDENT, torchmil or QuPath.", ("export",)),
    "config": Verb("smmil.config.__main__", "Check configuration files and print the result, or the schema."),
}
