"""Featurization: from a manifest to committed features, by a plan of tasks."""
