"""Embeddings of a trained head: made, stored, and searched by a text, a recording or a picture."""
