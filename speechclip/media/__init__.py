"""Media: read the bytes of an asset and decode them to 16 kHz mono audio, an RGB picture or a text."""
