"""The search: an objective on cached features, a space that is always on budget, an Optuna study, MLflow tracking."""
