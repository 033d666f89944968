"""Text -> speech: reading and writing audio (`audio`), speaking text (`synthesis`)."""
