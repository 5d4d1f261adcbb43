"""The tutor: who it is, what it can do, and one turn of its conversation."""
