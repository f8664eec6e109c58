"""Look at slides and scans with the scores of every method in a browser, or write the page to a folder.

    python -m smmil.view results/
    python -m smmil.view results/ --bag tumor_001
    python -m smmil.view results/ --bags tumor_001 normal_002 --export page/

FOLDER is `results/` of the workflow, one dataset of it, or the folder of one or more predictions. The page is served
on this machine only, under an address with a secret token, until Ctrl-C; nothing is written. Raw slides and scans are
found through the records of the results; --raw names their folder if they have moved.
"""

import argparse
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard, program


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Serve or export the page; see the top of this file."""
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog=program("smmil.view"), description=description)
    parser.add_argument("folder", type=Path, help="results/ of the workflow, or the folder of predictions")
    parser.add_argument("--bag", default="", help="bag to open first: NAME or DATASET/NAME")
    parser.add_argument(
        "--raw", action="append", default=[], metavar="[DATASET=]FOLDER", help="raw files, if they have moved"
    )
    parser.add_argument("--port", type=int, default=0, help="port (default: a free one)")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    group = parser.add_argument_group("write the page to a folder instead")
    group.add_argument("--export", type=Path, metavar="DIR", help="new folder for page, tiles and layers")
    group.add_argument("--bags", nargs="+", default=[], metavar="BAG", help="these bags only")
    group.add_argument("--yes", action="store_true", help="write more than 2 GB")
    arguments = parser.parse_args(argv)
    from smmil.view.catalogue import find_cohorts
    from smmil.view.export import chosen, export
    from smmil.view.server import Server
    from smmil.view.site import Site

    site = Site(arguments.folder.resolve().name, find_cohorts(arguments.folder, arguments.raw))
    if arguments.bag:
        (site.start, *others) = [f"{key}/{name}" for key, name in site.find(arguments.bag)]
        if others:
            print(f"--bag {arguments.bag}: opening {site.start}, also in {', '.join(others)}")
    site = chosen(site, arguments.bags)
    if arguments.export:
        export(site, arguments.export, confirmed=arguments.yes)
        print(f"open {arguments.export / 'index.html'}")
        return 0
    server = Server(site, arguments.port)
    for note in site.catalogue().notes:
        print(f"note: {note}")
    print(f"{server.url}  (Ctrl-C ends it)", flush=True)
    if not arguments.no_browser:
        # without a screen, Python would start a browser in the terminal
        if sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
            webbrowser.open(server.url)
        else:
            port = server.server_address[1]
            print(
                f"no screen here: on your own computer run `ssh -L {port}:127.0.0.1:{port} HOST`, then open the address"
            )
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
