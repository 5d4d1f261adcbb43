"""Sessions: who may talk to which tutor, until when; knows nothing of tutors or sockets."""
