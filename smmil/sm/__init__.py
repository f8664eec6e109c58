"""The Sm operator (paper, Section 4): T smoothing steps or exact solution on a bag's graph, and its Dirichlet energy.

`operator` holds the PyTorch form and its references, `native` calls the CPU kernel `kernel.c`, which
`compiled` builds.
"""
