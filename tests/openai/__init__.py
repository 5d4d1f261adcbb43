"""Tests of the `openai` provider, against a real server on the loopback."""
