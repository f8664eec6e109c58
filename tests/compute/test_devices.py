"""Numerical switches are set, recorded and put back; what allocators say is understood."""

import pytest
import torch

from smmil.compute.devices import flushes_denormals, is_out_of_memory, numerics, numerics_facts

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_every_switch_is_set_and_put_back(precision):
    before = numerics_facts(CPU, "float32")
    with numerics(CPU, precision=precision, threads=1):
        facts = numerics_facts(CPU, precision)
    tf32 = precision == "tf32"
    assert facts == {
        **{"device": "cpu", "precision": precision, "autocast": "bfloat16" if precision == "bf16" else None},
        **{"float32_matmul_precision": "high" if tf32 else "highest", "threads": 1},
        **{"cuda_matmul_allow_tf32": tf32, "cudnn_allow_tf32": tf32},
        **{"deterministic": True, "deterministic_warn_only": False, "denormals_flushed": True},
    }
    assert numerics_facts(CPU, "float32") == before


def test_contexts_nest_and_restore_the_deterministic_mode():
    before = torch.get_deterministic_debug_mode()
    with numerics(CPU):
        assert torch.get_deterministic_debug_mode() == 2
        with numerics(CPU, deterministic=False):
            assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_deterministic_debug_mode() == 2
    assert torch.get_deterministic_debug_mode() == before


def test_denormal_numbers_are_flushed_inside_and_kept_outside():
    """Numbers below the normal ones are 0 inside and what they are outside."""
    tiny = torch.full((64,), 1e-39)
    with numerics(CPU):
        assert not (tiny * 0.5).any() and flushes_denormals()
    assert (tiny * 0.5).all() and not flushes_denormals()


def test_real_allocators_are_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("whatever it says"))
    assert is_out_of_memory(MemoryError("Sm: no memory for 9 rows"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
