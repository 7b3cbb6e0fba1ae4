"""The jobs on Ray: features by Ray Data, training by Ray Train. No other package imports Ray."""
