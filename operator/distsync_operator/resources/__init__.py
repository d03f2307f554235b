"""One pure builder a resource: what is wanted in, a manifest out."""
