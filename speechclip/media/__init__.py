"""Media: the bytes behind an asset, decoded to 16 kHz mono audio, an RGB picture or a text."""
