"""What is loaded: models shared by whoever leases them, fitted into memory, watched, closed."""
