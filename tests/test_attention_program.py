"""The attention kernel as a program, under the address and undefined-behaviour sanitizers and on an emulated processor.

It makes its bags itself, in memory of exactly their size, and holds results and gradients of the queries against the
plain formula; a kernel that reads beyond its memory may give right numbers nearly always.
"""

import shutil

import pytest

from tests.programs import ARM, SANITIZED, program, run_program

SOURCE = "attention_program.c"


def test_no_read_or_write_beyond_the_memory_and_nothing_undefined(tmp_path):
    run = run_program([str(program(SOURCE, tmp_path, SANITIZED))])
    assert run.returncode == 0, (run.stdout + run.stderr).decode()[-4000:]
    assert run.stdout.startswith(b"16 ")


def test_an_arm_processor_computes_the_same(tmp_path):
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("no qemu-aarch64-static on this machine")
    run = run_program([emulator, str(program(SOURCE, tmp_path, ARM))])
    assert run.returncode == 0, (run.stdout + run.stderr).decode()[-4000:]
