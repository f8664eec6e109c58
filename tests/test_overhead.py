"""Costs of a job beside its steps: no compiler is imported, and Adam is torch's to the bit."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from smmil.devices import numerics
from smmil.optimizer import make_adam
from tests.train_helpers import make_dataset, train_arguments
from tests.workflows import ROOT


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("results") / "tiny")


def test_adam_is_torchs_to_the_bit_and_so_is_its_state():
    models, optimizers = [], []
    for make in (make_adam, lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, fused=True)):
        torch.manual_seed(0)
        models.append(nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1)))
        optimizers.append(make(models[-1].parameters(), 0.01))
    for step in range(12):
        x = torch.randn(9, 7, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
            optimizer.zero_grad(set_to_none=True)
            model(x).square().mean().backward()
            optimizer.step()
        if step == 6:
            # a state goes from one to the other and back
            states = [optimizer.state_dict() for optimizer in optimizers]
            for optimizer, state in zip(optimizers, reversed(states), strict=True):
                optimizer.load_state_dict(state)
    for ours, torchs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, torchs)
    assert isinstance(optimizers[0], torch.optim.Adam)


def test_adam_takes_kingma_and_bas_steps():
    w = nn.Parameter(torch.randn(31, 5, generator=torch.Generator().manual_seed(0)))
    optimizer, wanted = make_adam([w], 0.01), w.detach().double()
    first, second = torch.zeros_like(wanted), torch.zeros_like(wanted)
    for t in range(1, 30):
        w.grad = torch.randn(31, 5, generator=torch.Generator().manual_seed(t)) * 10.0 ** (t % 5 - 3)
        first = 0.9 * first + 0.1 * w.grad.double()
        second = 0.999 * second + 0.001 * w.grad.double().square()
        wanted -= 0.01 * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        optimizer.step()
    torch.testing.assert_close(w.detach().double(), wanted, rtol=0, atol=3e-6)


def test_a_state_of_the_adam_of_several_passes_goes_on_with_it():
    states = []
    for make in (make_adam, lambda parameters, lr: torch.optim.Adam(parameters, lr=lr)):
        w = nn.Parameter(torch.linspace(-1, 1, 40))
        plain = torch.optim.Adam([w], lr=0.1)
        for step in range(6):
            if step == 3:
                # what a run of an earlier version left behind
                after = make([w], 0.1)
                after.load_state_dict(plain.state_dict())
                plain = after
            w.grad = torch.sin(w.detach() * (step + 1))
            plain.step()
        states.append(w.detach())
    assert torch.equal(*states)


def test_no_gradient_graph_grows_through_a_step():
    layer = nn.Linear(3, 1)
    optimizer = make_adam(layer.parameters(), 0.1)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert layer.weight.is_leaf and layer.weight.requires_grad


def test_numerics_asks_for_deterministic_kernels_and_puts_back_what_was():
    before = torch.are_deterministic_algorithms_enabled()
    with numerics(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        with numerics(torch.device("cpu"), deterministic=False):
            assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before


def test_a_training_job_does_not_import_the_compiler(dataset, tmp_path):
    """The import costs seconds of CPU in every job."""
    command = train_arguments(dataset, tmp_path, "smap_early", epochs=1)
    code = (
        f"import sys\nfrom smmil import train\nassert train.main({command!r}) == 0\n"
        "print('LOADED', *sorted({'torch._dynamo', 'torch._inductor', 'sympy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.splitlines()[-1] == "LOADED"
