"""Training: batches from stored features, recipes, checkpoints, and the loop that every worker runs."""
