"""The paper's figures, attention maps and their companions, one module per figure, one style for all."""
