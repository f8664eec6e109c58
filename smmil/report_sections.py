"""The sections of the report: summary, tables, runs behind them, and one section per dataset."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from preprocessing import webpage
from smmil.fig_job import in_order
from smmil.methods_table import METHODS, display_name
from smmil.plotting import shown_name
from smmil.report_markdown import to_html
from smmil.report_pictures import behind, figure, links, thumbnail
from smmil.table_notes import MOST_NAMED

# pictures of one dataset; every other figure is of the whole experiment
OF_DATASET = ("histograms", "curves", "resources")
Parts = Mapping[str, Sequence[tuple[Path, dict[str, Any]]]]
Pairing = tuple[str, str, str]
RUNS_HEAD = (
    *("dataset", "encoder", "method", "split", "chosen lr", "run", "instance AUROC, ungated", "gated", "instance F1"),
    *("threshold", "bag AUROC", "bag F1", "not chosen (lr: bag AUROC)"),
)
RUNS_NOTE = (
    "⇅ = inverted (the instance AUROC of the tables is below .5). Gated: scores of bags called negative set to −5, as "
    "the released code; the tables show the ungated one, or under the quirk eval_gate_by_bag the gated one."
)


def summary(
    layout: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    protocol: str,
    code_version: str,
    quirks: Sequence[str] = (),
) -> str:
    """What was run, in one small table; `quirks` are those in force by the configuration, the runs' own are added."""
    acting = sorted({*quirks, *(quirk for one in metrics for quirk in one.get("quirks", ()))})
    titles = []
    for one in layout["datasets"]:
        encoders = one.get("encoders") or [one["encoder"]]
        titles.append(f"{one.get('title', one['name'])} ({', '.join(encoders)})")
    seeds = sorted({split["seed"] for one in metrics for split in one["splits"]})
    rates = sorted({c["lr"] for one in metrics for s in one["splits"] for c in s.get("candidates", [s])}, reverse=True)
    rows = [
        ("Datasets (encoder)", ", ".join(titles)),
        ("Methods", ", ".join(display_name(method) for method in METHODS if method in layout.get("methods", ()))),
        ("Splits", ", ".join(map(str, seeds)) or "none yet"),
        ("Learning rates", ", ".join(f"{rate:g}" for rate in rates) + (" (chosen on validation)" if rates else "")),
        ("Protocol", protocol),
        ("Quirks in force", ", ".join(acting) or "none"),
        ("Code version", code_version or "unknown"),
    ]
    return webpage.table(["", ""], rows).replace(
        '<thead><tr><th scope="col"></th><th scope="col"></th></tr></thead>', ""
    )


def runs_table(metrics: Sequence[Mapping[str, Any]], missing: Sequence[Pairing] = ()) -> str:
    """Every run behind the tables with its own numbers, folded away per dataset and encoder.

    Args:
        metrics: of every pairing.
        missing: pairings behind the tables that have no metrics.
    """
    groups: dict[tuple[str, str], list[list[str]]] = {}
    order = in_order([one["method"] for one in metrics])
    for one in sorted(metrics, key=lambda m: (m["dataset"], m["encoder"], order.index(m["method"]))):
        groups.setdefault((one["dataset"], one["encoder"]), []).extend(_run_row(one, split) for split in one["splits"])
    gap = f"{len(missing)} of {len(metrics) + len(missing)} trainings behind the tables have no result"
    named = ", ".join("/".join(one) for one in missing[:MOST_NAMED])
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    gaps = webpage.warning(f"{gap}: {named}{more}.") if missing else ""
    if not groups:
        return webpage.warning("No metrics were given: the tables are empty.") + gaps
    total = sum(len(rows) for rows in groups.values())
    text = f'<section id="runs"><h2>The {total} runs behind the tables</h2>{gaps}<p><small>{RUNS_NOTE}</small></p>'
    for names, rows in groups.items():
        title = escape(f"{' / '.join(names)} ({len(rows)} runs)")
        text += f"<details><summary>{title}</summary>{webpage.table(RUNS_HEAD, rows)}</details>"
    return text + "</section>"


def _run_row(one: Mapping[str, Any], split: Mapping[str, Any]) -> list[str]:
    test, gated = split["test"], split.get("gated", {}).get("instance_auroc")
    # under the quirk eval_gate_by_bag `test` is the gated one
    ungated = split.get("ungated", test)["instance_auroc"]
    others = [c for c in split.get("candidates", []) if not c["chosen"]]
    rest = ", ".join(f"{c['lr']:g}: {_text(c['test'].get('bag_auroc'))}" for c in others)
    flag = " ⇅" if test.get("inverted") else ""
    numbers = [_text(ungated) + flag, _text(gated), _text(test["instance_f1"])]
    numbers += [_text(split.get("threshold")), _text(test["bag_auroc"]), _text(test["bag_f1"]), rest]
    names = [one["dataset"], one["encoder"], shown_name(one["method"])]
    return [*names, str(split["seed"]), f"{split['lr']:g}", split["run"], *numbers]


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def behind_layout(layout: Mapping[str, Any]) -> list[Pairing]:
    """The (dataset, encoder, method) that a table shows, from its layout (`smmil.outputs.table_layout`)."""
    found = []
    for dataset in layout["datasets"]:
        methods = [m for pair in dataset["pairs"] for m in pair] if "pairs" in dataset else layout["methods"]
        encoders = dataset.get("encoders") or [dataset["encoder"]]
        found += [(dataset["name"], encoder, method) for encoder in encoders for method in methods]
    return list(dict.fromkeys(found))


def table_section(
    path: Path,
    text: str,
    page: Path,
    configuration: str = "",
    layout: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
) -> str:
    """One table from its Markdown file, with links to its files, the command that makes it and the runs behind it.

    Args:
        path: the Markdown file; its name is the target.
        text: what stands in it.
        page: the HTML file, for the links.
        configuration: arguments that gave Snakemake its configuration, e.g. `--configfile mine.yaml`.
        layout: of the table; None = the runs behind it are not known.
        metrics: of every pairing, for the number of runs.
    """
    files = [path.with_suffix(f".{kind}") for kind in ("csv", "md", "tex")]
    name = escape(path.stem, quote=True)
    made = f"<pre>{escape(f'snakemake {path.stem} {configuration}'.strip())}</pre>"
    runs = {(one["dataset"], one["encoder"], one["method"]): len(one["splits"]) for one in metrics}
    shown = behind_layout(layout) if layout else []
    total = sum(runs.get(pairing, 0) for pairing in shown)
    where: dict[tuple[str, str], list[str]] = {}
    for dataset, encoder, method in shown:
        count = runs.get((dataset, encoder, method), 0)
        where.setdefault((dataset, encoder), []).append(f"{shown_name(method)} ({count or 'no run'})")
    listed = "".join(f"<li>{escape(f'{d} / {e}: ' + ', '.join(names))}</li>" for (d, e), names in where.items())
    if listed:
        made += f'<p>Chosen runs, each with its numbers in <a href="#runs">the list of runs</a>:</p><ul>{listed}</ul>'
    count_text = f" ({total} runs)" if listed else ""
    details = f"<details><summary>How this was made{count_text}</summary>{made}</details>"
    return f'<section id="{name}">{to_html(text)}<p>{links(files, page)}</p>{details}</section>'


def dataset_section(name: str, title: str, parts: Parts, page: Path) -> str:
    """State of the data, contact sheet, histograms, learning curves, costs and maps of one dataset."""
    own = {
        kind: [(path, item) for path, item in parts.get(kind, ()) if name in _datasets(item)]
        for kind in ("qc", "status", "manifests", "figures", "maps", "runs")
    }
    text = f'<section id="data-{escape(name, quote=True)}"><h2>{escape(title)}</h2>'
    text += "".join(_qc(path, counts, page) for path, counts in own["qc"])
    if own["status"]:
        text += "".join(status_table(item) for _, item in own["status"])
    else:
        text += stage_states([item for _, item in own["manifests"]])
    for path, item in [(path, item) for path, item in own["figures"] if item["figure"] in OF_DATASET]:
        text += f"<h3>{escape(item['title'])}</h3>{figure(path.parent, item, page)}"
    for path, item in own["maps"]:
        text += f"<h3>Maps of test bags ({escape(item['encoder'])})</h3>"
        text += "" if item["maps"] else "".join(webpage.warning(note) for note in item.get("notes", ()))
        for one in item["maps"]:
            files = {"files": one.get("files", [one["file"]]), "notes": one.get("notes", ())}
            text += figure(path.parent, {**one, **files}, page, command=item["command"])
    text += settings([item for _, item in own["runs"]])
    return text + "</section>"


def _datasets(item: Mapping[str, Any]) -> list[str]:
    return list(item["datasets"]) if "datasets" in item else [item["dataset"]]


def _qc(path: Path, counts: Mapping[str, Any], page: Path) -> str:
    from preprocessing.qc import counts_section

    sheet = path.parent / "contact-sheet.jpg"
    total = sum(counts["states"].values())
    caption = (
        f"Contact sheet: the oddest of {total} bags first. Blue: tissue, violet: holes, amber: kept tiles, vermilion: "
        "lesion; scans: red frames are positive slices."
    )
    image = thumbnail(sheet, f"contact sheet of {counts['dataset']}")
    more = links([sheet, path.parent / "index.html"], page)
    shown = f'<figure><div class="scroll">{image}</div><figcaption>{escape(caption)} {more}</figcaption>'
    return counts_section(counts, "<h3>Bags</h3>") + shown + behind(counts.get("command", ""), ()) + "</figure>"


def status_table(status: Mapping[str, Any]) -> str:
    """What became of every bag in every stage and how fast, from `preprocessing.status`."""
    head = ["stage", "bags", "ok", "empty", "skipped", "failed", "interrupted", "pending"]
    shown = [*head, "instances", "bad tiles", "seconds", "tiles per second"]
    keys = [*head, "instances", "bad_tiles", "seconds", "tiles_per_second"]
    rows = [[line.get(key) for key in keys] for line in [*status["stages"], status["total"]]]
    text = "<h3>Stages</h3>" + webpage.table(shown, rows)
    return text + _problems([[p[key] for key in ("stage", "bag_id", "state", "reason")] for p in status["problems"]])


def _problems(rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    listed = webpage.table(["stage", "bag", "state", "reason"], rows[:50])
    return f"<details><summary>Bags that are not ok ({len(rows)})</summary>{listed}</details>"


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
        (stage, *(found.get(state, 0) for state in ("ok", "empty", "skipped", "failed")))
        for stage, found in sorted(states.items())
    ]
    table = webpage.table(["stage", "ok", "empty", "skipped", "failed"], rows)
    return f"<h3>Stages</h3>{table}{_problems(sorted(set(problems)))}"


def settings(runs: Sequence[Mapping[str, Any]]) -> str:
    """Training settings, the quirks in force and the kept epochs of every method, folded away."""
    rows = []
    for item in runs:
        training = ", ".join(f"{key} {value}" for key, value in sorted(item.get("training", {}).items()))
        kept = ", ".join(
            f"{run['run']}: {run['best_epoch']}" for run in item["runs"] if run.get("chosen") and "best_epoch" in run
        )
        quirks = ", ".join(item.get("quirks", ())) or "none"
        rows.append([item["encoder"], shown_name(item["method"]), training, quirks, kept])
    if not rows:
        return ""
    table = webpage.table(["encoder", "method", "settings", "quirks", "kept epoch of the chosen runs"], rows)
    return f"<details><summary>Training settings</summary>{table}</details>"
