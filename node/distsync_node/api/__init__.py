"""Public and internal HTTP endpoints, limits and errors."""
