"""Find where dropout is misused, in source and in running models."""
