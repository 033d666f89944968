"""Training: recipes, exact budgets, and the run that follows them."""
