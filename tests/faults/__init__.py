"""Fault injection: interruptions that a run survives, damaged inputs that it refuses, and the messages of both.

| fault | where it is tested |
|---|---|
| SIGKILL of everything at any moment of any stage | `campaign`, `test_campaign` |
| SIGKILL of one job: preprocessing, training, bag store | `test_jobs`, `test_train`, `test_store` |
| SIGTERM, SIGUSR1, a cancelled or requeued cluster job | `test_train`, `slurm.test_slurm` |
| disk full: preprocessing | `test_jobs` |
| disk full: training, predictions, tables | `test_disk` |
| output that cannot be written (read-only, a file in the way) | `test_disk` |
| input that changes: settings, sources, weights of the encoder | `test_instances`, `test_features`, `test_encoders` |
| input that changes between training and prediction (bags.csv, manifests), or after prediction | `test_inputs` |
| clock that jumps forwards or backwards | `test_inputs`, `test_snakemake` |
| two jobs on one shard | `test_jobs`, `test_shards` |
| two Snakemakes on one results folder | `test_snakemake` |
| damaged raw slides and scans | `test_survival` |
| mutations of manifests, annotations, DICOM slices and TIFF slides | `test_fuzz` |
| damaged bag: the store and its checker | `test_store`, `test_instances` |
| damaged bag when training or extraction reads it | `test_damage` |
| damaged state, weights of a run, predictions | `test_damage` |
| damaged or missing encoder weights at use and at fetch, no network | `test_encoders`, `test_features` |
"""
