"""The published SpeechCLIP checkpoints: read as data, never run, and turned into a run of ours."""
