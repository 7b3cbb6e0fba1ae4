"""Retrieval: embeddings of stored utterances, and the nearest ones to a question."""
