"""Course material: read into passages, indexed, searched, and turned into words to listen for."""
