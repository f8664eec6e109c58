"""The sections of the report: summary, runs behind the tables, and one section per dataset."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from preprocessing import webpage
from smmil.methods_table import METHODS, display_name

Parts = Mapping[str, Sequence[tuple[Path, dict[str, Any]]]]


def summary(layout: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], protocol: str, code_version: str) -> str:
    """What was run, in one small table."""
    titles = [f"{one.get('title', one['name'])} ({one['encoder']})" for one in layout["datasets"]]
    seeds = sorted({split["seed"] for one in metrics for split in one["splits"]})
    rates = sorted({c["lr"] for one in metrics for s in one["splits"] for c in s.get("candidates", [s])}, reverse=True)
    rows = [
        ("Datasets (encoder)", ", ".join(titles)),
        ("Methods", ", ".join(display_name(method) for method in METHODS if method in layout["methods"])),
        ("Splits", ", ".join(map(str, seeds)) or "none yet"),
        ("Learning rates", ", ".join(f"{rate:g}" for rate in rates) + (" (chosen on validation)" if rates else "")),
        ("Protocol", protocol),
        ("Code version", code_version or "unknown"),
    ]
    return webpage.table(["", ""], rows).replace(
        '<thead><tr><th scope="col"></th><th scope="col"></th></tr></thead>', ""
    )


def runs_table(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Every run behind the tables with its own numbers, folded away."""
    head = ["dataset", "method", "split", "chosen lr", "run", "instance AUROC", "gated", "instance F1", "threshold"]
    head += ["bag AUROC", "bag F1", "not chosen (lr: bag AUROC)"]
    rows, order = [], list(METHODS)
    for one in sorted(
        metrics, key=lambda m: (m["dataset"], order.index(m["method"]) if m["method"] in METHODS else 99)
    ):
        for split in one["splits"]:
            test, gated = split["test"], split.get("gated", {}).get("instance_auroc")
            others = [c for c in split.get("candidates", []) if not c["chosen"]]
            rest = ", ".join(f"{c['lr']:g}: {_text(c['test']['bag_auroc'])}" for c in others)
            flag = " ⇅" if test.get("inverted") else ""
            numbers = [_text(test["instance_auroc"]) + flag, _text(gated), _text(test["instance_f1"])]
            numbers += [_text(split.get("threshold")), _text(test["bag_auroc"]), _text(test["bag_f1"]), rest]
            names = [one["dataset"], display_name(one["method"]), str(split["seed"]), f"{split['lr']:g}", split["run"]]
            rows.append([*names, *numbers])
    if not rows:
        return webpage.warning("No metrics were given: the tables are empty.")
    note = (
        "⇅ = inverted (instance AUROC below .5). Gated: scores of bags called negative set to −5, as the released code."
    )
    title = f"The {len(rows)} runs behind the tables"
    return f"<details><summary>{title}</summary>{webpage.table(head, rows)}<p><small>{note}</small></p></details>"


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def dataset_section(name: str, title: str, parts: Parts) -> str:
    """State of the data, contact sheet, learning curves, histograms and maps of one dataset."""
    own = {kind: [(path, item) for path, item in parts.get(kind, ()) if item["dataset"] == name] for kind in parts}
    text = f'<section id="data-{escape(name, quote=True)}"><h2>{escape(title)}</h2>'
    text += "".join(_qc(path, counts) for path, counts in own.get("qc", []))
    text += stage_states([item for _, item in own.get("manifests", [])])
    for path, item in own.get("figures", []):
        text += f"<h3>Training and scores ({escape(item['encoder'])})</h3>"
        text += "".join(_figure(path, one, item["command"]) for one in item["figures"])
    for path, item in own.get("maps", []):
        text += f"<h3>Maps of test bags ({escape(item['encoder'])})</h3>"
        text += "".join(_figure(path, one, item["command"]) for one in item["maps"])
    text += settings([item for _, item in own.get("runs", [])])
    return text + "</section>"


def _qc(path: Path, counts: Mapping[str, Any]) -> str:
    from preprocessing.qc import counts_section

    image = webpage.picture(path.parent / "contact-sheet.jpg", f"contact sheet of {counts['dataset']}")
    total = sum(counts["states"].values())
    caption = (
        f"Contact sheet: the oddest of {total} bags first. Blue: tissue, violet: holes, amber: kept tiles, vermilion: "
    )
    caption += "lesion; scans: red frames are positive slices. All bags: index.html beside it."
    sheet = webpage.figure(image, caption, command=counts.get("command", ""))
    return counts_section(counts, "<h3>Bags</h3>") + sheet


def stage_states(manifests: Sequence[Mapping[str, Any]]) -> str:
    """States of all bags per stage, and the reasons of those that are not ok."""
    if not manifests:
        return ""
    states: dict[str, Counter[str]] = {}
    problems = []
    for manifest in manifests:
        for bag in manifest["bags"]:
            states.setdefault(manifest["stage"], Counter()).update([bag["state"]])
            if bag["state"] != "ok":
                problems.append((manifest["stage"], bag["bag_id"], bag["state"], bag["reason"]))
    rows = [
        (stage, *(found.get(state, 0) for state in ("ok", "empty", "failed")))
        for stage, found in sorted(states.items())
    ]
    text = "<h3>Stages</h3>" + webpage.table(["stage", "ok", "empty", "failed"], rows)
    if problems:
        listed = webpage.table(["stage", "bag", "state", "reason"], sorted(set(problems))[:50])
        text += f"<details><summary>Bags that are not ok ({len(set(problems))})</summary>{listed}</details>"
    return text


def settings(runs: Sequence[Mapping[str, Any]]) -> str:
    """Training settings and the kept epochs of every method, folded away."""
    rows = []
    for item in runs:
        training = ", ".join(f"{key} {value}" for key, value in sorted(item.get("training", {}).items()))
        kept = ", ".join(
            f"{run['run']}: {run['best_epoch']}" for run in item["runs"] if run.get("chosen") and "best_epoch" in run
        )
        rows.append([item["encoder"], display_name(item["method"]), training, kept])
    if not rows:
        return ""
    table = webpage.table(["encoder", "method", "settings", "kept epoch of the chosen runs"], rows)
    return f"<details><summary>Training settings</summary>{table}</details>"


def _figure(path: Path, one: Mapping[str, Any], command: str) -> str:
    image = webpage.picture(path.parent / one["file"], one["caption"])
    return webpage.figure(image, one["caption"], command=command, runs=one.get("runs", ()))
