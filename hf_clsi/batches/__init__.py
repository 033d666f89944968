"""Turns story rows into batches: interleaving, packing, and the data collator that does both."""
