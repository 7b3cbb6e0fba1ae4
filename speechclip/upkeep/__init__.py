"""Upkeep: verify, repair, gc and drop keep a store whole and small."""
