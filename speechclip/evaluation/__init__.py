"""Evaluation: what a trained head reaches on a split, beside chance and the published figures."""
