"""CSV, Markdown, HTML and LaTeX of the tables: every number kept, marks and names escaped, documents that hold."""

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smmil.config.layouts import TableLayout
from smmil.tables.formats import escape, panels, to_csv, to_html, to_latex, to_markdown
from smmil.tables.specs import TABLES, Column
from tests.helpers.pages import Page
from tests.helpers.predictions import metrics_object
from tests.tables.test_tables import LAYOUT, build_table, metrics, with_values

NASTY = r"R&D_100% {x} ~^ \o/ #1 $ [a] <b>"


def everything(title: str = NASTY) -> tuple[list[dict[str, Any]], TableLayout]:
    """Two methods of every group on two extractors, one run missing, with every metric there is."""
    values: list[float | None] = [0.5, 0.25]
    extra = (
        "signed_instance_auroc",
        "signed_instance_f1",
        "signed_sm_instance_auroc",
        "dirichlet_raw",
        "dirichlet_normalised",
        "train_seconds",
    )
    entries = [
        with_values(metrics_object(d, m, {"instance_auroc": [0.4, 0.6]}, encoder=e), **dict.fromkeys(extra, values))
        for d, e in (("a", "resnet18"), ("b", "resnet18"), ("b", "vit_b_32"))
        for m in ("smap_early", "abmil", "dsmil", "smdsmil", "smtap", "t_ap")
    ]
    datasets = [
        {"name": "a", "title": title, "encoders": ["resnet18"]},
        {"name": "b", "title": "B", "encoders": ["resnet18", "vit_b_32"]},
    ]
    methods = ["smap_early", "abmil", "smtap", "t_ap"]
    return entries[1:], TableLayout.parse({"datasets": datasets, "methods": methods, "note": "[see] 5 %"})


def marked() -> list[dict[str, Any]]:
    """Three methods whose AUROCs differ by more than their splits, the last with inverted runs."""
    values = {"smap_early": [0.89, 0.9, 0.91], "abmil": [0.79, 0.8, 0.81], "clam": [0.2, 0.35, 0.45]}
    return [metrics_object("rsna", method, {"instance_auroc": [*areas]}) for method, areas in values.items()]


def test_markdown_is_a_rectangle_with_marks_and_definitions() -> None:
    text = to_markdown(build_table("table1", metrics(), LAYOUT))
    first = text.split("### ")[0]
    lines = [line for line in first.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + 2 + 4
    assert "| SmAP ◆ | 0.800 ± 0.141 | 0.500 ± 0.000 | 0.500 ± 0.000 | 0.400 ± - [1] ⇅ |" in text
    assert "| CLAM |  |  |  |  |  |  |  |" in text and "- Instance AUROC: raw, ungated" in text
    assert "### Spread over the runs" in text and "| SmAP ◆ | 0.800 / 0.700 / 0 | 0.500 / 0.500 / 0 |" in text


def test_html_marks_the_cells_of_the_markdown() -> None:
    table = build_table("table1", marked(), LAYOUT)
    markdown, text = to_markdown(table), to_html(table)
    assert "| SmAP ◆ | **0.900 ± 0.010** |" in markdown and "| ABMIL | <u>0.800 ± 0.010</u> |" in markdown
    assert "| CLAM | 0.333 ± 0.126 ⇅ |" in markdown
    assert "<strong>0.900 ± 0.010</strong></td>" in text and '<td class="empty">·</td>' in text
    assert ">0.800<small> ± 0.010</small></td>" in text and "<small> ± 0.126 ⇅</small>" in text
    assert '<tr class="group"><th colspan="8" scope="rowgroup">' in text and "<h3>Spread over the runs</h3>" in text
    first = LAYOUT.datasets[0].model_copy(update={"title": NASTY})
    title = LAYOUT.model_copy(update={"datasets": (first, *LAYOUT.datasets[1:])})
    assert "[a] &lt;b&gt;</th>" in to_html(build_table("table1", metrics(), title))


def test_html_has_the_intervals_on_hover_and_in_a_tab() -> None:
    text = to_html(build_table("table2", metrics(), LAYOUT))
    assert 'title="95 % interval 0.250–0.750"' in text
    tab = text.split('<section data-tab="95 % intervals">')[1].split("</section>")[0]
    assert "<td>0.500<small> 0.250–0.750</small></td>" in tab
    without = [{**record, "bootstrap": None} for record in metrics()]
    assert "95 % intervals" not in to_html(build_table("table2", without, LAYOUT))


def test_html_marks_nothing_in_a_block_of_one() -> None:
    one = TableLayout.parse({"datasets": [{"name": "rsna", "encoder": "resnet18"}], "methods": ["abmil"]})
    text = to_html(build_table("table2", [metrics_object("rsna", "abmil", {"bag_auroc": [0.9]})], one))
    assert 'class="best"' not in text and "0.900" in text and "Further metrics" not in text.split("<ul")[0]


def test_csv_holds_every_number_in_full() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(build_table("table2", metrics(), LAYOUT)))))
    assert [row["method"] for row in rows] == ["smap_early", "abmil", "clam", "smtap"]
    first = rows[0]
    assert first["rsna.resnet18.bag_auroc.mean"] == "0.5" and first["rsna.resnet18.bag_auroc.n_splits"] == "2"
    assert (first["rsna.resnet18.bag_auroc.ci95_low"], first["rsna.resnet18.bag_auroc.ci95_high"]) == ("0.25", "0.75")
    assert first["protocol"] == "as_written" and rows[2]["c16.resnet18.bag_f1.mean"] == ""


def test_csv_holds_spread_and_sign_aware_score_in_the_methods_row() -> None:
    signed = [with_values(record, signed_instance_auroc=[0.3, 0.9]) for record in metrics()]
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(to_csv(build_table("table1", signed, LAYOUT))))}
    row, where = rows["abmil"], "c16.resnet18.instance_auroc"
    assert (row[f"{where}.median"], row[f"{where}.worst"], row[f"{where}.inverted"]) == ("0.25", "0.2", "2")
    assert row["c16.resnet18.signed_instance_auroc.mean"] == "0.6"
    assert row["c16.resnet18.signed_instance_auroc.inverted"] == "1" and row["rank"] == "1.625"
    signed[3]["splits"][1]["signed_agreement"] = -0.25
    signed[3]["splits"][0]["signed_agreement"] = 0.75
    again = {row["method"]: row for row in csv.DictReader(io.StringIO(to_csv(build_table("table1", signed, LAYOUT))))}
    agreements = [
        again["abmil"][f"c16.resnet18.signed_instance_auroc.agreement_{part}"] for part in ("median", "worst")
    ]
    assert (
        agreements == ["0.25", "-0.25"] and again["abmil"]["rsna.resnet18.signed_instance_auroc.agreement_worst"] == ""
    )
    # the rank of SmAP rests on a cell of one split
    assert [rows[method]["rank_n_splits"] for method in ("smap_early", "abmil", "clam")] == ["1", "2", ""]
    assert rows["clam"][f"{where}.inverted"] == "" and rows["clam"][f"{where}.n_splits"] == "0"


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_written_with_rows_of_one_length(name: str) -> None:
    table = build_table(name, *everything())
    rows = list(csv.reader(io.StringIO(to_csv(table))))
    assert len({len(row) for row in rows}) == 1 and len(set(rows[0])) == len(rows[0]), "a column twice"
    # provenance takes them for a dataset, an encoder and a metric
    assert {name.split(".")[0] for name in rows[0] if name.count(".") >= 2} <= {"a", "b"}
    methods = sum(len(block) for block in table.sections[0].blocks.values())
    assert len(rows) == 1 + methods
    for block in to_markdown(table).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    check_html(to_html(table))
    check_latex(to_latex(table))


def check_html(text: str) -> None:
    """Nested tags, rows of one length, names escaped."""
    Page(text)
    for part in text.split("<table")[1:]:
        head = part.split("</thead>")[0]
        first = re.findall(r"<th ([^>]*)>", re.search(r"<tr>(.*?)</tr>", head)[1])
        width = sum(int(match[1]) if (match := re.search(r'colspan="(\d+)"', text)) else 1 for text in first)
        rows = re.findall(r'<tr><th scope="row">.*?</tr>', part)
        assert {row.count("<td") for row in rows} == {width - 1}
        assert set(re.findall(r'colspan="(\d+)" scope="rowgroup"', part)) == {str(width)}
    assert "[a] <b>" not in text


def check_latex(text: str) -> None:
    """Balanced braces and environments, rows as wide as their tabular says, nothing left to escape."""
    bare = re.sub(r"\\[\\&%$#_{}]", lambda m: "\n" if m[0] == r"\\" else " ", re.sub(r"(?m)^%.*$", "", text))
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0 and not re.search(r"[%#~^]", bare) and bare.count("$") % 2 == 0
    assert text.isascii()
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        assert kind == "begin" or stack.pop() == name
        stack += [name] if kind == "begin" else []
    assert not stack
    for width, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        for line in (line for line in body.splitlines() if line.endswith(r"\\")):
            spans = sum(int(span) - 1 for span in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + spans == len(width), line
        assert body.count(r"\toprule") == body.count(r"\bottomrule") == 1


def test_latex_marks_best_and_second_and_hides_no_missing_run() -> None:
    lines = to_latex(build_table("table1", marked(), LAYOUT)).splitlines()
    cells = [
        next(line for line in lines if line.startswith(name)).split(" & ")[:2] for name in ("SmAP", "ABMIL", "CLAM")
    ]
    assert cells[0] == [r"SmAP $\diamond$", r"\textbf{0.900}{\tiny$\pm$0.010}"]
    assert cells[1][1] == r"\underline{0.800}{\tiny$\pm$0.010}"
    assert cells[2][1] == r"0.333{\tiny$\pm$0.126\,$\updownarrow$}"
    text = to_latex(build_table("table1", metrics(), LAYOUT))
    assert r" & 0.400{\tiny$\pm$-\,{[}1{]} $\updownarrow$} & " in text
    assert r"\item 9 of 24 cells are empty." in text and r"as\_written" in text
    # LaTeX numbers the table itself
    assert r"\caption{Localisation: instance level. Protocol" in text and r"\label{tab:table1-spread}" in text
    assert next(line for line in lines if line.startswith("CLAM")).count("&") == 7


def test_latex_signs_a_negative_difference() -> None:
    entries = [metrics_object("c16", m, {"instance_auroc": [v]}) for m, v in (("clam", 0.9), ("smclam", 0.4))]
    text = to_latex(
        build_table("table4", entries, TableLayout.parse({"datasets": [{"name": "c16", "encoder": "resnet18"}]}))
    )
    line = next(line for line in text.splitlines() if line.startswith("SmCLAM"))
    assert line.split(" & ")[2] == r"$-$0.500{\tiny$\pm$-}"


def test_latex_escapes_every_special_character() -> None:
    assert escape("50 % of a_b & {c} #1 $") == r"50 \% of a\_b \& \{c\} \#1 \$"
    assert (
        escape("\\~^<|>") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}\textless{}\textbar{}\textgreater{}"
    )
    assert escape("a\n  b [1]") == "a b {[}1{]}" and escape("± ×−†◆Δ") == (
        r"$\pm$ $\times$$-$$\dagger$$\diamond$$\Delta$"
    )


@settings(deadline=None)
@given(st.text(st.sampled_from("ab\\&%$#_{}~^<>|[] ±"), max_size=30))
def test_escaped_text_is_balanced_and_keeps_its_letters(text: str) -> None:
    escaped = escape(text)
    bare = re.sub(r"\\text\w+\{\}|\\[&%$#_{}]|\{\[\}|\{\]\}|\$\\pm\$", "", escaped)
    assert not re.search(r"[\\&%$#_{}~^<>|±\[\]]", bare)
    assert re.sub("[^ab]", "", bare) == re.sub("[^ab]", "", text)


def test_wide_sections_are_cut_between_headings() -> None:
    def columns(*heads: str) -> list[Column]:
        return [Column("mean", ("m",), head=head, keys=(("d", "e"),)) for head in heads]

    def cut(entries: list[Column]) -> list[list[int]]:
        return panels(entries, [1.0] * len(entries), 8.0)

    assert cut(columns(*"aaabbbcccd")) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]
    assert cut(columns(*"aaaaabbbbbccccc")) == [list(range(5)), list(range(5, 10)), list(range(10, 15))]
    assert cut(columns(*"aabb")) == [[0, 1, 2, 3]]
    # one heading wider than a page has to be cut
    assert [len(panel) for panel in cut(columns(*"aaaaaaaaaa"))] == [8, 2]


def test_random_encoders_are_marked_in_every_format_where_they_were_used() -> None:
    random = [{**record, "random_weights": record["dataset"] == "rsna"} for record in metrics()]
    table = build_table("table1", random, LAYOUT)
    assert "RSNA†<br>" in to_markdown(table) and "CAMELYON16†" not in to_markdown(table)
    assert r"{RSNA$\dagger$}" in to_latex(table) and r"CAMELYON16$\dagger$" not in to_latex(table)


def test_long_cells_make_narrower_panels() -> None:
    short, long = (to_latex(build_table("table1", entries, LAYOUT)) for entries in (marked(), metrics()))
    main = short[short.index("tab:table1}") :].split(r"\end{table}")[0]
    spread = long[long.index("tab:table1-spread}") :].split(r"\end{table}")[0]
    assert main.count(r"\begin{tabular}{lrrrrrrr}") == 1 and main.count(r"\begin{tabular}") == 1
    assert spread.count(r"\begin{tabular}{lrrr}") == 2


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("title", [NASTY, "CAMELYON16"])
def test_latex_compiles_and_fits_an_upright_page(name: str, title: str, tmp_path: Path) -> None:
    (tmp_path / "table.tex").write_text(to_latex(build_table(name, *everything(title))), encoding="utf-8")
    page = r"""\documentclass{article}\usepackage{booktabs}\setlength{\textwidth}{5.5in}
    \begin{document}\input{table}\end{document}"""
    (tmp_path / "page.tex").write_text(page, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]
    # a heading may be as long as its data set's name
    assert title == NASTY or "Overfull" not in done.stdout
