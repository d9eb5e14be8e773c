"""Variational inference: objectives, their gradient estimators, and importance sampling."""
