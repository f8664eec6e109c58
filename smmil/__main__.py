"""`python -m smmil`, the same as `smmil`."""

from smmil.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
