"""Text: where stories and cloze items come from."""
