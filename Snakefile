# smmil: from raw slides and scans to tables, figures and heat maps.
#
#   snakemake --cores 8 --use-conda                 the paper (config.yaml)
#   snakemake --cores 8 --configfile mine.yaml      the same with your overrides
#   snakemake --report report.zip                   an archive of finished results with captions
#
# Targets: all metrics tables figures report qc status scores features weights raw,
# and each table and figure by name: table1 ... table10, resources, comparisons, fig4 ... fig12, cd, curves.
import os
import sys

from snakemake.utils import min_version

min_version("9.0")


configfile: os.path.join(workflow.basedir, "config.yaml")


include: "workflow/rules/common.smk"
include: "workflow/rules/raw.smk"
include: "workflow/rules/preprocess.smk"


# a partial report uses the finished runs; without these rules nothing can be trained for it
if not CONFIG.report.partial:

    include: "workflow/rules/train.smk"


include: "workflow/rules/predict.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        rules.report.input,
        rules.metrics.input,
        rules.tables.input,
        rules.figures.input,
        rules.scores.input,
