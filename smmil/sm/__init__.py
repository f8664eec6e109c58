"""The Sm operator (paper, Section 4): T smoothing steps or exact solution on a bag's graph, and its Dirichlet energy.

`operator` holds the PyTorch form and its references, `native` loads the compiled CPU kernel `kernel.c`.
"""
