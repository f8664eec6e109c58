"""Plugins for Snakemake, found because `smmil run` puts this folder on the path of its Snakemake."""
