"""A distributed feature store for SpeechCLIP."""
