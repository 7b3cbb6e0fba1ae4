"""Training of a head from stored features: recipes, batches, checkpoints, metrics and the loop."""
