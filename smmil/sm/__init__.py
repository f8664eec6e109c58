"""The Sm operator: T smoothing steps or the exact solution on a bag's graph, and its Dirichlet energy.

`operator` holds the PyTorch form and its references, `native` the compiled CPU step of `kernels/sm.c`.
"""
