"""The doors: each translates between its clients and sessions and turns; no logic of its own."""
