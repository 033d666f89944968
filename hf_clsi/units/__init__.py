"""Waveforms become units: fitting a tokenizer, encoding, runs and merges of units."""
