"""The live session: what joins a student's session, an engine and a conversation."""
