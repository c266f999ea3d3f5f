"""The run: configuration, command line, the training loop, placement, weights, evaluation and tracking."""
