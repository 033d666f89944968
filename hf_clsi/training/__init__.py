"""Training: recipes, exact budgets, the run that follows them, and starting from a text model."""
