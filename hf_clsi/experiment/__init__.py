"""The experiment: the whole flow from text to report, for presets from a laptop to a GPU."""
