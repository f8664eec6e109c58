"""The benches: shape of their output at microscopic size, and that the peer they time computes the same as ours."""

import pytest
import torch

from bench import methods, sm
from bench.bags import fill, make_batch, pad, sizes_of
from bench.peers import NEEDS_GRAPH, PEERS
from bench.timing import Case, Row, chosen, met, seconds
from preprocessing.common.cli import guard
from smmil.models import build_model


def test_sm_prints_nothing_but_its_rows(bench_rows):
    rows = bench_rows(sm.main, ["--scale", "0.01", "--cases", "1k"])
    assert [row["target"] for row in rows] == [5, 5]
    assert all(row["unit"] == "ms" for row in rows)


def test_methods_print_nothing_but_their_rows(bench_rows):
    rows = bench_rows(methods.main, ["--scale", "0.05", "--cases", "abmil/rsna,setmil,gtp,dftd/panda"])
    assert [row["name"].split(",")[0] for row in rows] == ["abmil", "dftd", "setmil", "gtp"]
    assert rows[0]["target"] == pytest.approx(1 / fill(sizes_of("rsna", 2)))
    # the peer of SETMIL asks for more memory than there is and is left out
    assert rows[2]["peer"] is None and rows[2]["ratio"] is None and rows[3]["target"] == 5


def test_memory_is_measured_in_a_process_of_its_own(bench_rows):
    rows = bench_rows(methods.main, ["--memory", "--scale", "0.001", "--cases", "mean_pool"])
    assert rows[0]["unit"] == "GiB" and 0 < rows[0]["ours"] < rows[0]["target"] == 8


def test_unknown_cases_are_named(capsys):
    assert guard(sm.main)(["--cases", "1k,2k"]) == 2
    assert "2k" in capsys.readouterr().err
    assert guard(methods.main)(["--memory", "--cases", "abmil,other"]) == 2
    assert "other" in capsys.readouterr().err


def test_cases_are_chosen_by_key_or_part():
    cases = [Case(key, key, lambda: (lambda: None, None), None) for key in ("a/x", "a/y", "b/x")]
    assert [case.key for case in chosen(cases, "a")] == ["a/x", "a/y"]
    assert [case.key for case in chosen(cases, "x")] == ["a/x", "b/x"]
    assert [case.key for case in chosen(cases, "b/x,a/y")] == ["a/y", "b/x"]


def test_steps_take_turns_and_a_slow_one_runs_once():
    calls = []

    def slow():
        calls.append("slow")
        sum(range(10**6))

    seconds([lambda: calls.append("quick"), slow], budget=1e-3, rounds=3)
    assert calls.count("slow") == 1 and calls.count("quick") == 4 and calls[:2] == ["quick", "slow"]


def test_a_target_is_a_ratio_or_a_limit():
    assert met(Row("", 1, 6, 6, 5, "ms")) and not met(Row("", 1, 4, 4, 5, "ms"))
    assert met(Row("", 7, None, None, 8, "GiB")) and not met(Row("", 9, None, None, 8, "GiB"))
    assert met(Row("", 9, None, None, None, "ms")) and not met(Row("", None, None, None, 8, "GiB"))


@pytest.mark.parametrize("method", ["abmil", "smap_early", "t_ap", "smtap"])
def test_the_peer_computes_the_same_on_ragged_bags(method):
    torch.manual_seed(0)
    ours = build_model(method, 6, **methods.OPTIONS.get(method, {})).eval()
    batch = make_batch([9, 4, 12], 6)
    bags, peer = pad(batch), PEERS[method](ours, 6).eval()
    graph = [bags.adj] if method in NEEDS_GRAPH else []
    with torch.no_grad():
        torch.testing.assert_close(peer(bags.X, *graph, bags.mask), ours(batch).bag_logit, rtol=0, atol=1e-5)
