"""Sm's kernel as a program, under the address and undefined-behaviour sanitizers and on an emulated ARM processor.

A kernel that reads beyond its memory can still give right results. The emulator test needs `qemu-aarch64-static` and
`aarch64-linux-gnu-gcc`.
"""

import shutil

import numpy as np
import pytest
import torch

from smmil.sm import native
from smmil.sm.operator import coefficients, normalise_adjacency
from tests.helpers.lattices import TABLES, cells
from tests.helpers.programs import ARM, SANITIZED, program, run_program

COLUMNS = (1, 16, 17, 70, 129)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """The program with sanitizers."""
    return program("sm/program.c", tmp_path_factory.mktemp("sanitized"), SANITIZED)


class Cases:
    """Inputs of the program and the results expected of it."""

    def __init__(self, widths: list[int]) -> None:
        self.text, self.expected = b"", []
        for k, make in enumerate(TABLES.values()):
            for dtype in (torch.float32, torch.float64):
                for width in widths:
                    self.add(make(), COLUMNS[(k + width // 32) % len(COLUMNS)], 1 + k % 4, dtype, width)

    def add(self, neighbors: torch.Tensor, columns: int, T: int, dtype: torch.dtype, width: int) -> None:
        """Append a case: input as bytes, results in float64."""
        graph, rows = normalise_adjacency(neighbors, dtype=dtype), len(neighbors)
        generator = torch.Generator().manual_seed(rows + columns)
        u, other = (torch.randn(rows, columns, generator=generator).to(dtype) for _ in range(2))
        c = coefficients(0.6, T)[0]
        numbers = [rows, columns, graph.index.shape[1], T, dtype == torch.float64, width]
        self.text += np.float64(1).tobytes() + np.array(numbers, np.int64).tobytes() + np.array(c).tobytes()
        arrays = (*graph.table, u, other)
        self.text += b"".join(t.contiguous().numpy().tobytes() for t in arrays)
        a, power = graph.dense().double(), u.double()
        result = c[0] * power
        for s in range(1, T + 1):
            power = a @ power
            result = result + c[s] * power
        self.expected.append((result, float((result * other).sum()), dtype))

    def check(self, command: list[str]) -> None:
        """Run the program on all cases."""
        run = run_program(command, self.text)
        assert run.returncode == 0, run.stderr.decode()[-4000:]
        at = 0
        for result, product, dtype in self.expected:
            tolerance = 1e-10 if dtype == torch.float64 else 2e-5
            values = np.frombuffer(run.stdout, np.float64 if dtype == torch.float64 else np.float32, result.numel(), at)
            np.testing.assert_allclose(values.reshape(result.shape), result, rtol=tolerance, atol=tolerance)
            at += values.nbytes
            number = np.frombuffer(run.stdout, np.float64, 1, at)
            np.testing.assert_allclose(number, product, rtol=tolerance, atol=tolerance * result.numel())
            at += 8
        assert at == len(run.stdout)


def test_no_read_or_write_beyond_the_memory_and_nothing_undefined(sanitized):
    Cases(native.widths() or [16]).check([str(sanitized)])


def test_the_sanitizers_detect_an_index_beyond_the_rows(sanitized):
    cases = Cases([])
    cases.add(cells(4, 4), 16, 2, torch.float32, 16)
    index = normalise_adjacency(cells(4, 4)).table[0]
    broken = index.clone()
    broken[5, 0] = 4000
    run = run_program([str(sanitized)], cases.text.replace(index.numpy().tobytes(), broken.numpy().tobytes()))
    assert run.returncode != 0 and b"AddressSanitizer" in run.stderr


def test_an_arm_processor_computes_the_same(tmp_path):
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("no qemu-aarch64-static on this machine")
    Cases([16]).check([emulator, str(program("sm/program.c", tmp_path, ARM))])
