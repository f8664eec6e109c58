"""The runs of a training job from its arguments, and the summary of the finished job.

A variant (`smmil.config.variants`) trains its method with the argument in its name: its run keys contain the method
and its
arguments, its `runs.json` the name of the variant. Quirks (`smmil.config.quirks`) are resolved here into settings, data
options and arguments of the method, so that a key contains only what has an effect.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smmil.artifacts.runs import RunSpec, read_done
from smmil.config.quirks import method_changes
from smmil.config.variants import SEPARATOR, Variant, base_method

if TYPE_CHECKING:
    from smmil.config.training_options import TrainingOptions
    from smmil.data.sources import Source


def options_of(arguments: argparse.Namespace) -> "TrainingOptions":
    """Return the training options with the active quirks; `--splits` and `--learning-rates` take precedence.

    Raises:
        ValueError: invalid JSON, or an unknown or invalid option.
    """
    values = json_object(arguments.config_json, "--config-json")
    if arguments.splits:
        values["splits"] = _numbers(arguments.splits, int, "--splits")
    options = _validated(values).under_quirks(base_method(arguments.method))
    if arguments.learning_rates:
        rates = _numbers(arguments.learning_rates, float, "--learning-rates")
        options = _validated({**options.model_dump(), "learning_rates": rates})
    if arguments.part is not None and arguments.part not in options.splits:
        raise ValueError(f"--part: found {arguments.part}, expected one of the split seeds {options.splits}")
    return options


def _validated(values: Mapping[str, Any]) -> "TrainingOptions":
    from pydantic import ValidationError

    from smmil.config.training_options import TrainingOptions

    try:
        return TrainingOptions.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (found {e['input']!r})" for e in error.errors()]
        raise ValueError(f"--config-json: {'; '.join(lines)}") from error


def json_object(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object given as an argument.

    Raises:
        ValueError: not a JSON object; the message names the argument.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: not JSON ({error}); found {text[:80]!r}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}: found {text[:80]!r}, expected a JSON object")
    return value


def _numbers(text: str, kind: type, name: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name}: found {text!r}, expected numbers separated by commas") from error


def check_variant(name: str, method_options: Mapping[str, Any]) -> None:
    """Raise if the name of a variant does not match its arguments.

    Raises:
        ValueError: no argument has the value in the name.
    """
    method = base_method(name)
    if name == method or any(Variant(method, key, value).name == name for key, value in method_options.items()):
        return
    raise ValueError(
        f"--method: found the variant {name!r}, but no argument in --method-options {json.dumps(dict(method_options))}"
        f' gives that name; expected e.g. {method}{SEPARATOR}alpha_0p1 with {{"alpha": 0.1}}'
    )


def job_specs(arguments: argparse.Namespace, options: "TrainingOptions", source: "Source") -> list[RunSpec]:
    """Return the runs of a job or of a part, by split and learning rate.

    Raises:
        ValueError: a variant without its argument, or arguments that contradict the active quirks.
    """
    method, given = base_method(arguments.method), json_object(arguments.method_options, "--method-options")
    check_variant(arguments.method, given)
    method_options = method_changes(options.active_quirks, method, given)
    # Instance labels do not influence training unless they decide which bags take part.
    ignored = {"label_order"}
    if not source.data.get("drop_inconsistent"):
        ignored |= {"label_rule", "label_threshold"}
    return [
        RunSpec(
            dataset=arguments.dataset,
            encoder=arguments.encoder,
            method=method,
            method_options=method_options,
            training=options.key_values,
            data={name: value for name, value in source.data.items() if name not in ignored},
            inputs=source.inputs,
            seed=seed,
            learning_rate=rate,
        )
        for seed in options.splits
        if arguments.part in (None, seed)
        for rate in options.learning_rates
    ]


def summary(
    specs: Sequence[RunSpec], name: str, options: "TrainingOptions", source: "Source", out: Path
) -> dict[str, Any]:
    """Return the content of `runs.json`: inputs and results only, no times and no paths.

    Args:
        specs: finished runs.
        name: method or variant.
        options: options of the job.
        source: source of the bags.
        out: folder of the runs.

    Raises:
        RuntimeError: a run is not finished.
    """
    runs: list[dict[str, Any]] = []
    for spec in specs:
        done = read_done(out / spec.name, spec.key)
        if done is None:
            raise RuntimeError(f"{out / spec.name}: not finished although training ended")
        runs.append({"run": spec.name, "seed": spec.seed, "lr": spec.learning_rate, **done})
    for run in runs:
        candidates = [other for other in runs if other["seed"] == run["seed"]]
        run["chosen"] = run is max(candidates, key=lambda other: (other["selection_score"], other["lr"]))
    first = specs[0]
    return {
        "dataset": first.dataset,
        "encoder": first.encoder,
        "method": name,
        "method_options": first.method_options,
        "protocol": options.protocol,
        "quirks": sorted(options.active_quirks),
        "training": {**first.training, "protocol": options.protocol},
        "data": source.data,
        "inputs": first.inputs,
        "features": source.facts,
        "random_weights": source.random_weights,
        "bags": len(source.listing.bags),
        "excluded": source.listing.excluded,
        "runs": runs,
    }
