"""The logger plugin `smmil` of Snakemake, under the name by which Snakemake finds it."""

from smmil.cli.plugins.live import LogHandler

__all__ = ["LogHandler"]
