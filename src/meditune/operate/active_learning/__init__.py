"""Active learning: what to send to experts next, and their answers as training rows."""
