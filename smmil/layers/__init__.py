"""Layers that several methods share: pooling and segment reductions, attention, graph layers.

All of them work on packed bags: (M, D) instances and (B + 1,) offsets.
"""


def check_choice(option: str, value: object, *choices: str) -> None:
    """Raise a ValueError if an option is none of its choices."""
    if value not in choices:
        raise ValueError(f"{option}: found {value!r}, expected one of {', '.join(choices)}")
