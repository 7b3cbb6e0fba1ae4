"""Evaluation of a trained head on a split, beside the level of chance and published figures."""
