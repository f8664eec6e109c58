"""Sm's kernel as a program, under the address and undefined-behaviour sanitizers and on an emulated ARM processor.

A kernel that goes by a table of row numbers may read beyond its memory and give right numbers nearly always; numbers
alone do not find that. The emulator (`qemu-aarch64-static` with `aarch64-linux-gnu-gcc`) is asked where there is one.
"""

import shutil

import numpy as np
import pytest
import torch
from torch import Tensor

from smmil import native
from smmil.sm import Graph, coefficients, normalise_adjacency
from tests.graphs import table
from tests.lattices import TABLES, cells, lines, packed
from tests.programs import ARM, SANITIZED, program, run_program

COLUMNS = (1, 16, 17, 70, 129)
ALPHA = 0.6


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """The program with sanitizers; the compiler takes a while."""
    return program("sm_program.c", tmp_path_factory.mktemp("sanitized"), SANITIZED)


def outlines(count: int, seed: int) -> list[Tensor]:
    """Random outlines of tissue, half of them two bags in one table."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        bags = []
        for _ in range(rng.integers(1, 3)):
            first = rng.integers(0, 8, rng.integers(1, 7))
            spans = [(int(f), int(f + n)) for f, n in zip(first, rng.integers(1, 15, len(first)), strict=True)]
            bags.append(
                lines(*spans) if rng.random() < 0.7 else cells(*rng.integers(1, 9, 2), seed=int(rng.integers(99)))
            )
        out.append(packed(*bags))
    return out


class Cases:
    """Inputs of the program, and what torch makes of them."""

    def __init__(self) -> None:
        self.text, self.expected = b"", []

    def add(self, graph: Graph, columns: int, T: int, width: int) -> None:
        """One more: input as bytes, results by the plain steps in float64."""
        rows, dtype = len(graph.index), graph.weight.dtype
        generator = torch.Generator().manual_seed(rows + columns)
        u, grad = (torch.randn(rows, columns, generator=generator).to(dtype) for _ in range(2))
        c, d = coefficients(ALPHA, T)
        numbers = [rows, columns, graph.index.shape[1], T, dtype == torch.float64, width, graph.scale is not None]
        arrays = [graph.index32, graph.weight, graph.self_weight, *([] if graph.scale is None else [graph.scale])]
        self.text += np.float64(ALPHA).tobytes() + np.array(numbers, np.int64).tobytes() + np.array([c, d]).tobytes()
        self.text += b"".join(t.contiguous().numpy().tobytes() for t in [*arrays, u, grad])
        a = graph.dense().double()
        forward, powers = u.double(), grad.double()
        total, slope = c[0] * powers, d[0] * (powers * u).sum()
        for s in range(1, T + 1):
            forward = ALPHA * a @ forward + (1 - ALPHA) * u
            powers = a @ powers
            total, slope = total + c[s] * powers, slope + d[s] * (powers * u).sum()
        self.expected.append((forward, total, float(slope), dtype))

    def check(self, command: list[str]) -> None:
        """Runs the program on all of them."""
        run = run_program(command, self.text)
        assert run.returncode == 0, run.stderr.decode()[-4000:]
        out, at = run.stdout, 0
        for forward, total, slope, dtype in self.expected:
            tolerance = 1e-10 if dtype == torch.float64 else 2e-5
            for wanted in (forward, total):
                kind = np.float64 if dtype == torch.float64 else np.float32
                found = np.frombuffer(out, kind, wanted.numel(), at).reshape(wanted.shape)
                np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
                at += found.nbytes
            np.testing.assert_allclose(
                np.frombuffer(out, np.float64, 1, at), slope, rtol=tolerance, atol=tolerance * forward.numel()
            )
            at += 8
        assert at == len(out)


def all_cases(widths: list[int], count: int) -> Cases:
    """Every kind of table and random outlines, in every width of vectors; some with weights of their own."""
    cases = Cases()
    far = table([(i, (i + 60) % 130) for i in range(130)], 130)
    tables = [make() for make in TABLES.values()] + [cells(30, 40), far] + outlines(count, seed=0)
    for k, neighbors in enumerate(tables):
        dtype = (torch.float32, torch.float64)[k % 2]
        graph = normalise_adjacency(neighbors, dtype=dtype)
        weighted = Graph(graph.index, graph.weight, graph.self_weight)
        for width in widths:
            cases.add(graph, COLUMNS[k % len(COLUMNS)], 1 + k % 4, width)
            cases.add(weighted if k % 3 == 0 else graph, COLUMNS[(k + 2) % len(COLUMNS)], 3, width)
    return cases


def test_no_read_or_write_beyond_the_memory_and_nothing_undefined(sanitized):
    all_cases(native.widths() or [16], count=150).check([str(sanitized)])


def test_the_sanitizers_would_tell(sanitized):
    # a table that names a row beyond the last one, which the door of the Python side refuses
    cases = Cases()
    graph = normalise_adjacency(cells(4, 4))
    cases.add(graph, 16, 2, 16)
    broken = graph.index32.clone()
    broken[5, 0] = 4000
    cases.text = cases.text.replace(graph.index32.numpy().tobytes(), broken.numpy().tobytes())
    run = run_program([str(sanitized)], cases.text)
    assert run.returncode != 0 and b"AddressSanitizer" in run.stderr


def test_an_arm_processor_computes_the_same(tmp_path):
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("no qemu-aarch64-static on this machine")
    all_cases([16], count=60).check([emulator, str(program("sm_program.c", tmp_path, ARM))])
