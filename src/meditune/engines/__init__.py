"""What writes and scores text: one interface, several engines behind it."""
