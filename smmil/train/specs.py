"""A training job: its options, its runs, and the summary of the finished runs.

A variant (`smmil.config.variants`) trains its method with the argument in its name: its run keys contain the method
and its arguments, its `runs.json` the name of the variant. Quirks (`smmil.config.quirks`) are resolved here into
settings, data options and arguments of the method, so that a key contains only what has an effect.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from smmil.artifacts.chosen_runs import chosen_rates
from smmil.artifacts.hashes import json_argument
from smmil.artifacts.records import FeatureFacts, MethodOptions, RunEntry, RunsFile
from smmil.artifacts.runs import RunSpec, read_done
from smmil.config.quirks import method_changes
from smmil.config.training_options import TrainingOptions
from smmil.config.variants import SEPARATOR, Variant, base_method
from smmil.data.sources import Source
from smmil.data.splits import Split, make_split


@dataclass(frozen=True)
class Job:
    """The runs of one method on one data set, splits x learning rates, in the folder `out`.

    `name` is a method or variant, `method_options` holds keyword arguments of the method.
    """

    dataset: str
    encoder: str
    name: str
    method_options: MethodOptions
    options: TrainingOptions
    source: Source
    out: Path

    @cached_property
    def splits(self) -> dict[int, Split]:
        """The splits by seed."""
        bags, share = self.source.listing.bags, self.options.val_share
        released = "splits" in self.options.active_quirks
        return {seed: make_split(bags, seed, share, released=released) for seed in self.options.splits}


def job_options(
    text: str, method: str, *, splits: str | None = None, learning_rates: str | None = None
) -> TrainingOptions:
    """Return the training options in `--config-json` with the active quirks, for a method or variant.

    `--splits` and `--learning-rates` take precedence, the latter over the quirks, too. ValueError names the option that
    is wrong.
    """
    values = json_argument(text, "--config-json")
    if splits:
        values["splits"] = _numbers(splits, int, "--splits")
    try:
        options = TrainingOptions.model_validate(values).under_quirks(base_method(method))
        if learning_rates:
            rates = _numbers(learning_rates, float, "--learning-rates")
            options = TrainingOptions.model_validate({**options.model_dump(), "learning_rates": rates})
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (found {e['input']!r})" for e in error.errors()]
        raise ValueError(f"--config-json: {'; '.join(lines)}") from error
    return options


def _numbers(text: str, kind: type[int] | type[float], name: str) -> list[int | float]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name}: found {text!r}, expected numbers separated by commas") from error


def check_variant(name: str, method_options: MethodOptions) -> None:
    """Raise ValueError if no argument of a variant has the value in its name."""
    method = base_method(name)
    if name == method or any(Variant(method, key, value).name == name for key, value in method_options.items()):
        return
    raise ValueError(
        f"--method: found the variant {name!r}, but no argument in --method-options {json.dumps(dict(method_options))}"
        f' gives that name; expected e.g. {method}{SEPARATOR}alpha_0p1 with {{"alpha": 0.1}}'
    )


def job_specs(job: Job, part: int | None = None) -> list[RunSpec]:
    """Return the runs of a job, or of the split with seed `part`, by split and learning rate.

    Raises:
        ValueError: no such split, a variant without its argument, or arguments that contradict the active quirks.
    """
    options, source = job.options, job.source
    if part is not None and part not in options.splits:
        raise ValueError(f"--part: found {part}, expected one of the split seeds {options.splits}")
    method = base_method(job.name)
    check_variant(job.name, job.method_options)
    method_options = method_changes(options.active_quirks, method, job.method_options)
    # Instance labels do not influence training unless they decide which bags take part.
    ignored = {"label_order"}
    if not source.data.get("drop_inconsistent"):
        ignored |= {"label_rule", "label_threshold"}
    return [
        RunSpec(
            dataset=job.dataset,
            encoder=job.encoder,
            method=method,
            method_options=method_options,
            training=options.key_values,
            data={name: value for name, value in source.data.items() if name not in ignored},
            inputs=source.inputs,
            seed=seed,
            learning_rate=rate,
        )
        for seed in options.splits
        if part in (None, seed)
        for rate in options.learning_rates
    ]


def summary(specs: Sequence[RunSpec], job: Job) -> RunsFile:
    """Return the content of `runs.json` for finished runs of a job: inputs and results only, no times and no paths."""
    runs: list[RunEntry] = []
    for spec in specs:
        done = read_done(job.out / spec.name, spec.key)
        if done is None:
            raise RuntimeError(f"{job.out / spec.name}: not finished although training ended")
        entry = {"run": spec.name, "seed": spec.seed, "lr": spec.learning_rate, "chosen": False, **done.as_json()}
        runs.append(RunEntry.model_validate(entry))
    rates = chosen_rates(runs, job.options.learning_rate_choice)
    first, source, protocol = specs[0], job.source, job.options.protocol
    return RunsFile(
        dataset=first.dataset,
        encoder=first.encoder,
        method=job.name,
        method_options=first.method_options,
        protocol=protocol,
        quirks=tuple(sorted(job.options.active_quirks)),
        training={**first.training, "protocol": protocol},
        data=source.data,
        inputs=first.inputs,
        features=FeatureFacts.model_validate(source.facts),
        random_weights=source.random_weights,
        bags=len(source.listing.bags),
        excluded={state: tuple(bag_ids) for state, bag_ids in source.listing.excluded.items()},
        learning_rate_choice=job.options.learning_rate_choice,
        runs=tuple(run.model_copy(update={"chosen": run.lr == rates[run.seed]}) for run in runs),
    )
