"""The words that lockd and its hosts speak, and how they look on the wire."""
