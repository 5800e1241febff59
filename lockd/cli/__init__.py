"""The commands lockd and lockctl."""
