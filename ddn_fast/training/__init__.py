"""Both training stages: recipes, the solver, the loop with checkpoints, and the two tasks."""
