"""Turns the published SpeechCLIP checkpoints into runs. No code in a checkpoint is ever run."""
